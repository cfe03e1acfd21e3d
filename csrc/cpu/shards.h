// Rows of which each shard has some classes: what a shard knows of them, its part of their sums,
// and the loss heads, once partials and sums are merged.
#pragma once

#include "long_row.h"
#include "tile_jobs.h"

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
  using A = Accumulator<T>;
  explicit ShardRows(const ShardArgs& args) : args_(args), pieces_(args.shape) {}

  int phases() const override { return 2; }
  int64_t units(int phase) const override {
    return args_.shape.rows() * (phase ? 1 : pieces_.count);
  }
  int64_t elements_of_unit(int phase) const override {
    return phase ? pieces_.count : pieces_.size(0);
  }
  void run(int phase, int64_t begin, int64_t end) override {
    Buffers<T> buffers(Workspace::of_thread());
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = phase ? unit : unit / pieces_.count, piece = unit - n * pieces_.count;
      const Label label = label_of(args_, n);
      const bool skipped = skips(args_, label.counted);
      if (phase)
        merge(n, label, skipped);
      else if (!skipped)
        look(n, piece, label, buffers);
    }
  }

protected:
  virtual void look(int64_t n, int64_t piece, const Label&, Buffers<T>&) = 0;
  virtual void merge(int64_t n, const Label&, bool skipped) const = 0;

  const ShardArgs args_;
  const Pieces<T> pieces_;
};

template <class T> class ShardPartialsRows : public ShardRows<T> {
  using Base = ShardRows<T>;
  using Base::args_, Base::pieces_;
  using typename Base::A;

public:
  explicit ShardPartialsRows(const ShardArgs& args)
      : Base(args), found_(new Partials<A>[Base::units(0)]), best_(new int[Base::units(0)]) {}

private:
  void look(int64_t n, int64_t piece, const Label& label, Buffers<T>& buffers) override {
    const int64_t at = n * pieces_.count + piece;
    found_[at] = pieces_.measure(args_.logits, n, piece, label.y, buffers.z, buffers.e,
                                 args_.argmax ? best_.get() + at : nullptr);
  }

  void merge(int64_t n, const Label& label, bool skipped) const override {
    const Partials<A>* found = found_.get() + n * pieces_.count;
    Columns<A> columns;
    if (!skipped) {
      const Merged<A> all = merged(found, pieces_.count);
      columns = {all.m(), all.mass, total_about(all.max, found, pieces_.count), all.count,
                 pieces_.target_logit(args_.logits, n, label, -INFINITY)};
    }
    *columns_of<A>(args_, n) = columns;
    if (args_.argmax)
      args_.argmax[n] = best_of(found, best_.get() + n * pieces_.count, pieces_.count).place;
  }

  const std::unique_ptr<Partials<A>[]> found_; // of every piece
  const std::unique_ptr<int[]> best_;
};

template <class T> class ShardSumsRows : public ShardRows<T> {
  using Base = ShardRows<T>;
  using Base::args_, Base::pieces_;
  using typename Base::A;

public:
  explicit ShardSumsRows(const ShardArgs& args)
      : Base(args), terms_(args), width_(2 * terms_.num_dense()),
        sums_(new A[Base::units(0) * width_]) {}

private:
  void look(int64_t n, int64_t piece, const Label& label, Buffers<T>& buffers) override {
    const Columns<A>& row = *columns_of<A>(args_, n);
    const Softmax<A> softmax = softmax_of(row.m, row.mass, row.z_y);
    A* e = terms_.num_dense() > 1 ? buffers.e : nullptr;
    const Piece<T> view =
        pieces_.view(args_.logits, n, piece, label.y, softmax.m, softmax.log_s, buffers.z, e);
    if (e)
      probabilities(view, e, pieces_.after(args_.logits, view.z));
    A* const to = sums_.get() + (n * pieces_.count + piece) * width_;
    terms_.for_dense(
        [&](int, const Term<T>& term, int i) { term.sums(term.functor, view, to + 2 * i); });
  }

  void merge(int64_t n, const Label&, bool skipped) const override {
    for (int i = 0; i < width_; ++i) {
      double sum = 0;
      for (int64_t c = 0; c < pieces_.count && !skipped; ++c)
        sum += sums_[(n * pieces_.count + c) * width_ + i];
      static_cast<A*>(args_.sums)[n * width_ + i] = A(sum);
    }
  }

  const Terms<T> terms_;
  const int width_;                 // numbers of a row
  const std::unique_ptr<A[]> sums_; // of every piece
};

// ---- tiles -------------------------------------------------------------------------------------

template <class T> class ShardPartialsTiles : public TermTileJob<T, ShardArgs> {
  using Base = TermTileJob<T, ShardArgs>;
  using Base::args_, Base::sweeps_, Base::tiles_;
  using typename Base::A;

public:
  using Base::Base;

private:
  void run_tile(const TilePlace& place, TileRows<A>& rows, TileArrays<A>& arrays) const override {
    sweeps_.open(place, rows, A(-INFINITY));
    tiles_.for_classes([&](int64_t k) {
      sweeps_.bring(place, rows, arrays, k);
      sweeps_.measure(rows, arrays, k, args_.argmax);
    });
    const int64_t first = tiles_.first_row(place);
    for (int j = 0; j < place.count; ++j) {
      Columns<A> columns;
      if (!skips(args_, rows.counted[j])) {
        const A m = rows.count[j] > 0 ? rows.m[j] : A(-INFINITY);
        columns = {m, rows.mass[j], rows.total[j], rows.count[j], rows.z_y[j]};
      }
      *columns_of<A>(args_, first + j) = columns;
      put(args_.argmax, first + j, int64_t(rows.best[j]));
    }
  }
};

// Tiles of rows that were merged.
template <class T> class MergedTiles : public TermTileJob<T, ShardArgs> {
  using Base = TermTileJob<T, ShardArgs>;

public:
  using Base::Base;
  using typename Base::A;

protected:
  void open(const TilePlace& place, TileRows<A>& rows) const {
    this->sweeps_.open(place, rows, A(NAN));
    const Columns<A>* columns = columns_of<A>(this->args_, this->tiles_.first_row(place));
    for (int j = 0; j < place.count; ++j) {
      rows.m[j] = columns[j].m;
      rows.mass[j] = columns[j].mass;
      rows.total[j] = columns[j].total;
      rows.count[j] = columns[j].count;
      rows.z_y[j] = columns[j].z_y;
    }
    this->sweeps_.normalise_rows(rows, false);
  }

  // f(row, one of its sums in the tile, the same in the tensor)
  template <class F> void for_sums(const TilePlace& place, TileRows<A>& rows, F f) const {
    const int width = 2 * this->terms_.num_dense();
    A* const sums = static_cast<A*>(this->args_.sums) + this->tiles_.first_row(place) * width;
    this->terms_.for_dense([&](int t, const Term<T>&, int i) {
      for (int j = 0; j < place.count; ++j) {
        f(j, rows.values[t * this->P_ + j], sums[j * width + 2 * i]);
        f(j, rows.slopes[t * this->P_ + j], sums[j * width + 2 * i + 1]);
      }
    });
  }
};

template <class T> class ShardSumsTiles : public MergedTiles<T> {
  using Base = MergedTiles<T>;
  using typename Base::A;

public:
  using Base::Base;

private:
  void run_tile(const TilePlace& place, TileRows<A>& rows, TileArrays<A>& arrays) const override {
    this->open(place, rows);
    this->tiles_.for_classes([&](int64_t k) {
      this->sweeps_.add_sums(rows, this->sweeps_.brought(place, rows, arrays, k));
    });
    this->for_sums(place, rows, [&](int j, A sum, A& result) {
      result = skips(this->args_, rows.counted[j]) ? A(0) : sum;
    });
  }
};

// Only loss heads are left; T is the type of partials, and its logits are not there.
template <class T> class ShardFinishTiles : public MergedTiles<T> {
  using Base = MergedTiles<T>;
  using typename Base::A;

public:
  using Base::Base;

private:
  void run_tile(const TilePlace& place, TileRows<A>& rows, TileArrays<A>&) const override {
    this->open(place, rows);
    this->for_sums(place, rows, [](int, A& sum, A merged) { sum = merged; });
    this->sweeps_.finish(rows, place, this->args_);
  }
};

} // namespace anl::cpu
