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
  // What is in memory after a piece, which the next sweep over one may want: null if unknown.
  const T* after(const Rows& rows, const T* z) const {
    return rows.cls == 1 ? z + piece_size<A> : nullptr;
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
    const Partials<A> s = anl::cpu::measure(z, n_here, y, e, after(logits, z));
    if (best)
      *best = first_equal(z, n_here, y, s.max);
    return s;
  }

  // The e of a piece whose partials are known, where it was not kept; returns the piece's logits.
  const T* measure_again(const Rows& logits, int64_t n, int64_t piece, int64_t label, T* buffer,
                         A* e, Partials<A> found) const {
    const T* z = in(logits, n, piece, buffer);
    exponentials(z, size(piece), place(label, piece), e, after(logits, z), &found);
    return z;
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
    mass += double(pieces[c].mass) * (num_pieces == 1 ? A(1) : exp_of(pieces[c].max - top));
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

// ---- rows --------------------------------------------------------------------------------------

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
  bool skipped() const { return skipped_; }

  void measure(int64_t piece, Buffers<T>& buffers) {
    if (!skipped_)
      found_[piece] = pieces_.measure(args_.logits, n_, piece, label_.y, buffers.z,
                                      e_of(piece, buffers), args_.argmax ? best_ + piece : nullptr);
  }

  // What its softmax is made of. NaN, which spreads over the row, for a label that is not a class.
  void merge(A& m, A& mass, A& z_y) {
    all_ = merged(found_, pieces_.count);
    m = all_.m();
    mass = all_.mass;
    z_y = pieces_.target_logit(args_.logits, n_, label_, NAN);
  }
  void normalise(const Softmax<A>& softmax) {
    softmax_ = softmax;
    total_ = total_about(softmax_.m, found_, pieces_.count);
    grad_.holes = all_.min == A(-INFINITY);
    grad_.affine.base = 0;
    const A lowest_l = (all_.min - softmax_.m) - softmax_.log_s;
    const A highest_l = (all_.max - softmax_.m) - softmax_.log_s;
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
  A count() const { return all_.count; }
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
      return line.slope * count();
    return line.intercept * count() + line.slope * (total_ - count() * softmax_.log_s);
  }

  // What the loss heads gave: a term's slope, its other numbers, those of all terms together.
  void take_slope(int t, A G) {
    if (args_.saved)
      saved()[num_saved + t] = G;
    grad_.G[t] = G * scale();
    if (!grad_.sweep[t])
      grad_.affine.base += grad_.G[t] * lines_[t].slope;
  }
  void put_term(int t, A loss, A denominator, A gy, A q) const {
    const int64_t at = n_ * terms_.count() + t;
    put(args_.term_losses, at, label_.counted ? loss : A(0));
    put(args_.denominators, at, label_.counted ? denominator : A(0));
    put(args_.term_slopes, 2 * at, label_.counted ? gy : A(0));
    put(args_.term_slopes, 2 * at + 1, label_.counted ? q : A(0));
  }
  void take(A loss, A gy, A q) {
    grad_.affine.q = q * scale();
    grad_.gy = gy * scale();
    put(args_.row_losses, n_, label_.counted ? loss : A(0));
    if (args_.saved) {
      A* const to = saved();
      to[0] = softmax_.m;
      to[1] = softmax_.log_s;
      to[2] = gy;
      to[3] = q;
    }
    put(args_.lse, n_, softmax_.m + softmax_.log_s);
    put(args_.p_y, n_, label_.counted ? softmax_.p_y : A(0));
    if (args_.argmax)
      args_.argmax[n_] = best_class();
  }
  // All of that, of a skipped row.
  void put_zeros() const {
    put(args_.row_losses, n_, A(0));
    for (int i = 0; args_.saved && i < num_saved + terms_.count(); ++i)
      saved()[i] = 0;
    put(args_.p_y, n_, A(0));
    for (int t = 0; t < terms_.count(); ++t)
      put_term(t, 0, 0, 0, 0);
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
    const Partials<A>& s = found_[piece];
    const A m = softmax_.m, log_s = softmax_.log_s;
    A* const e = e_of(piece, buffers);
    Piece<T> view = {nullptr, e,     pieces_.size(piece),        pieces_.place(label_.y, piece),
                     m,       log_s, exp_of((s.max - m) - log_s)};
    if (!kept_e_)
      view.z = pieces_.measure_again(args_.logits, n_, piece, label_.y, buffers.z, e, s);
    else if (with_logits)
      view.z = pieces_.in(args_.logits, n_, piece, buffers.z);
    keep_holes(grad_.holes, view, buffers.z);
    return view;
  }

  A scale() const { return args_.grad.data ? scale_of<A>(args_, n_) : A(1); }
  A* saved() const { return static_cast<A*>(args_.saved) + n_ * (num_saved + terms_.count()); }
  static Line<A> line_of(const Term<T>& term, A lowest_l, A highest_l) {
    if (term.sum == Sum::Dense)
      return term.line(term.functor, lowest_l, highest_l);
    return {true, A(0), A(term.sum == Sum::Affine)};
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
  Merged<A> all_;
  Softmax<A> softmax_;
  A total_; // sum of z - m over the others
  RowGradient<A> grad_;
};

// Rows whose softmax and loss heads are computed side by side, a row in a lane: for one row they
// take as long as for all, and with short rows as long as a sweep.
template <class T> class LongRows {
public:
  using A = Accumulator<T>;
  // As many of so many rows as stay in the cache between sweeps, at least one.
  static int at_once(const Shape& shape, int64_t wanted) {
    const int64_t fit = (1 << 15) / shape.K, most = fit < lanes<A> ? fit : lanes<A>;
    return int(most < 1 ? 1 : most < wanted ? most : wanted);
  }
  LongRows(int most, const RowLossArgs& args, const Terms<T>& terms, const Pieces<T>& pieces,
           Workspace& space)
      : terms_(terms) {
    for (int i = 0; i < most; ++i)
      rows_.emplace_back(args, terms, pieces, space);
  }

  // The rows from n on.
  void open(int64_t n, int count) {
    count_ = count;
    for (int i = 0; i < count; ++i)
      rows_[i].open(n + i);
  }
  int count() const { return count_; }
  LongRow<T>& operator[](int i) { return rows_[i]; }

  void normalise() {
    A m[lanes<A>] = {}, mass[lanes<A>] = {}, z_y[lanes<A>] = {};
    for_rows([&](LongRow<T>& row, int i) { row.merge(m[i], mass[i], z_y[i]); });
    softmax_ = anl::normalise(load(m), load(mass), load(z_y));
    const Softmax<V<A>>& s = softmax_;
    const Lanes m_(s.m), log_s(s.log_s), l_y(s.l_y), p_y(s.p_y), rest(s.rest), ratio(s.log_ratio);
    for_rows([&](LongRow<T>& row, int i) {
      row.normalise({m_[i], log_s[i], l_y[i], p_y[i], rest[i], ratio[i]});
    });
  }

  void run_heads() {
    const Softmax<V<A>>& s = softmax_;
    auto sums = [&](int which) {
      return [&, which](int t) {
        return of_rows([&](const LongRow<T>& row) { return row.sum_of(t, which); });
      };
    };
    const Slopes<V<A>> slopes = run_loss_heads(
        terms_,
        {s.l_y, s.p_y, s.rest, s.m + s.log_s, s.log_ratio, V<A>{},
         of_rows([](const LongRow<T>& row) { return row.count(); })},
        sums(0), sums(1),
        [&](int t, V<A> G) {
          const Lanes G_(G);
          for_rows([&](LongRow<T>& row, int i) { row.take_slope(t, G_[i]); });
        },
        [&](int t, const Head<V<A>>& head, const Slopes<V<A>>& alone) {
          const Lanes loss(head.loss), denominator(head.denominator), gy(alone.gy), q(alone.q);
          for_rows([&](LongRow<T>& row, int i) {
            row.put_term(t, loss[i], denominator[i], gy[i], q[i]);
          });
        });
    const Lanes loss(slopes.loss), gy(slopes.gy), q(slopes.q);
    for_rows([&](LongRow<T>& row, int i) { row.take(loss[i], gy[i], q[i]); });
    for (int i = 0; i < count_; ++i)
      if (rows_[i].skipped())
        rows_[i].put_zeros();
  }

private:
  struct Lanes {
    A lane[lanes<A>];
    explicit Lanes(V<A> v) { store(lane, v); }
    A operator[](int i) const { return lane[i]; }
  };
  // f(row, its lane) for those that are not skipped.
  template <class F> void for_rows(F f) {
    for (int i = 0; i < count_; ++i)
      if (!rows_[i].skipped())
        f(rows_[i], i);
  }
  template <class F> V<A> of_rows(F f) {
    A numbers[lanes<A>] = {};
    for_rows([&](LongRow<T>& row, int i) { numbers[i] = f(row); });
    return load(numbers);
  }

  const Terms<T>& terms_;
  std::vector<LongRow<T>> rows_;
  int count_ = 0;
  Softmax<V<A>> softmax_;
};

} // namespace anl::cpu
