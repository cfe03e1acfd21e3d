// Rows across the vector lanes: for short rows, and where neighbours in memory are neighbouring
// rows (class-first layouts). If a tile's arrays hold all classes, it is read once; else each of
// the three sweeps reads it again.
#pragma once

#include "tile_sweeps.h"

namespace anl::cpu {

// A job of tiles with terms.
template <class T, class Args> class TermTileJob : public TileJob<T, Args> {
public:
  explicit TermTileJob(const Args& args)
      : TileJob<T, Args>(args, args.num_terms), terms_(args),
        sweeps_(this->args_, terms_, this->tiles_) {}

protected:
  const Terms<T> terms_;
  const TileSweeps<T> sweeps_;
};

template <class T> class TileLossJob : public TermTileJob<T, RowLossArgs> {
  using Base = TermTileJob<T, RowLossArgs>;
  using Base::args_, Base::terms_, Base::sweeps_, Base::tiles_, Base::P_;
  using typename Base::A;

public:
  using Base::Base;

private:
  void run_tile(const TilePlace& place, TileRows<A>& rows, TileArrays<A>& arrays) const override {
    sweeps_.open(place, rows, A(NAN));
    tiles_.for_classes([&](int64_t k) {
      sweeps_.bring(place, rows, arrays, k);
      sweeps_.measure(rows, arrays, k, args_.argmax);
    });
    sweeps_.normalise_rows(rows, tiles_.at_once());
    if (terms_.num_dense())
      tiles_.for_classes(
          [&](int64_t k) { sweeps_.add_sums(rows, look_again(place, rows, arrays, k)); });
    sweeps_.finish(rows, place, args_);
    if (args_.grad.data || args_.probs.data)
      tiles_.for_classes([&](int64_t k) {
        const TilePiece<A> piece = look_again(place, rows, arrays, k);
        if (args_.probs.data)
          write_probabilities(place, rows, piece, arrays, k);
        if (args_.grad.data)
          sweeps_.write_gradient(place, rows, piece, arrays, k);
      });
  }

  // Some classes for another sweep.
  TilePiece<A> look_again(const TilePlace& place, TileRows<A>& rows, TileArrays<A>& arrays,
                          int64_t k) const {
    return tiles_.at_once() ? sweeps_.kept(rows, arrays, k)
                            : sweeps_.brought(place, rows, arrays, k);
  }

  void write_probabilities(const TilePlace& place, const TileRows<A>& rows,
                           const TilePiece<A>& piece, TileArrays<A>& arrays, int64_t k) const {
    for (int64_t i = 0; i < int64_t(P_) * piece.K; i += lanes<A>)
      store(arrays.out + i, load(piece.e + i) * load(rows.to_p + i % P_));
    for_targets(rows, place.count, k, piece.K, P_,
                [&](int j, int64_t at) { arrays.out[at] = rows.p_y[j]; });
    tiles_.out(arrays.out, args_.probs, place, k, arrays.spare, args_.past_cache);
  }
};

// The gradient from what a forward pass saved.
template <class T> class TileGradJob : public TermTileJob<T, RowGradArgs> {
  using Base = TermTileJob<T, RowGradArgs>;
  using Base::args_, Base::terms_, Base::sweeps_, Base::tiles_, Base::P_;
  using typename Base::A;

public:
  using Base::Base;

private:
  void run_tile(const TilePlace& place, TileRows<A>& rows, TileArrays<A>& arrays) const override {
    open(place, rows);
    tiles_.for_classes([&](int64_t k) {
      const TilePiece<A> piece = sweeps_.brought(place, rows, arrays, k);
      sweeps_.write_gradient(place, rows, piece, arrays, k);
    });
  }

  void open(const TilePlace& place, TileRows<A>& rows) const {
    const int width = num_saved + terms_.count();
    const int64_t first = tiles_.first_row(place);
    open_rows(args_, first, place.count, P_, rows);
    for (int j = 0; j < P_; ++j) {
      const A* saved =
          static_cast<const A*>(args_.saved) + (first + (j < place.count ? j : 0)) * width;
      rows.m[j] = saved[0];
      rows.log_s[j] = saved[1];
      rows.gy[j] = saved[2];
      rows.q[j] = saved[3];
      rows.to_p[j] = 1;
      rows.base[j] = 0;
      for (int t = 0; t < terms_.count(); ++t) {
        rows.G[t * P_ + j] = saved[num_saved + t];
        rows.base[j] += terms_[t].sum == Sum::Affine ? saved[num_saved + t] : A(0);
      }
    }
  }
};

} // namespace anl::cpu
