// What is done to one row, piece by piece: measured, which also makes its e; normalised; summed,
// for terms with a dense sum; written. Only the first reads far memory.
#pragma once

#include "row_pieces.h"

namespace anl::cpu {

// Up to here a row's e is kept from the first sweep for the later ones, 16 MiB of floats for a
// thread; that of a longer row is computed again, which takes no memory. (128256 and 256000
// classes: kept, even where it leaves the second-level cache, 0.6 times the time of computing it
// again.)
constexpr int64_t kept_classes = 1 << 22;

// What is known of a row; it grows from sweep to sweep.
template <class A> struct Book {
  Partials<A>* pieces;
  A* dense;       // (pieces, terms, 2): sums of phi and of its slope
  A* kept_e;      // (K,) or null
  int* best;      // (pieces,)
  A* G;           // (terms,): scaled slopes in the sums
  bool* sweep;    // (terms,): whether the term's phi is run over this row
  Line<A>* lines; // (terms,): of a term that is not swept, what its phi is on this row

  Label label;
  Softmax<A> softmax;
  A total, count; // sum of z - m over the others, and their number
  A lowest_l, highest_l;
  bool holes;    // some class is not there
  A base, q, gy; // scaled gradient: gy at the target, else base + sum_t G_t phi_t'(l) - q p

  static int64_t bytes(int64_t pieces, int terms, int64_t kept) {
    return aligned(pieces * sizeof(Partials<A>)) + aligned(pieces * terms * 2 * sizeof(A)) +
           aligned(kept * sizeof(A)) + aligned(pieces * sizeof(int)) + aligned(terms * sizeof(A)) +
           aligned(terms * sizeof(bool)) + aligned(terms * sizeof(Line<A>));
  }
  void take(Workspace& space, int64_t num_pieces, int terms, int64_t kept) {
    pieces = space.take<Partials<A>>(num_pieces);
    dense = space.take<A>(num_pieces * terms * 2);
    kept_e = kept ? space.take<A>(kept) : nullptr;
    best = space.take<int>(num_pieces);
    G = space.take<A>(terms);
    sweep = space.take<bool>(terms);
    lines = space.take<Line<A>>(terms);
  }
};

template <class T> class RowSweeps {
public:
  using A = typename AccumulatorOf<T>::A;
  RowSweeps(const RowLossArgs& args, const Terms<T>& terms)
      : args_(args), terms_(terms), read_(args) {}

  const Cut<A>& cut() const { return read_.cut; }
  int64_t book_bytes() const { return Book<A>::bytes(cut().count(), terms_.count(), kept()); }
  void take(Book<A>& book, Workspace& space) const {
    book.take(space, cut().count(), terms_.count(), kept());
  }
  void open(Book<A>& book, int64_t n) const { book.label = read_.label(n); }

  // An ignored row of which nothing is asked but zeros is not read.
  bool skips(const Book<A>& book) const {
    return !book.label.counted && !args_.lse && !args_.probs.data;
  }
  void write_zeros(int64_t n) const {
    put(args_.row_losses, n, A(0));
    for (int i = 0; args_.saved && i < num_saved + terms_.count(); ++i)
      put(args_.saved, n * (num_saved + terms_.count()) + i, A(0));
    if (args_.grad.data)
      zero_out(read_.row(args_.grad, n), args_.grad.cls, args_.shape.K);
  }

  void measure_piece(Book<A>& book, Buffers<T>& buffers, int64_t n, int64_t piece) const {
    book.pieces[piece] = read_.measure(n, piece, book.label, buffers.z, e_of(book, buffers, piece),
                                       args_.argmax ? book.best + piece : nullptr);
  }

  void normalise_row(Book<A>& book, int64_t n) const {
    const Merged<A> all = merged(book.pieces, cut().count());
    // NaN, which spreads over the row, for a label that is not a class.
    book.softmax = softmax_of(all.m(), all.mass, read_.target_logit(book.label, n, A(NAN)));
    book.total = total_about(book.softmax.m, book.pieces, cut().count());
    book.count = all.count;
    book.holes = all.min == A(-INFINITY);
    book.lowest_l = (all.min - book.softmax.m) - book.softmax.log_s;
    book.highest_l = (all.max - book.softmax.m) - book.softmax.log_s;
    for (int t = 0; t < terms_.count(); ++t) {
      book.lines[t] = line(book, t);
      book.sweep[t] = !book.lines[t].holds;
    }
  }

  void sum_piece(Book<A>& book, Buffers<T>& buffers, int64_t n, int64_t piece) const {
    Piece<T> view = {};
    for (int t = 0; t < terms_.count(); ++t) {
      if (!book.sweep[t])
        continue;
      if (!view.e)
        view = view_of(book, buffers, n, piece, true);
      terms_[t].table->sums(terms_[t].functor, view, book.dense + (piece * terms_.count() + t) * 2);
    }
  }

  void run_heads_of_row(Book<A>& book, int64_t n) const {
    const Softmax<A>& s = book.softmax;
    const int T_ = terms_.count();
    const A lse = s.m + s.log_s, scale = args_.grad.data ? read_.scale(n) : A(1);
    A base = 0;
    auto value = [&](int t, int which) -> V<A> { return fill(sum_of(book, t, which)); };
    const Slopes<A> slopes = run_heads(
        terms_, {fill(s.l_y), fill(s.p_y), fill(s.rest), fill(lse), V<A>{}, fill(book.count)},
        [&](int t) { return value(t, 0); }, [&](int t) { return value(t, 1); },
        [&](int t, V<A> G) {
          if (args_.saved)
            put(args_.saved, n * (num_saved + T_) + num_saved + t, G[0]);
          book.G[t] = G[0] * scale;
          if (!book.sweep[t])
            base += book.G[t] * book.lines[t].slope;
        },
        [&](int t, V<A> loss) {
          if (args_.term_losses)
            put(args_.term_losses, n * T_ + t, book.label.counted ? loss[0] : A(0));
        });
    book.base = base;
    book.q = slopes.q[0] * scale;
    book.gy = slopes.gy[0] * scale;
    put(args_.row_losses, n, book.label.counted ? slopes.loss[0] : A(0));
    if (args_.saved) {
      const A saved[num_saved] = {s.m, s.log_s, slopes.gy[0], slopes.q[0]};
      for (int i = 0; i < num_saved; ++i)
        put(args_.saved, n * (num_saved + T_) + i, saved[i]);
    }
    put(args_.lse, n, lse);
    put(args_.p_y, n, book.label.counted ? s.p_y : A(0));
    if (args_.argmax)
      args_.argmax[n] = best_class(book, n);
  }

  void write_piece(Book<A>& book, Buffers<T>& buffers, int64_t n, int64_t piece) const {
    const bool grad = args_.grad.data, probs = args_.probs.data;
    if (!grad && !probs)
      return;
    const Piece<T> view = view_of(book, buffers, n, piece, grad && reads_logits(book));
    if (probs) {
      const Outlet<T> out = outlet(args_.probs, buffers, n, piece);
      affine_along(view, {A(0), -view.to_p}, out.data, out.past_cache);
      if (view.y >= 0)
        out.data[view.y] = narrow<T>(book.softmax.p_y);
      out.close(view.n);
    }
    if (grad && book.label.counted) {
      const RowGradient<A> row = {{book.base, book.q}, book.gy, book.G, book.sweep, book.holes};
      write_gradient(terms_, row, view, buffers.numbers, outlet(args_.grad, buffers, n, piece));
    } else if (grad) {
      zero_out(read_.at(args_.grad, n, piece), args_.grad.cls, view.n);
    }
  }

private:
  int64_t kept() const {
    return args_.shape.K <= kept_classes ? cut().count() * piece_size<A> + block<A> : 0;
  }
  Outlet<T> outlet(const Rows& rows, Buffers<T>& buffers, int64_t n, int64_t piece) const {
    return {read_.at(rows, n, piece), rows.cls, buffers.out, args_.past_cache};
  }
  A* e_of(const Book<A>& book, Buffers<T>& buffers, int64_t piece) const {
    return book.kept_e ? book.kept_e + cut().start(piece) : buffers.e;
  }

  // A piece for another sweep: its e made again if it was not kept.
  Piece<T> view_of(const Book<A>& book, Buffers<T>& buffers, int64_t n, int64_t piece,
                   bool with_logits) const {
    Partials<A> s = book.pieces[piece];
    const int size = cut().size(piece), y = cut().place(book.label.y, piece);
    const T* z = nullptr;
    A* e = e_of(book, buffers, piece);
    if (with_logits || !book.kept_e)
      z = read_.logits(n, piece, buffers.z);
    if (!book.kept_e)
      exponentials<T>(z, size, y, e, nullptr, &s);
    if (book.holes && z && z != buffers.z) // the gradient may overwrite what says where they are
      z = static_cast<T*>(memcpy(buffers.z, z, size * sizeof(T)));
    const A m = book.softmax.m, log_s = book.softmax.log_s;
    return {z, e, size, y, m, log_s, exp_of((s.max - m) - log_s)};
  }

  Line<A> line(const Book<A>& book, int t) const {
    switch (terms_[t].table->sum) {
    case Sum::None:
      return {true, A(0), A(0)};
    case Sum::Affine:
      return {true, A(0), A(1)};
    default:
      return terms_[t].table->line(terms_[t].functor, book.lowest_l, book.highest_l);
    }
  }
  // The sum of phi (which = 0) or of its slope (1) over the others.
  A sum_of(const Book<A>& book, int t, int which) const {
    if (book.sweep[t]) {
      double sum = 0;
      for (int64_t c = 0; c < cut().count(); ++c)
        sum += book.dense[(c * terms_.count() + t) * 2 + which];
      return A(sum);
    }
    const Line<A>& line = book.lines[t];
    if (which == 1 || line.slope == 0)
      return line.slope * book.count;
    return line.intercept * book.count +
           line.slope * (book.total - book.count * book.softmax.log_s);
  }

  bool reads_logits(const Book<A>& book) const {
    bool reads = book.holes;
    for (int t = 0; t < terms_.count(); ++t)
      reads |= book.sweep[t] && terms_[t].table->slope_reads_l;
    return reads;
  }
  int64_t best_class(const Book<A>& book, int64_t n) const {
    const Best<A> best = best_of(book.pieces, book.best, cut());
    const A z_y = read_.target_logit(book.label, n, A(NAN));
    return z_y > best.z || (z_y == best.z && book.label.y < best.place) ? book.label.y : best.place;
  }

  const RowLossArgs& args_;
  const Terms<T>& terms_;
  const PieceReader<T> read_;
};

} // namespace anl::cpu
