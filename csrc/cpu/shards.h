// Rows of which each shard has some classes: what a shard knows of them, its part of their sums,
// and the heads, once partials and sums are merged.
#pragma once

#include "lanes.h"
#include "rows.h"

namespace anl::cpu {

// Whether only zeros are asked of a row.
inline bool skips(const ShardArgs& args, bool counted) { return !counted && !args.aux; }

// The columns of partials: of the others, and the label's logit; of no class, as they are here.
template <class A> struct Columns {
  A m = -INFINITY, mass = 0, total = 0, count = 0, z_y = -INFINITY;
};

template <class A> Columns<A>* columns_of(const ShardArgs& args, int64_t n) {
  static_assert(sizeof(Columns<A>) == num_partials * sizeof(A));
  return static_cast<Columns<A>*>(args.partials) + n;
}

// ---- long rows ---------------------------------------------------------------------------------

// Two phases: pieces, then what those of a row are together.
template <class T> class ShardRows : public Job {
public:
  using A = typename AccumulatorOf<T>::A;
  explicit ShardRows(const ShardArgs& args)
      : args_(args), read_(args_), pieces_(read_.cut.count()) {}

  int phases() const override { return 2; }
  int64_t units(int phase) const override { return args_.shape.rows() * (phase ? 1 : pieces_); }
  int64_t elements_of_unit(int phase) const override { return phase ? pieces_ : read_.cut.size(0); }
  void run(int phase, int64_t begin, int64_t end) override {
    if (phase == 0)
      look(begin, end);
    else
      merge(begin, end);
  }

protected:
  virtual void look(int64_t begin, int64_t end) = 0;
  virtual void merge(int64_t begin, int64_t end) const = 0;

  const ShardArgs args_;
  const PieceReader<T> read_;
  const int64_t pieces_;
};

template <class T> class ShardPartialsRows : public ShardRows<T> {
  using Base = ShardRows<T>;
  using Base::args_, Base::read_, Base::pieces_;
  using typename Base::A;

public:
  explicit ShardPartialsRows(const ShardArgs& args)
      : Base(args), found_(new Partials<A>[Base::units(0)]),
        best_(args.argmax ? new int[Base::units(0)] : nullptr) {}

private:
  void look(int64_t begin, int64_t end) override {
    Workspace space(Memory::of_thread(), Buffers<T>::bytes());
    Buffers<T> buffers(space);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / pieces_;
      const Label label = read_.label(n);
      if (!skips(args_, label.counted))
        found_[unit] = read_.measure(n, unit % pieces_, label, buffers.z, buffers.e,
                                     best_ ? best_.get() + unit : nullptr);
    }
  }

  void merge(int64_t begin, int64_t end) const override {
    for (int64_t n = begin; n < end; ++n) {
      const Label label = read_.label(n);
      const Partials<A>* found = found_.get() + n * pieces_;
      Columns<A> columns;
      if (!skips(args_, label.counted)) {
        const Merged<A> all = merged(found, pieces_);
        columns = {all.m(), all.mass, total_about(all.max, found, pieces_), all.count,
                   read_.target_logit(label, n, A(-INFINITY))};
      }
      *columns_of<A>(args_, n) = columns;
      if (best_)
        args_.argmax[n] = best_of(found, best_.get() + n * pieces_, read_.cut).place;
    }
  }

  const std::unique_ptr<Partials<A>[]> found_; // of every piece
  const std::unique_ptr<int[]> best_;
};

template <class T> class ShardSumsRows : public ShardRows<T> {
  using Base = ShardRows<T>;
  using Base::args_, Base::read_, Base::pieces_;
  using typename Base::A;

public:
  explicit ShardSumsRows(const ShardArgs& args)
      : Base(args), terms_(args.terms, args.num_terms, nullptr), width_(2 * terms_.num_dense()),
        sums_(new A[Base::units(0) * width_]) {}

private:
  void look(int64_t begin, int64_t end) override {
    Workspace space(Memory::of_thread(), Buffers<T>::bytes());
    Buffers<T> buffers(space);
    Softmax<A> softmax;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / pieces_;
      const Label label = read_.label(n);
      if (skips(args_, label.counted))
        continue;
      if (unit == begin || unit % pieces_ == 0)
        softmax = softmax_of_row(n);
      A* e = terms_.num_dense() > 1 ? buffers.e : nullptr;
      const Piece<T> piece =
          read_.view(n, unit % pieces_, label, softmax.m, softmax.log_s, buffers.z, e);
      if (e)
        probabilities(piece, e);
      A* to = sums_.get() + unit * width_;
      for (const Term<T>& term : terms_)
        if (term.table->sum == Sum::Dense) {
          term.table->sums(term.functor, piece, to);
          to += 2;
        }
    }
  }

  Softmax<A> softmax_of_row(int64_t n) const {
    const Columns<A>& row = *columns_of<A>(args_, n);
    return softmax_of(row.m, row.mass, row.z_y);
  }

  void merge(int64_t begin, int64_t end) const override {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t made = skips(args_, read_.label(n).counted) ? 0 : pieces_;
      for (int i = 0; i < width_; ++i) {
        double sum = 0;
        for (int64_t c = 0; c < made; ++c)
          sum += sums_[(n * pieces_ + c) * width_ + i];
        static_cast<A*>(args_.sums)[n * width_ + i] = A(sum);
      }
    }
  }

  const Terms<T> terms_;
  const int width_;                 // numbers of a row
  const std::unique_ptr<A[]> sums_; // of every piece
};

// ---- tiles -------------------------------------------------------------------------------------

template <class T> class ShardPartialsTiles : public TileJob<T, ShardArgs> {
  using Base = TileJob<T, ShardArgs>;
  using Base::args_, Base::sweeps_, Base::tiles_, Base::for_classes;
  using typename Base::A;

public:
  using Base::Base;

private:
  void run_tile(const TilePlace& place, TileRows<A>& rows, TileArrays<A>& arrays) const override {
    sweeps_.open(place, rows, A(-INFINITY));
    for_classes([&](int64_t k) {
      sweeps_.bring(place, rows, arrays, k);
      sweeps_.measure(rows, arrays, k);
    });
    const int64_t first = tiles_.first_row(place);
    for (int j = 0; j < place.count; ++j) {
      Columns<A> columns;
      if (!skips(args_, rows.counted[j])) {
        const A m = rows.count[j] > 0 ? rows.m[j] : A(-INFINITY);
        columns = {m, rows.mass[j], rows.total[j], rows.count[j], rows.z_y[j]};
      }
      *columns_of<A>(args_, first + j) = columns;
      if (args_.argmax)
        args_.argmax[first + j] = rows.best[j];
    }
  }
};

// Tiles of rows that were merged.
template <class T> class MergedTiles : public TileJob<T, ShardArgs> {
  using Base = TileJob<T, ShardArgs>;

public:
  using Base::Base;
  using typename Base::A;

protected:
  using Base::args_, Base::terms_, Base::sweeps_, Base::tiles_, Base::P_;

  void open(const TilePlace& place, TileRows<A>& rows) const {
    sweeps_.open(place, rows, A(NAN));
    const Columns<A>* columns = columns_of<A>(args_, tiles_.first_row(place));
    for (int j = 0; j < place.count; ++j) {
      rows.m[j] = columns[j].m;
      rows.mass[j] = columns[j].mass;
      rows.total[j] = columns[j].total;
      rows.count[j] = columns[j].count;
      rows.z_y[j] = columns[j].z_y;
    }
    sweeps_.normalise_rows(rows, false);
  }

  // f(row, one of its sums in the tile, the same in the tensor)
  template <class F> void for_sums(const TilePlace& place, TileRows<A>& rows, F f) const {
    const int width = 2 * terms_.num_dense();
    A* sums = static_cast<A*>(args_.sums) + tiles_.first_row(place) * width;
    for (int t = 0; t < terms_.count(); ++t)
      if (terms_[t].table->sum == Sum::Dense)
        for (A* column : {rows.values + t * P_, rows.slopes + t * P_}) {
          for (int j = 0; j < place.count; ++j)
            f(j, column[j], sums[j * width]);
          ++sums;
        }
  }
};

template <class T> class ShardSumsTiles : public MergedTiles<T> {
  using Base = MergedTiles<T>;
  using Base::args_, Base::sweeps_;
  using typename Base::A;

public:
  using Base::Base;

private:
  void run_tile(const TilePlace& place, TileRows<A>& rows, TileArrays<A>& arrays) const override {
    this->open(place, rows);
    this->for_classes(
        [&](int64_t k) { sweeps_.add_sums(rows, sweeps_.brought(place, rows, arrays, k)); });
    this->for_sums(place, rows, [&](int j, A sum, A& result) {
      result = skips(args_, rows.counted[j]) ? A(0) : sum;
    });
  }
};

// Only heads are left; T is the type of partials, and its logits are not there.
template <class T> class ShardFinishTiles : public MergedTiles<T> {
  using Base = MergedTiles<T>;
  using typename Base::A;

public:
  using Base::Base;

private:
  void run_tile(const TilePlace& place, TileRows<A>& rows, TileArrays<A>&) const override {
    this->open(place, rows);
    this->for_sums(place, rows, [](int, A& sum, A merged) { sum = merged; });
    this->sweeps_.run_heads_of_rows(rows, place);
    this->sweeps_.put_results(rows, place);
  }
};

} // namespace anl::cpu
