// Rows along the vector lanes: for long rows, each in one thread or split over several.
#pragma once

#include "row_sweeps.h"

#include <memory>

namespace anl::cpu {

// Up to here two rows are in work at a time; with longer ones, they would drive each other out of
// the cache.
constexpr int64_t paired_classes = 1 << 18;

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

// The gradient from what a forward pass saved; units are pieces.
template <class T> class RowGradJob : public Job {
public:
  using A = typename AccumulatorOf<T>::A;
  explicit RowGradJob(const RowGradArgs& args)
      : args_(args), terms_(args.terms, args.num_terms, nullptr), read_(args_),
        sweep_(new bool[args.num_terms]) {
    for (int t = 0; t < terms_.count(); ++t)
      sweep_[t] = terms_[t].table->sum == Sum::Dense;
  }

  int64_t units(int) const override { return args_.shape.rows() * read_.cut.count(); }
  int64_t elements_of_unit(int) const override { return read_.cut.size(0); }

  void run(int, int64_t begin, int64_t end) override {
    Workspace space(Memory::of_thread(), Buffers<T>::bytes() + aligned(terms_.count() * sizeof(A)));
    Buffers<T> buffers(space);
    A* G = space.take<A>(terms_.count());
    for (int64_t unit = begin; unit < end; ++unit)
      write_piece(buffers, G, unit / read_.cut.count(), unit % read_.cut.count());
    finish_streaming();
  }

private:
  void write_piece(Buffers<T>& buffers, A* G, int64_t n, int64_t piece) const {
    const int64_t cls = args_.grad.cls;
    T* to = read_.at(args_.grad, n, piece);
    const Label label = read_.label(n);
    if (!label.counted)
      return zero_out(to, cls, read_.cut.size(piece));
    const int count = terms_.count();
    const A* saved = static_cast<const A*>(args_.saved) + n * (num_saved + count);
    const A scale = read_.scale(n);
    RowGradient<A> row = {{A(0), saved[3] * scale}, saved[2] * scale, G, sweep_.get(), false};
    Piece<T> view = read_.view(n, piece, label, saved[0], saved[1], buffers.z, buffers.e);
    row.holes = probabilities(view, buffers.e);
    if (row.holes && view.z != buffers.z) // the gradient may overwrite what says where they are
      view.z = static_cast<T*>(memcpy(buffers.z, view.z, view.n * sizeof(T)));
    for (int t = 0; t < count; ++t) {
      G[t] = saved[num_saved + t] * scale;
      row.affine.base += terms_[t].table->sum == Sum::Affine ? G[t] : A(0);
    }
    write_gradient(terms_, row, view, buffers.numbers,
                   Outlet<T>(to, cls, buffers.out, args_.past_cache));
  }

  const RowGradArgs args_;
  const Terms<T> terms_;
  const PieceReader<T> read_;
  const std::unique_ptr<bool[]> sweep_;
};

} // namespace anl::cpu
