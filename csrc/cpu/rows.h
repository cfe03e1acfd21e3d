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

#include <memory>

namespace anl::cpu {

// Up to here a row's e is kept from the first sweep for the later ones, 16 MiB of floats for a
// thread; that of a longer row is computed again, which takes no memory. (128256 and 256000
// classes: kept, even where it leaves the second-level cache, 0.6 times the time of computing it
// again.)
constexpr int64_t kept_classes = 1 << 22;

// Up to here two rows are in work at a time; with longer ones, they would drive each other out of
// the cache.
constexpr int64_t paired_classes = 1 << 18;

// What is known of a row; it grows from sweep to sweep.
template <class A> struct Book {
  Statistics<A>* pieces;
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
    return aligned(pieces * sizeof(Statistics<A>)) + aligned(pieces * terms * 2 * sizeof(A)) +
           aligned(kept * sizeof(A)) + aligned(pieces * sizeof(int)) + aligned(terms * sizeof(A)) +
           aligned(terms * sizeof(bool)) + aligned(terms * sizeof(Line<A>));
  }
  void take(Workspace& space, int64_t num_pieces, int terms, int64_t kept) {
    pieces = space.take<Statistics<A>>(num_pieces);
    dense = space.take<A>(num_pieces * terms * 2);
    kept_e = kept ? space.take<A>(kept) : nullptr;
    best = space.take<int>(num_pieces);
    G = space.take<A>(terms);
    sweep = space.take<bool>(terms);
    lines = space.take<Line<A>>(terms);
  }
};

// A piece's worth of what is not where it can be used: logits and outputs in storage, e, numbers.
template <class T> struct Buffers {
  using A = Accumulator<T>;
  static constexpr int64_t size = piece_size<A> + block<A>;
  T *z, *out;
  A *e, *numbers;
  explicit Buffers(Workspace& space)
      : z(space.take<T>(size)), out(space.take<T>(size)), e(space.take<A>(size)),
        numbers(space.take<A>(size)) {}
  static int64_t bytes() { return 2 * aligned(size * sizeof(T)) + 2 * aligned(size * sizeof(A)); }
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

// The scaled gradient of a row: gy at the target, else affine + sum_t G_t phi_t'(l) over the terms
// that are swept, and 0 at holes.
template <class A> struct RowGradient {
  Affine<A> affine; // its q is for p
  A gy;
  const A* G;
  const bool* sweep;
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
    terms[last].table->gradient(terms[last].functor, piece, affine, row.G[last], out.data,
                                out.past_cache);
  } else {
    affine_along(piece, affine, numbers, false);
    for (int t = 0; t < terms.count(); ++t)
      if (row.sweep[t])
        terms[t].table->add_slopes(terms[t].functor, piece, row.G[t], numbers);
    narrow_all(numbers, piece.n, out.data, out.past_cache);
  }
  if (row.holes)
    mend_holes(piece.z, piece.n, out.data);
  if (piece.y >= 0)
    out.data[piece.y] = narrow<T>(row.gy);
  out.close(piece.n);
}

template <class A> A exp_of(A x) { return exp_nonpositive<A>(fill(x))[0]; }

template <class T> class RowSweeps {
public:
  using A = typename AccumulatorOf<T>::A;
  RowSweeps(const RowLossArgs& args, const Terms<T>& terms)
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

  void measure_piece(Book<A>& book, Buffers<T>& buffers, int64_t n, int64_t piece) const {
    const int size = cut_.size(piece), y = cut_.place(book.label.y, piece);
    const T* from = at(args_.logits, n, piece);
    const T* z = gathered(from, args_.logits.cls, size, buffers.z);
    const T* next = args_.logits.cls == 1 ? from + piece_size<A> : nullptr;
    book.pieces[piece] = measure(z, size, y, e_of(book, buffers, piece), next);
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
          if (args_.stats)
            put(args_.stats, n * (num_stats + T_) + num_stats + t, G[0]);
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
      zero_out(at(args_.grad, n, piece), args_.grad.cls, view.n);
    }
  }

private:
  int64_t kept() const {
    return args_.shape.K <= kept_classes ? cut_.count() * piece_size<A> + block<A> : 0;
  }
  T* at(const Rows& rows, int64_t n, int64_t piece) const {
    return read_.row(rows, n) + cut_.start(piece) * rows.cls;
  }
  Outlet<T> outlet(const Rows& rows, Buffers<T>& buffers, int64_t n, int64_t piece) const {
    return {at(rows, n, piece), rows.cls, buffers.out, args_.stream};
  }
  A* e_of(const Book<A>& book, Buffers<T>& buffers, int64_t piece) const {
    return book.kept_e ? book.kept_e + cut_.start(piece) : buffers.e;
  }

  // A piece for another sweep: its e made again if it was not kept.
  Piece<T> view_of(const Book<A>& book, Buffers<T>& buffers, int64_t n, int64_t piece,
                   bool with_logits) const {
    Statistics<A> s = book.pieces[piece];
    const int size = cut_.size(piece), y = cut_.place(book.label.y, piece);
    const T* z = nullptr;
    A* e = e_of(book, buffers, piece);
    if (with_logits || !book.kept_e)
      z = gathered(at(args_.logits, n, piece), args_.logits.cls, size, buffers.z);
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
      for (int64_t c = 0; c < cut_.count(); ++c)
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
    int64_t piece = 0;
    for (int64_t c = 1; c < cut_.count(); ++c)
      piece = book.pieces[c].max > book.pieces[piece].max ? c : piece;
    const int64_t best = cut_.start(piece) + book.best[piece];
    const A z_y = read_.target_logit(book.label, n), top = book.pieces[piece].max;
    return z_y > top || (z_y == top && book.label.y < best) ? book.label.y : best;
  }

  const RowLossArgs& args_;
  const Terms<T>& terms_;
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

  // A row is written while the next one is measured, piece by piece: the one is work for the
  // memory, the other for the arithmetic (1024 x 32000 float32: 0.9 times the time of one after the
  // other).
  void run(int, int64_t begin, int64_t end) override {
    const bool paired = args_.shape.K <= paired_classes;
    Workspace space(Memory::of_thread(),
                    (paired ? 2 : 1) * sweeps_.book_bytes() + Buffers<T>::bytes());
    Buffers<T> buffers(space);
    Book<A> books[2];
    sweeps_.take(books[0], space);
    if (paired)
      sweeps_.take(books[1], space);
    for (int64_t n = begin; n < end; ++n) {
      Book<A>&book = books[paired ? n % 2 : 0], &last = books[(n + 1) % 2];
      sweeps_.open(book, n);
      for (int64_t piece = 0; piece < sweeps_.cut().count(); ++piece) {
        if (paired && n > begin)
          write(last, buffers, n - 1, piece);
        if (!sweeps_.skips(book))
          sweeps_.measure_piece(book, buffers, n, piece);
      }
      finish(book, buffers, n);
      if (!paired || n + 1 == end)
        for (int64_t piece = 0; piece < sweeps_.cut().count(); ++piece)
          write(book, buffers, n, piece);
    }
    finish_streaming();
  }

private:
  void write(Book<A>& book, Buffers<T>& buffers, int64_t n, int64_t piece) const {
    if (!sweeps_.skips(book))
      sweeps_.write_piece(book, buffers, n, piece);
  }
  void finish(Book<A>& book, Buffers<T>& buffers, int64_t n) const {
    if (sweeps_.skips(book))
      return sweeps_.write_zeros(n);
    sweeps_.normalise_row(book, n);
    for (int64_t piece = 0; piece < sweeps_.cut().count(); ++piece)
      sweeps_.sum_piece(book, buffers, n, piece);
    sweeps_.run_heads_of_row(book, n);
  }

protected:
  const RowLossArgs args_;
  const Terms<T> terms_;
  const RowSweeps<T> sweeps_;
};

// The same with the pieces of each row as units, for fewer rows than threads.
template <class T> class SplitRowLossJob : public RowLossJob<T> {
public:
  using A = typename RowLossJob<T>::A;
  explicit SplitRowLossJob(const RowLossArgs& args)
      : RowLossJob<T>(args), books_(std::make_unique<Book<A>[]>(args.shape.rows())),
        memory_(std::make_unique<Memory[]>(args.shape.rows())) {
    for (int64_t n = 0; n < args.shape.rows(); ++n) {
      Workspace space(memory_[n], sweeps_.book_bytes());
      sweeps_.take(books_[n], space);
      sweeps_.open(books_[n], n);
    }
  }

  enum Phase { Measure, Normalise, Sum, Heads, Write };
  int phases() const override { return 5; }
  int64_t units(int phase) const override { return args_.shape.rows() * parts(phase); }
  int64_t elements_of_unit(int phase) const override {
    return parts(phase) == 1 ? sweeps_.cut().count() : piece_size<A>;
  }

  void run(int phase, int64_t begin, int64_t end) override {
    Workspace space(Memory::of_thread(), Buffers<T>::bytes());
    Buffers<T> buffers(space);
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
  void run_unit(Phase phase, Book<A>& book, Buffers<T>& buffers, int64_t n, int64_t piece) {
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

  std::unique_ptr<Book<A>[]> books_;
  std::unique_ptr<Memory[]> memory_;
};

// The gradient from a forward pass's statistics; units are pieces.
template <class T> class RowGradJob : public Job {
public:
  using A = typename AccumulatorOf<T>::A;
  explicit RowGradJob(const RowGradArgs& args)
      : args_(args), terms_(args.terms, args.num_terms, nullptr), read_(args_), cut_(args.shape.K),
        sweep_(new bool[args.num_terms]) {
    for (int t = 0; t < terms_.count(); ++t)
      sweep_[t] = terms_[t].table->sum == Sum::Dense;
  }

  int64_t units(int) const override { return args_.shape.rows() * cut_.count(); }
  int64_t elements_of_unit(int) const override { return cut_.size(0); }

  void run(int, int64_t begin, int64_t end) override {
    Workspace space(Memory::of_thread(), Buffers<T>::bytes() + aligned(terms_.count() * sizeof(A)));
    Buffers<T> buffers(space);
    A* G = space.take<A>(terms_.count());
    for (int64_t unit = begin; unit < end; ++unit)
      write_piece(buffers, G, unit / cut_.count(), unit % cut_.count());
    finish_streaming();
  }

private:
  void write_piece(Buffers<T>& buffers, A* G, int64_t n, int64_t piece) const {
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
    const T* z = gathered(from, args_.logits.cls, size, buffers.z);
    RowGradient<A> row = {{A(0), stats[3] * scale}, stats[2] * scale, G, sweep_.get(), false};
    row.holes = probabilities(z, size, y, m, log_s, buffers.e);
    if (row.holes && z != buffers.z)
      z = static_cast<T*>(memcpy(buffers.z, z, size * sizeof(T)));
    for (int t = 0; t < count; ++t) {
      G[t] = stats[num_stats + t] * scale;
      row.affine.base += terms_[t].table->sum == Sum::Affine ? G[t] : A(0);
    }
    write_gradient(terms_, row, {z, buffers.e, size, y, m, log_s, A(1)}, buffers.numbers,
                   Outlet<T>(to, cls, buffers.out, args_.stream));
  }

  const RowGradArgs args_;
  const Terms<T> terms_;
  const Reader<T> read_;
  const Cut<A> cut_;
  const std::unique_ptr<bool[]> sweep_;
};

} // namespace anl::cpu
