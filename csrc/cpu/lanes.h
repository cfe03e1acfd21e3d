// Rows across the vector lanes: for short rows, and where neighbours in memory are neighbouring
// rows (class-first layouts). If a tile's arrays hold all classes, it is read once; else each of
// the three sweeps reads it again.
#pragma once

#include "tile_sweeps.h"

namespace anl::cpu {

// A job whose units are tiles.
template <class T, class Args> class TileJob : public Job {
public:
  using A = typename AccumulatorOf<T>::A;
  explicit TileJob(const Args& args)
      : args_(args), terms_(args.terms, args.num_terms, static_cast<const A*>(args.term_weights)),
        sweeps_(args_, terms_), tiles_(sweeps_.tiles()), P_(tiles_.tile.P) {}

  int64_t units(int) const override { return tiles_.count(); }
  int64_t elements_of_unit(int) const override { return P_ * args_.shape.K; }

  void run(int, int64_t begin, int64_t end) override {
    TileMemory<A> memory(tiles_.tile, terms_.count());
    for (int64_t unit = begin; unit < end; ++unit)
      run_tile(tiles_.place(unit), memory.rows, memory.arrays);
    finish_streaming();
  }

protected:
  virtual void run_tile(const TilePlace&, TileRows<A>&, TileArrays<A>&) const = 0;
  template <class F> void for_classes(F f) const {
    for (int64_t k = 0; k < args_.shape.K; k += tiles_.tile.K)
      f(k);
  }

  const Args args_;
  const Terms<T> terms_;
  const TileSweeps<T> sweeps_;
  const Tiles<T>& tiles_;
  const int P_;
};

template <class T> class TileLossJob : public TileJob<T, RowLossArgs> {
  using Base = TileJob<T, RowLossArgs>;
  using Base::args_, Base::terms_, Base::sweeps_, Base::tiles_, Base::P_, Base::for_classes;
  using typename Base::A;

public:
  using Base::Base;

private:
  void run_tile(const TilePlace& place, TileRows<A>& rows, TileArrays<A>& arrays) const override {
    sweeps_.open(place, rows, A(NAN));
    for_classes([&](int64_t k) {
      sweeps_.bring(place, rows, arrays, k);
      sweeps_.measure(rows, arrays, k);
    });
    sweeps_.normalise_rows(rows, tiles_.at_once());
    if (terms_.num_dense())
      for_classes([&](int64_t k) { sweeps_.add_sums(rows, look_again(place, rows, arrays, k)); });
    sweeps_.run_heads_of_rows(rows, place);
    sweeps_.put_results(rows, place);
    for (int j = 0; j < P_; ++j)
      rows.gy[j] *= rows.scale[j];
    if (args_.grad.data || args_.probs.data)
      for_classes(
          [&](int64_t k) { write(rows, place, arrays, k, look_again(place, rows, arrays, k)); });
  }

  // Some classes for another sweep.
  TilePiece<A> look_again(const TilePlace& place, TileRows<A>& rows, TileArrays<A>& arrays,
                          int64_t k) const {
    return tiles_.at_once() ? sweeps_.kept(rows, arrays, k)
                            : sweeps_.brought(place, rows, arrays, k);
  }

  void write(TileRows<A>& rows, const TilePlace& place, TileArrays<A>& arrays, int64_t first,
             const TilePiece<A>& piece) const {
    A* const out = arrays.out;
    if (args_.probs.data) {
      for (int64_t i = 0; i < int64_t(P_) * piece.K; i += lanes<A>) {
        const V<A> to_p = load(rows.to_p + i % P_);
        store(out + i, load(piece.e + i) * to_p);
      }
      for_targets(rows, place.count, first, piece.K, P_,
                  [&](int j, int64_t at) { out[at] = rows.p_y[j]; });
      tiles_.out(out, args_.probs, place, first, arrays.spare, args_.past_cache);
    }
    if (args_.grad.data) {
      tile_gradient(terms_, piece, rows, out);
      for_targets(rows, place.count, first, piece.K, P_,
                  [&](int j, int64_t at) { out[at] = rows.gy[j]; });
      tiles_.out(out, args_.grad, place, first, arrays.spare, args_.past_cache);
    }
  }
};

// The gradient from what a forward pass saved.
template <class T> class TileGradJob : public Job {
public:
  using A = typename AccumulatorOf<T>::A;
  explicit TileGradJob(const RowGradArgs& args)
      : args_(args), terms_(args.terms, args.num_terms, nullptr), tiles_(args.shape),
        P_(tiles_.tile.P) {}

  int64_t units(int) const override { return tiles_.count(); }
  int64_t elements_of_unit(int) const override { return P_ * args_.shape.K; }

  void run(int, int64_t begin, int64_t end) override {
    TileMemory<A> memory(tiles_.tile, terms_.count());
    for (int64_t unit = begin; unit < end; ++unit) {
      const TilePlace place = tiles_.place(unit);
      open(place, memory.rows);
      for (int64_t k = 0; k < args_.shape.K; k += tiles_.tile.K)
        write(place, memory.rows, memory.arrays, k);
    }
    finish_streaming();
  }

private:
  void open(const TilePlace& place, TileRows<A>& rows) const {
    const int count = terms_.count(), width = num_saved + count;
    const int64_t first = tiles_.first_row(place);
    open_rows(args_, first, place.count, P_, rows);
    for (int j = 0; j < P_; ++j) {
      const A* saved =
          static_cast<const A*>(args_.saved) + (first + (j < place.count ? j : 0)) * width;
      rows.m[j] = saved[0];
      rows.log_s[j] = saved[1];
      rows.gy[j] = saved[2] * rows.scale[j];
      rows.q[j] = saved[3];
      rows.to_p[j] = 1;
      rows.base[j] = 0;
      for (int t = 0; t < count; ++t) {
        rows.G[t * P_ + j] = saved[num_saved + t];
        rows.base[j] += terms_[t].table->sum == Sum::Affine ? saved[num_saved + t] : A(0);
      }
    }
  }

  void write(const TilePlace& place, TileRows<A>& rows, TileArrays<A>& arrays, int64_t k) const {
    const int K = tiles_.classes_from(k);
    tiles_.in(args_.logits, place, k, arrays.spare, arrays.z);
    for_targets(rows, place.count, k, K, P_, [&](int, int64_t at) { arrays.z[at] = -INFINITY; });
    const TilePiece<A> piece = {arrays.z, arrays.e, K, P_, rows.m, rows.log_s, rows.to_p};
    tile_probabilities(piece, arrays.e);
    tile_gradient(terms_, piece, rows, arrays.out);
    for_targets(rows, place.count, k, K, P_,
                [&](int j, int64_t at) { arrays.out[at] = rows.gy[j]; });
    tiles_.out(arrays.out, args_.grad, place, k, arrays.spare, args_.past_cache);
  }

  const RowGradArgs args_;
  const Terms<T> terms_;
  const Tiles<T> tiles_;
  const int P_;
};

} // namespace anl::cpu
