// The jobs of long rows, each in one thread or split over several.
#pragma once

#include "long_row.h"

namespace anl::cpu {

// Up to here rows are in work two at a time, or two groups; with longer ones, they would drive each
// other out of the cache.
constexpr int64_t paired_classes = 1 << 18;

template <class T> class RowLossJob : public Job {
public:
  explicit RowLossJob(const RowLossArgs& args) : args_(args), terms_(args), pieces_(args.shape) {}

  int64_t units(int) const override { return args_.shape.rows(); }
  int64_t elements_of_unit(int) const override { return args_.shape.K; }

  // Rows are written while the next ones are measured, piece by piece: the one is work for the
  // memory, the other for the arithmetic (1024 x 32000 float32: 0.9 times the time of one after the
  // other).
  void run(int, int64_t begin, int64_t end) override {
    Workspace& space = Workspace::of_thread();
    Buffers<T> buffers(space);
    const bool paired = args_.shape.K <= paired_classes;
    const int most = LongRows<T>::at_once(args_.shape, end - begin);
    std::vector<LongRows<T>> groups;
    for (int i = 0; i <= paired; ++i)
      groups.emplace_back(most, args_, terms_, pieces_, space);
    for (int64_t n = begin, g = 0; n < end; n += most, ++g) {
      LongRows<T>&rows = groups[g % groups.size()], &last = groups[(g + 1) % groups.size()];
      rows.open(n, int(end - n < most ? end - n : most));
      for (int i = 0; i < most; ++i)
        for (int64_t piece = 0; piece < pieces_.count; ++piece) {
          if (paired && i < last.count())
            last[i].write(piece, buffers);
          if (i < rows.count())
            rows[i].measure(piece, buffers);
        }
      rows.normalise();
      for_pieces(rows, [&](LongRow<T>& row, int64_t piece) { row.sum(piece, buffers); });
      rows.run_heads();
      if (!paired || n + most >= end)
        for_pieces(rows, [&](LongRow<T>& row, int64_t piece) { row.write(piece, buffers); });
    }
    finish_streaming();
  }

protected:
  template <class F> void for_pieces(LongRows<T>& rows, F f) const {
    for (int i = 0; i < rows.count(); ++i)
      for (int64_t piece = 0; piece < pieces_.count; ++piece)
        f(rows[i], piece);
  }

  const RowLossArgs args_;
  const Terms<T> terms_;
  const Pieces<T> pieces_;
};

// The same with the pieces of each row as units, for fewer rows than threads.
template <class T> class SplitRowLossJob : public RowLossJob<T> {
public:
  explicit SplitRowLossJob(const RowLossArgs& args) : RowLossJob<T>(args) {
    for (int64_t n = 0; n < args.shape.rows(); ++n)
      rows_.emplace_back(1, this->args_, this->terms_, pieces_, space_).open(n, 1);
  }

  enum Phase { Measure, Normalise, Sum, Heads, Write };
  int phases() const override { return 5; }
  int64_t units(int phase) const override { return int64_t(rows_.size()) * parts(phase); }
  int64_t elements_of_unit(int phase) const override {
    return parts(phase) == 1 ? pieces_.count : piece_size<Accumulator<T>>;
  }

  void run(int phase, int64_t begin, int64_t end) override {
    Buffers<T> buffers(Workspace::of_thread());
    for (int64_t unit = begin; unit < end; ++unit)
      run_unit(Phase(phase), rows_[unit / parts(phase)], unit % parts(phase), buffers);
    finish_streaming();
  }

private:
  using RowLossJob<T>::pieces_;

  int64_t parts(int phase) const {
    return phase == Normalise || phase == Heads ? 1 : pieces_.count;
  }
  static void run_unit(Phase phase, LongRows<T>& rows, int64_t piece, Buffers<T>& buffers) {
    switch (phase) {
    case Measure:
      return rows[0].measure(piece, buffers);
    case Normalise:
      return rows.normalise();
    case Sum:
      return rows[0].sum(piece, buffers);
    case Heads:
      return rows.run_heads();
    case Write:
      return rows[0].write(piece, buffers);
    }
  }

  Workspace space_;
  std::vector<LongRows<T>> rows_;
};

// The gradient from what a forward pass saved; units are pieces.
template <class T> class RowGradJob : public Job {
public:
  using A = Accumulator<T>;
  explicit RowGradJob(const RowGradArgs& args) : args_(args), terms_(args), pieces_(args.shape) {}

  int64_t units(int) const override { return args_.shape.rows() * pieces_.count; }
  int64_t elements_of_unit(int) const override { return pieces_.size(0); }

  void run(int, int64_t begin, int64_t end) override {
    Workspace& space = Workspace::of_thread();
    Buffers<T> buffers(space);
    RowGradient<A> row = {};
    row.G = space.take<A>(terms_.count());
    row.sweep = space.take<bool>(terms_.count());
    for (int t = 0; t < terms_.count(); ++t)
      row.sweep[t] = terms_[t].sum == Sum::Dense;
    for (int64_t unit = begin; unit < end; ++unit)
      write(row, unit / pieces_.count, unit % pieces_.count, buffers);
    finish_streaming();
  }

private:
  void write(RowGradient<A>& row, int64_t n, int64_t piece, Buffers<T>& buffers) const {
    const Label label = label_of(args_, n);
    if (!label.counted)
      return pieces_.zero_out(args_.grad, n, piece);
    const A* saved = static_cast<const A*>(args_.saved) + n * (num_saved + terms_.count());
    const A scale = scale_of<A>(args_, n);
    row.affine = {A(0), saved[3] * scale};
    row.gy = saved[2] * scale;
    for (int t = 0; t < terms_.count(); ++t) {
      row.G[t] = saved[num_saved + t] * scale;
      row.affine.base += terms_[t].sum == Sum::Affine ? row.G[t] : A(0);
    }
    Piece<T> view =
        pieces_.view(args_.logits, n, piece, label.y, saved[0], saved[1], buffers.z, buffers.e);
    row.holes = probabilities(view, buffers.e, pieces_.after(args_.logits, view.z));
    keep_holes(row.holes, view, buffers.z);
    write_gradient(terms_, row, view, buffers.numbers,
                   pieces_.out(args_.grad, n, piece, buffers.out, args_.past_cache));
  }

  const RowGradArgs args_;
  const Terms<T> terms_;
  const Pieces<T> pieces_;
};

} // namespace anl::cpu
