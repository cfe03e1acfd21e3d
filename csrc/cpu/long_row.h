// Rows along the vector lanes, for long ones: where their pieces are, what pieces are together, and
// what is done to one row.
#pragma once

#include "inputs.h"
#include "sweeps.h"
#include "workspace.h"

namespace anl::cpu {

// ---- pieces ------------------------------------------------------------------------------------

// Up to here a row's e is kept from the first sweep for the later ones, 16 MiB of floats for a
// thread; that of a longer row is computed again, which takes no memory. (128256 and 256000
// classes: kept, even where it leaves the second-level cache, 0.6 times the time of computing it
// again.)
constexpr int64_t kept_classes = 1 << 22;

// A piece's worth of what is not where it can be used: logits and outputs in storage, e, numbers.
template <class T> struct Buffers {
  using A = Accumulator<T>;
  static constexpr int64_t size = piece_size<A> + block<A>;
  T *z, *out;
  A *e, *numbers;
  explicit Buffers(Workspace& space)
      : z(space.take<T>(size)), out(space.take<T>(size)), e(space.take<A>(size)),
        numbers(space.take<A>(size)) {}
};

// Output of a row's piece: written where it belongs, or into a buffer if its stride is not 1.
template <class T> class Outlet {
public:
  Outlet(T* to, int64_t stride, T* buffer, bool stream)
      : data(stride == 1 ? to : buffer), past_cache(stream && stride == 1 && streamable(to)),
        to_(to), stride_(stride) {}
  void close(int n) const {
    if (stride_ != 1)
      scatter(data, n, to_, stride_);
  }
  T* const data;
  const bool past_cache;

private:
  T* to_;
  int64_t stride_;
};

// The pieces that the classes of rows are cut into.
template <class T> class Pieces {
public:
  using A = Accumulator<T>;
  explicit Pieces(const Shape& shape)
      : count((shape.K - 1) / piece_size<A> + 1), keeps_e(shape.K <= kept_classes), shape_(shape) {}

  int64_t start(int64_t piece) const { return piece * piece_size<A>; }
  int size(int64_t piece) const {
    const int64_t left = shape_.K - start(piece);
    return int(left < piece_size<A> ? left : piece_size<A>);
  }
  // The target's place in a piece, or -1.
  int place(int64_t y, int64_t piece) const {
    const int64_t at = y - start(piece);
    return y >= 0 && at >= 0 && at < piece_size<A> ? int(at) : -1;
  }

  T* at(const Rows& rows, int64_t n, int64_t piece) const {
    return row_of<T>(rows, shape_, n) + start(piece) * rows.cls;
  }
  const T* in(const Rows& rows, int64_t n, int64_t piece, T* buffer) const {
    return gathered(at(rows, n, piece), rows.cls, size(piece), buffer);
  }
  Outlet<T> out(const Rows& rows, int64_t n, int64_t piece, T* buffer, bool stream) const {
    return {at(rows, n, piece), rows.cls, buffer, stream};
  }
  void zero_out(const Rows& rows, int64_t n, int64_t piece) const {
    anl::cpu::zero_out(at(rows, n, piece), rows.cls, size(piece));
  }

  // Room for the e of a row, or null if it is not kept; then one piece's is in a buffer.
  A* take_e(Workspace& space) const {
    return keeps_e ? space.take<A>(count * piece_size<A> + block<A>) : nullptr;
  }
  A* e_of(A* kept, A* buffer, int64_t piece) const { return kept ? kept + start(piece) : buffer; }

  // The target's logit: none for an ignored row, `nowhere` for a label that is not a class.
  A target_logit(const Rows& logits, int64_t n, const Label& label, A nowhere) const {
    if (!label.counted)
      return -INFINITY;
    return label.y < 0 ? nowhere : A(widen(row_of<T>(logits, shape_, n)[label.y * logits.cls]));
  }
  // The partials of a piece, and its e; also the place of its maximum, if that is wanted.
  Partials<A> measure(const Rows& logits, int64_t n, int64_t piece, int64_t label, T* buffer, A* e,
                      int* best) const {
    const int n_here = size(piece), y = place(label, piece);
    const T* z = in(logits, n, piece, buffer);
    const T* next = logits.cls == 1 ? z + piece_size<A> : nullptr;
    const Partials<A> s = anl::cpu::measure(z, n_here, y, e, next);
    if (best)
      *best = first_equal(z, n_here, y, s.max);
    return s;
  }

  // A piece of a row whose softmax is known; e: where its p will be, or null.
  Piece<T> view(const Rows& logits, int64_t n, int64_t piece, int64_t label, A m, A log_s,
                T* buffer, const A* e) const {
    return {in(logits, n, piece, buffer), e, size(piece), place(label, piece), m, log_s, A(1)};
  }

  const int64_t count;
  const bool keeps_e;

private:
  const Shape shape_;
};

// ---- what pieces are together ------------------------------------------------------------------

template <class A> A exp_of(A x) { return exp_nonpositive<A>(fill(x))[0]; }

// The others of a row.
template <class A> struct Merged {
  A max, min; // of z
  A mass, count;

  A m() const { return count > 0 ? max : A(-INFINITY); }
};

template <class A> Merged<A> merged(const Partials<A>* pieces, int64_t num_pieces) {
  A top = lowest<A>, bottom = INFINITY;
  double count = 0, mass = 0;
  for (int64_t c = 0; c < num_pieces; ++c) {
    const Partials<A>& s = pieces[c];
    top = s.max > top ? s.max : top;
    bottom = s.min < bottom ? s.min : bottom;
    count += s.count;
  }
  for (int64_t c = 0; c < num_pieces; ++c)
    mass += double(pieces[c].mass) * exp_of(pieces[c].max - top);
  return {top, bottom, A(mass), A(count)};
}

// The sum of z - m over the others.
template <class A> A total_about(A m, const Partials<A>* pieces, int64_t num_pieces) {
  double total = 0;
  for (int64_t c = 0; c < num_pieces; ++c) {
    const Partials<A>& s = pieces[c];
    total += s.total + double(s.count) * (double(s.max) - m);
  }
  return A(total);
}

template <class A> Softmax<A> softmax_of(A m_others, A mass, A z_y) {
  const Softmax<V<A>> s = normalise(fill(m_others), fill(mass), fill(z_y));
  return {s.m[0], s.log_s[0], s.l_y[0], s.p_y[0], s.rest[0], s.log_ratio[0]};
}

template <class A> struct Best {
  int64_t place;
  A z;
};

// The largest of the others, the first of equals; `best` has each piece's own.
template <class A> Best<A> best_of(const Partials<A>* pieces, const int* best, int64_t num_pieces) {
  int64_t piece = 0;
  for (int64_t c = 1; c < num_pieces; ++c)
    piece = pieces[c].max > pieces[piece].max ? c : piece;
  return {piece * piece_size<A> + best[piece], pieces[piece].max};
}

// ---- the gradient ------------------------------------------------------------------------------

// The scaled gradient of a row: gy at the target, else affine + sum_t G_t phi_t'(l) over the terms
// that are swept, and 0 at holes, which are classes that are not there.
template <class A> struct RowGradient {
  Affine<A> affine; // its q is for p
  A gy;
  A* G;
  bool* sweep;
  bool holes;
};

template <class T, class A = Accumulator<T>>
void write_gradient(const Terms<T>& terms, const RowGradient<A>& row, const Piece<T>& piece,
                    A* numbers, const Outlet<T>& out) {
  const Affine<A> affine = {row.affine.base, row.affine.q * piece.to_p};
  int swept = 0, last = 0;
  for (int t = 0; t < terms.count(); ++t)
    if (row.sweep[t]) {
      ++swept;
      last = t;
    }
  if (swept == 0) {
    affine_along(piece, affine, out.data, out.past_cache);
  } else if (swept == 1) {
    terms[last].gradient(terms[last].functor, piece, affine, row.G[last], out.data, out.past_cache);
  } else {
    affine_along(piece, affine, numbers, false);
    for (int t = 0; t < terms.count(); ++t)
      if (row.sweep[t])
        terms[t].add_slopes(terms[t].functor, piece, row.G[t], numbers);
    narrow_all(numbers, piece.n, out.data, out.past_cache);
  }
  if (row.holes)
    mend_holes(piece.z, piece.n, out.data);
  if (piece.y >= 0)
    out.data[piece.y] = narrow<T>(row.gy);
  out.close(piece.n);
}

// Before a gradient that may overwrite the logits, which say where the holes are.
template <class T> void keep_holes(bool holes, Piece<T>& piece, T* buffer) {
  if (holes && piece.z && piece.z != buffer)
    piece.z = static_cast<T*>(memcpy(buffer, piece.z, piece.n * sizeof(T)));
}

// ---- one row -----------------------------------------------------------------------------------

// What is known of a row, and what is done to it, in this order: each piece measured, which also
// makes its e; the row normalised; each piece summed, for terms with a dense sum; the loss heads
// run; each piece written. Only the first reads far memory.
template <class T> class LongRow {
public:
  using A = Accumulator<T>;
  LongRow(const RowLossArgs& args, const Terms<T>& terms, const Pieces<T>& pieces, Workspace& space)
      : args_(args), terms_(terms), pieces_(pieces), found_(space.take<Partials<A>>(pieces.count)),
        best_(space.take<int>(pieces.count)),
        sums_(space.take<A>(pieces.count * terms.count() * 2)), kept_e_(pieces.take_e(space)),
        lines_(space.take<Line<A>>(terms.count())) {
    grad_.G = space.take<A>(terms.count());
    grad_.sweep = space.take<bool>(terms.count());
  }

  void open(int64_t n) {
    n_ = n;
    label_ = label_of(args_, n);
    skipped_ = !label_.counted && !reads_ignored_rows(args_);
  }

  void measure(int64_t piece, Buffers<T>& buffers) {
    if (!skipped_)
      found_[piece] = pieces_.measure(args_.logits, n_, piece, label_.y, buffers.z,
                                      e_of(piece, buffers), args_.argmax ? best_ + piece : nullptr);
  }

  void normalise() {
    if (skipped_)
      return;
    const Merged<A> all = merged(found_, pieces_.count);
    // NaN, which spreads over the row, for a label that is not a class.
    softmax_ = softmax_of(all.m(), all.mass, pieces_.target_logit(args_.logits, n_, label_, NAN));
    total_ = total_about(softmax_.m, found_, pieces_.count);
    count_ = all.count;
    grad_.holes = all.min == A(-INFINITY);
    const A lowest_l = (all.min - softmax_.m) - softmax_.log_s;
    const A highest_l = (all.max - softmax_.m) - softmax_.log_s;
    for (int t = 0; t < terms_.count(); ++t) {
      lines_[t] = line_of(terms_[t], lowest_l, highest_l);
      grad_.sweep[t] = !lines_[t].holds;
    }
  }

  void sum(int64_t piece, Buffers<T>& buffers) {
    Piece<T> view = {};
    for (int t = 0; t < terms_.count() && !skipped_; ++t) {
      if (!grad_.sweep[t])
        continue;
      if (!view.e)
        view = view_of(piece, buffers, true);
      terms_[t].sums(terms_[t].functor, view, sums_ + (piece * terms_.count() + t) * 2);
    }
  }

  void run_heads() {
    const int T_ = terms_.count(), width = num_saved + T_;
    A* const saved = args_.saved ? static_cast<A*>(args_.saved) + n_ * width : nullptr;
    if (skipped_) {
      put(args_.row_losses, n_, A(0));
      for (int i = 0; saved && i < width; ++i)
        saved[i] = 0;
      put(args_.p_y, n_, A(0));
      for (int t = 0; t < T_; ++t) {
        put(args_.term_losses, n_ * T_ + t, A(0));
        put(args_.denominators, n_ * T_ + t, A(0));
      }
      for (int i = 0; i < 2 * T_; ++i)
        put(args_.term_slopes, n_ * 2 * T_ + i, A(0));
      return;
    }
    const Softmax<A>& s = softmax_;
    const A lse = s.m + s.log_s, scale = args_.grad.data ? scale_of<A>(args_, n_) : A(1);
    A base = 0;
    const Slopes<V<A>> slopes = run_loss_heads(
        terms_,
        {fill(s.l_y), fill(s.p_y), fill(s.rest), fill(lse), fill(s.log_ratio), V<A>{},
         fill(count_)},
        [&](int t) { return fill(sum_of(t, 0)); }, [&](int t) { return fill(sum_of(t, 1)); },
        [&](int t, V<A> G) {
          if (saved)
            saved[num_saved + t] = G[0];
          grad_.G[t] = G[0] * scale;
          if (!grad_.sweep[t])
            base += grad_.G[t] * lines_[t].slope;
        },
        [&](int t, const Head<V<A>>& head, const Slopes<V<A>>& alone) {
          put(args_.term_losses, n_ * T_ + t, label_.counted ? head.loss[0] : A(0));
          put(args_.denominators, n_ * T_ + t, label_.counted ? head.denominator[0] : A(0));
          put(args_.term_slopes, 2 * (n_ * T_ + t), label_.counted ? alone.gy[0] : A(0));
          put(args_.term_slopes, 2 * (n_ * T_ + t) + 1, label_.counted ? alone.q[0] : A(0));
        });
    grad_.affine = {base, slopes.q[0] * scale};
    grad_.gy = slopes.gy[0] * scale;
    put(args_.row_losses, n_, label_.counted ? slopes.loss[0] : A(0));
    if (saved) {
      saved[0] = s.m;
      saved[1] = s.log_s;
      saved[2] = slopes.gy[0];
      saved[3] = slopes.q[0];
    }
    put(args_.lse, n_, lse);
    put(args_.p_y, n_, label_.counted ? s.p_y : A(0));
    if (args_.argmax)
      args_.argmax[n_] = best_class();
  }

  void write(int64_t piece, Buffers<T>& buffers) {
    const bool probs = args_.probs.data, grad = args_.grad.data && label_.counted;
    if (probs || grad) {
      const Piece<T> view = view_of(piece, buffers, grad && reads_logits());
      if (probs) {
        const Outlet<T> out = outlet(args_.probs, piece, buffers);
        affine_along(view, {A(0), -view.to_p}, out.data, out.past_cache);
        if (view.y >= 0)
          out.data[view.y] = narrow<T>(softmax_.p_y);
        out.close(view.n);
      }
      if (grad)
        write_gradient(terms_, grad_, view, buffers.numbers, outlet(args_.grad, piece, buffers));
    }
    if (args_.grad.data && !label_.counted)
      pieces_.zero_out(args_.grad, n_, piece);
  }

private:
  Outlet<T> outlet(const Rows& rows, int64_t piece, Buffers<T>& buffers) const {
    return pieces_.out(rows, n_, piece, buffers.out, args_.past_cache);
  }
  A* e_of(int64_t piece, Buffers<T>& buffers) const {
    return pieces_.e_of(kept_e_, buffers.e, piece);
  }

  // A piece for another sweep: its e made again if it was not kept.
  Piece<T> view_of(int64_t piece, Buffers<T>& buffers, bool with_logits) const {
    Partials<A> s = found_[piece];
    const A m = softmax_.m, log_s = softmax_.log_s;
    A* const e = e_of(piece, buffers);
    Piece<T> view = {nullptr, e,     pieces_.size(piece),        pieces_.place(label_.y, piece),
                     m,       log_s, exp_of((s.max - m) - log_s)};
    if (with_logits || !kept_e_)
      view.z = pieces_.in(args_.logits, n_, piece, buffers.z);
    if (!kept_e_)
      exponentials<T>(view.z, view.n, view.y, e, nullptr, &s);
    keep_holes(grad_.holes, view, buffers.z);
    return view;
  }

  static Line<A> line_of(const Term<T>& term, A lowest_l, A highest_l) {
    if (term.sum == Sum::Dense)
      return term.line(term.functor, lowest_l, highest_l);
    return {true, A(0), A(term.sum == Sum::Affine)};
  }
  // The sum of phi (which = 0) or of its slope (1) over the others.
  A sum_of(int t, int which) const {
    if (grad_.sweep[t]) {
      double sum = 0;
      for (int64_t c = 0; c < pieces_.count; ++c)
        sum += sums_[(c * terms_.count() + t) * 2 + which];
      return A(sum);
    }
    const Line<A>& line = lines_[t];
    if (which == 1 || line.slope == 0)
      return line.slope * count_;
    return line.intercept * count_ + line.slope * (total_ - count_ * softmax_.log_s);
  }

  bool reads_logits() const {
    bool reads = grad_.holes;
    for (int t = 0; t < terms_.count(); ++t)
      reads |= grad_.sweep[t] && terms_[t].slope_reads_l;
    return reads;
  }
  int64_t best_class() const {
    const Best<A> best = best_of(found_, best_, pieces_.count);
    const A z_y = pieces_.target_logit(args_.logits, n_, label_, NAN);
    return z_y > best.z || (z_y == best.z && label_.y < best.place) ? label_.y : best.place;
  }

  const RowLossArgs& args_;
  const Terms<T>& terms_;
  const Pieces<T>& pieces_;

  Partials<A>* found_; // of each piece
  int* best_;          // of each piece, the place of its maximum
  A* sums_;            // (pieces, terms, 2): of phi and of its slope
  A* kept_e_;          // (K,) or null
  Line<A>* lines_;     // (terms,): of a term that is not swept, what its phi is on this row

  int64_t n_;
  Label label_;
  bool skipped_;
  Softmax<A> softmax_;
  A total_, count_; // sum of z - m over the others, and their number
  RowGradient<A> grad_;
};

} // namespace anl::cpu
