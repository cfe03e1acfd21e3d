// Rows along the vector lanes: for long rows, each in one thread or split over several.
//
// A row is cut into pieces (sweeps.h). First every piece is measured, which also makes its e; when
// the row's softmax is known, the terms with a dense sum run over the pieces; when the heads have
// run, every piece's outputs are written. Only the first of the three reads far memory.
#pragma once

#include "../row.h"
#include "reader.h"
#include "terms_of_call.h"
#include "workspace.h"

namespace anl::cpu {

// Up to here a row's e is kept from the first sweep for the later ones (1 MiB of floats, about a
// second-level cache); that of a longer row is computed again, which takes no memory.
constexpr int64_t kept_classes = 1 << 18;

// What is known of a row; it grows from sweep to sweep.
template <class A> struct Book {
  Statistics<A>* pieces;
  A* dense;    // (pieces, terms, 2): sums of phi and of its slope
  A* kept_e;   // (K,) or null
  int* best;   // (pieces,)
  A* G;        // (terms,): scaled slopes in the sums
  bool* sweep; // (terms,): whether the term's phi is run over this row

  Label label;
  Softmax<A> softmax;
  A total, count; // sum of z - m over the others, and their number
  A lowest_l, highest_l;
  bool holes;    // some class is not there
  A base, q, gy; // scaled gradient: gy at the target, else base + sum_t G_t phi_t'(l) - q p

  static int64_t bytes(int64_t pieces, int terms, int64_t kept) {
    return aligned(pieces * sizeof(Statistics<A>)) + aligned(pieces * terms * 2 * sizeof(A)) +
           aligned(kept * sizeof(A)) + aligned(pieces * sizeof(int)) + aligned(terms * sizeof(A)) +
           aligned(terms * sizeof(bool));
  }
  void take(Workspace& space, int64_t num_pieces, int terms, int64_t kept) {
    pieces = space.take<Statistics<A>>(num_pieces);
    dense = space.take<A>(num_pieces * terms * 2);
    kept_e = kept ? space.take<A>(kept) : nullptr;
    best = space.take<int>(num_pieces);
    G = space.take<A>(terms);
    sweep = space.take<bool>(terms);
  }
};

// A piece's worth of numbers: logits, e, and what goes out.
template <class A> struct Buffers {
  static constexpr int64_t size = piece_size<A> + block<A>;
  A *z, *e, *out;
  explicit Buffers(Workspace& space)
      : z(space.take<A>(size)), e(space.take<A>(size)), out(space.take<A>(size)) {}
  static int64_t bytes() { return 3 * aligned(size * sizeof(A)); }
};

template <class A> A exp_of(A x) { return exp_nonpositive<A>(fill(x))[0]; }

template <class T> class RowSweeps {
public:
  using A = typename AccumulatorOf<T>::A;
  RowSweeps(const RowLossArgs& args, const Terms<A>& terms)
      : args_(args), terms_(terms), read_(args), cut_(args.shape.K) {}

  const Cut<A>& cut() const { return cut_; }
  int64_t book_bytes() const { return Book<A>::bytes(cut_.count(), terms_.count(), kept()); }
  void take(Book<A>& book, Workspace& space) const {
    book.take(space, cut_.count(), terms_.count(), kept());
  }
  void open(Book<A>& book, int64_t n) const { book.label = read_.label(n); }

  // An ignored row of which nothing is asked but zeros is not read.
  bool skips(const Book<A>& book) const {
    return !book.label.counted && !args_.lse && !args_.probs.data;
  }
  void write_zeros(int64_t n) const {
    put(args_.row_losses, n, A(0));
    for (int i = 0; args_.stats && i < num_stats + terms_.count(); ++i)
      put(args_.stats, n * (num_stats + terms_.count()) + i, A(0));
    if (args_.grad.data)
      zero_out(read_.row(args_.grad, n), args_.grad.cls, args_.shape.K);
  }

  void measure_piece(Book<A>& book, Buffers<A>& buffers, int64_t n, int64_t piece) const {
    const int size = cut_.size(piece), y = cut_.place(book.label.y, piece);
    const T* from = logits(n, piece);
    const A* z = bring_in(from, args_.logits.cls, size, buffers.z);
    book.pieces[piece] = measure(z, size, y, e_of(book, buffers, piece), from + piece_size<A>);
    if (args_.argmax)
      book.best[piece] = first_equal(z, size, y, book.pieces[piece].max);
  }

  void normalise_row(Book<A>& book, int64_t n) const {
    A top = lowest<A>, bottom = INFINITY;
    double count = 0, mass = 0, total = 0;
    for (int64_t c = 0; c < cut_.count(); ++c) {
      const Statistics<A>& s = book.pieces[c];
      top = s.max > top ? s.max : top;
      bottom = s.min < bottom ? s.min : bottom;
      count += s.count;
    }
    for (int64_t c = 0; c < cut_.count(); ++c)
      mass += double(book.pieces[c].mass) * exp_of(book.pieces[c].max - top);
    const Softmax<V<A>> softmax = normalise(fill(count > 0 ? top : A(-INFINITY)), fill(A(mass)),
                                            fill(read_.target_logit(book.label, n)));
    book.softmax = {softmax.m[0], softmax.log_s[0], softmax.l_y[0], softmax.p_y[0],
                    softmax.rest[0]};
    for (int64_t c = 0; c < cut_.count(); ++c) {
      const Statistics<A>& s = book.pieces[c];
      total += s.total + double(s.count) * (double(s.max) - book.softmax.m);
    }
    book.total = A(total);
    book.count = A(count);
    book.holes = bottom == A(-INFINITY);
    book.lowest_l = (bottom - book.softmax.m) - book.softmax.log_s;
    book.highest_l = (top - book.softmax.m) - book.softmax.log_s;
    for (int t = 0; t < terms_.count(); ++t)
      book.sweep[t] = terms_[t].table->sum == Sum::Dense && !line(book, t).holds;
  }

  void sum_piece(Book<A>& book, Buffers<A>& buffers, int64_t n, int64_t piece) const {
    Piece<A> view = {nullptr, nullptr, 0, 0, 0, 0, 0};
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
          if (args_.stats)
            put(args_.stats, n * (num_stats + T_) + num_stats + t, G[0]);
          book.G[t] = G[0] * scale;
          if (!book.sweep[t])
            base += book.G[t] * constant_slope(book, t);
        },
        [&](int t, V<A> loss) {
          if (args_.term_losses)
            put(args_.term_losses, n * T_ + t, book.label.counted ? loss[0] : A(0));
        });
    book.base = base;
    book.q = slopes.q[0] * scale;
    book.gy = slopes.gy[0] * scale;
    put(args_.row_losses, n, book.label.counted ? slopes.loss[0] : A(0));
    if (args_.stats) {
      const A stats[num_stats] = {s.m, s.log_s, slopes.gy[0], slopes.q[0]};
      for (int i = 0; i < num_stats; ++i)
        put(args_.stats, n * (num_stats + T_) + i, stats[i]);
    }
    put(args_.lse, n, lse);
    put(args_.p_y, n, book.label.counted ? s.p_y : A(0));
    if (args_.argmax)
      args_.argmax[n] = best_class(book, n);
  }

  void write_piece(Book<A>& book, Buffers<A>& buffers, int64_t n, int64_t piece) const {
    const int size = cut_.size(piece), y = cut_.place(book.label.y, piece);
    if (!args_.grad.data && !args_.probs.data)
      return;
    const bool zero = args_.grad.data && !book.label.counted;
    const Piece<A> view = view_of(book, buffers, n, piece, args_.grad.data && reads_logits(book));
    if (args_.probs.data) {
      affine_along(view.e, size, A(0), -view.to_p, buffers.out);
      if (y >= 0)
        buffers.out[y] = book.softmax.p_y;
      T* to = at(args_.probs, n, piece);
      bring_out(buffers.out, to, args_.probs.cls, size, args_.stream);
    }
    if (zero) {
      zero_out(at(args_.grad, n, piece), args_.grad.cls, size);
    } else if (args_.grad.data) {
      gradient(book, view, buffers.out);
      if (y >= 0)
        buffers.out[y] = book.gy;
      T* to = at(args_.grad, n, piece);
      bring_out(buffers.out, to, args_.grad.cls, size, args_.stream);
    }
  }

private:
  int64_t kept() const {
    return args_.shape.K <= kept_classes ? cut_.count() * piece_size<A> + block<A> : 0;
  }
  T* at(const Rows& rows, int64_t n, int64_t piece) const {
    return read_.row(rows, n) + cut_.start(piece) * rows.cls;
  }
  const T* logits(int64_t n, int64_t piece) const { return at(args_.logits, n, piece); }
  A* e_of(const Book<A>& book, Buffers<A>& buffers, int64_t piece) const {
    return book.kept_e ? book.kept_e + cut_.start(piece) : buffers.e;
  }

  // A piece for another sweep: its e made again if it was not kept.
  Piece<A> view_of(const Book<A>& book, Buffers<A>& buffers, int64_t n, int64_t piece,
                   bool with_logits) const {
    Statistics<A> s = book.pieces[piece];
    const int size = cut_.size(piece), y = cut_.place(book.label.y, piece);
    const A *z = nullptr, *e = e_of(book, buffers, piece);
    if (with_logits || !book.kept_e)
      z = bring_in(logits(n, piece), args_.logits.cls, size, buffers.z);
    if (!book.kept_e)
      exponentials<A, 0>(z, size, y, buffers.e, nullptr, &s);
    const A m = book.softmax.m, log_s = book.softmax.log_s;
    return {z, e, size, y, m, log_s, exp_of((s.max - m) - log_s)};
  }

  Line<A> line(const Book<A>& book, int t) const {
    return terms_[t].table->line(terms_[t].functor, book.lowest_l, book.highest_l);
  }
  // Of a term that is not swept.
  A constant_slope(const Book<A>& book, int t) const {
    const Sum sum = terms_[t].table->sum;
    return sum == Sum::None ? A(0) : sum == Sum::Affine ? A(1) : line(book, t).slope;
  }
  // The sum of phi (which = 0) or of its slope (1) over the others.
  A sum_of(const Book<A>& book, int t, int which) const {
    if (book.sweep[t]) {
      double sum = 0;
      for (int64_t c = 0; c < cut_.count(); ++c)
        sum += book.dense[(c * terms_.count() + t) * 2 + which];
      return A(sum);
    }
    const A slope = constant_slope(book, t);
    if (slope == 0 || which == 1)
      return slope * book.count;
    const A intercept = terms_[t].table->sum == Sum::Affine ? A(0) : line(book, t).intercept;
    return intercept * book.count + slope * (book.total - book.count * book.softmax.log_s);
  }

  bool reads_logits(const Book<A>& book) const {
    bool reads = book.holes;
    for (int t = 0; t < terms_.count(); ++t)
      reads |= book.sweep[t] && terms_[t].table->slope_reads_l;
    return reads;
  }
  void gradient(const Book<A>& book, const Piece<A>& view, A* out) const {
    const A q = book.q * view.to_p;
    bool first = true;
    for (int t = 0; t < terms_.count(); ++t) {
      if (!book.sweep[t])
        continue;
      const FunctorTable<A>& table = *terms_[t].table;
      (first ? table.first_slopes : table.more_slopes)(terms_[t].functor, view, book.base, q,
                                                       book.G[t], out);
      first = false;
    }
    if (first)
      affine_along(view.e, view.n, book.base, q, out);
    if (book.holes)
      mend_holes(view.z, view.n, out);
  }

  int64_t best_class(const Book<A>& book, int64_t n) const {
    int64_t piece = 0;
    for (int64_t c = 1; c < cut_.count(); ++c)
      piece = book.pieces[c].max > book.pieces[piece].max ? c : piece;
    const int64_t best = cut_.start(piece) + book.best[piece];
    const A z_y = read_.target_logit(book.label, n), top = book.pieces[piece].max;
    return z_y > top || (z_y == top && book.label.y < best) ? book.label.y : best;
  }

  const RowLossArgs& args_;
  const Terms<A>& terms_;
  Reader<T> read_;
  Cut<A> cut_;
};

template <class T> class RowLossJob : public Job {
public:
  using A = typename AccumulatorOf<T>::A;
  explicit RowLossJob(const RowLossArgs& args)
      : args_(args), terms_(args.terms, args.num_terms, static_cast<const A*>(args.term_weights)),
        sweeps_(args_, terms_) {}

  int64_t units(int) const override { return args_.shape.rows(); }
  int64_t elements_of_unit(int) const override { return args_.shape.K; }

  // A row is written while the next one is measured, piece by piece: the one is work for the memory,
  // the other for the arithmetic.
  void run(int, int64_t begin, int64_t end) override {
    Workspace space(Memory::of_thread(), 2 * sweeps_.book_bytes() + Buffers<A>::bytes());
    Buffers<A> buffers(space);
    Book<A> books[2];
    sweeps_.take(books[0], space);
    sweeps_.take(books[1], space);
    for (int64_t n = begin; n <= end; ++n) {
      Book<A>&last = books[(n + 1) % 2], &next = books[n % 2];
      const bool writes = n > begin && !sweeps_.skips(last);
      if (n < end)
        sweeps_.open(next, n);
      const bool measures = n < end && !sweeps_.skips(next);
      for (int64_t piece = 0; piece < sweeps_.cut().count(); ++piece) {
        if (writes)
          sweeps_.write_piece(last, buffers, n - 1, piece);
        if (measures)
          sweeps_.measure_piece(next, buffers, n, piece);
      }
      if (measures)
        finish(next, buffers, n);
      else if (n < end)
        sweeps_.write_zeros(n);
    }
    finish_streaming();
  }

private:
  void finish(Book<A>& book, Buffers<A>& buffers, int64_t n) const {
    sweeps_.normalise_row(book, n);
    for (int64_t piece = 0; piece < sweeps_.cut().count(); ++piece)
      sweeps_.sum_piece(book, buffers, n, piece);
    sweeps_.run_heads_of_row(book, n);
  }

protected:
  const RowLossArgs args_;
  const Terms<A> terms_;
  const RowSweeps<T> sweeps_;
};

// The same with the pieces of each row as units, for fewer rows than threads.
template <class T> class SplitRowLossJob : public RowLossJob<T> {
public:
  using A = typename RowLossJob<T>::A;
  explicit SplitRowLossJob(const RowLossArgs& args)
      : RowLossJob<T>(args), books_(new Book<A>[args.shape.rows()]),
        memory_(new Memory[args.shape.rows()]) {
    for (int64_t n = 0; n < args.shape.rows(); ++n) {
      Workspace space(memory_[n], sweeps_.book_bytes());
      sweeps_.take(books_[n], space);
      sweeps_.open(books_[n], n);
    }
  }
  ~SplitRowLossJob() override {
    delete[] books_;
    delete[] memory_;
  }

  enum Phase { Measure, Normalise, Sum, Heads, Write };
  int phases() const override { return 5; }
  int64_t units(int phase) const override { return args_.shape.rows() * parts(phase); }
  int64_t elements_of_unit(int phase) const override {
    return parts(phase) == 1 ? sweeps_.cut().count() : piece_size<A>;
  }

  void run(int phase, int64_t begin, int64_t end) override {
    Workspace space(Memory::of_thread(), Buffers<A>::bytes());
    Buffers<A> buffers(space);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / parts(phase), piece = unit % parts(phase);
      if (!sweeps_.skips(books_[n]))
        run_unit(Phase(phase), books_[n], buffers, n, piece);
      else if (phase == Normalise)
        sweeps_.write_zeros(n);
    }
    finish_streaming();
  }

private:
  using RowLossJob<T>::args_;
  using RowLossJob<T>::sweeps_;

  int64_t parts(int phase) const {
    return phase == Normalise || phase == Heads ? 1 : sweeps_.cut().count();
  }
  void run_unit(Phase phase, Book<A>& book, Buffers<A>& buffers, int64_t n, int64_t piece) {
    switch (phase) {
    case Measure:
      return sweeps_.measure_piece(book, buffers, n, piece);
    case Normalise:
      return sweeps_.normalise_row(book, n);
    case Sum:
      return sweeps_.sum_piece(book, buffers, n, piece);
    case Heads:
      return sweeps_.run_heads_of_row(book, n);
    case Write:
      return sweeps_.write_piece(book, buffers, n, piece);
    }
  }

  Book<A>* books_;
  Memory* memory_;
};

// The gradient from a forward pass's statistics; units are pieces.
template <class T> class RowGradJob : public Job {
public:
  using A = typename AccumulatorOf<T>::A;
  explicit RowGradJob(const RowGradArgs& args)
      : args_(args), terms_(args.terms, args.num_terms, nullptr), read_(args_), cut_(args.shape.K) {
  }

  int64_t units(int) const override { return args_.shape.rows() * cut_.count(); }
  int64_t elements_of_unit(int) const override { return cut_.size(0); }

  void run(int, int64_t begin, int64_t end) override {
    Workspace space(Memory::of_thread(), Buffers<A>::bytes());
    Buffers<A> buffers(space);
    for (int64_t unit = begin; unit < end; ++unit)
      write_piece(buffers, unit / cut_.count(), unit % cut_.count());
    finish_streaming();
  }

private:
  void write_piece(Buffers<A>& buffers, int64_t n, int64_t piece) const {
    const int64_t first = cut_.start(piece), cls = args_.grad.cls;
    const int size = cut_.size(piece);
    T* to = read_.row(args_.grad, n) + first * cls;
    const Label label = read_.label(n);
    if (!label.counted)
      return zero_out(to, cls, size);
    const int y = cut_.place(label.y, piece), count = terms_.count();
    const A* stats = static_cast<const A*>(args_.stats) + n * (num_stats + count);
    const A m = stats[0], log_s = stats[1], scale = read_.scale(n);
    const T* from = read_.row(args_.logits, n) + first * args_.logits.cls;
    const A* z = bring_in(from, args_.logits.cls, size, buffers.z);
    const bool holes = probabilities(z, size, y, m, log_s, buffers.e);
    const Piece<A> view = {z, buffers.e, size, y, m, log_s, A(1)};
    A base = 0;
    for (int t = 0; t < count; ++t)
      if (terms_[t].table->sum == Sum::Affine)
        base += stats[num_stats + t] * scale;
    bool first_term = true;
    for (int t = 0; t < count; ++t) {
      const FunctorTable<A>& table = *terms_[t].table;
      if (table.sum != Sum::Dense)
        continue;
      (first_term ? table.first_slopes
                  : table.more_slopes)(terms_[t].functor, view, base, stats[3] * scale,
                                       stats[num_stats + t] * scale, buffers.out);
      first_term = false;
    }
    if (first_term)
      affine_along(view.e, size, base, stats[3] * scale, buffers.out);
    if (holes)
      mend_holes(z, size, buffers.out);
    if (y >= 0)
      buffers.out[y] = stats[2] * scale;
    bring_out(buffers.out, to, cls, size, args_.stream);
  }

  const RowGradArgs args_;
  const Terms<A> terms_;
  const Reader<T> read_;
  const Cut<A> cut_;
};

} // namespace anl::cpu
