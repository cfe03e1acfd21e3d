// What is done to a tile of rows: opened, measured, normalised, summed, given to the heads.
#pragma once

#include "tiles.h"

namespace anl::cpu {

template <class T> class TileSweeps {
public:
  using A = typename AccumulatorOf<T>::A;
  TileSweeps(const RowLossArgs& args, const Terms<T>& terms)
      : args_(args), terms_(terms), tiles_(args.shape), P_(tiles_.tile.P) {}

  const Tiles<T>& tiles() const { return tiles_; }

  // `nowhere`: the logit of a label that is no class.
  void open(const TilePlace& place, TileRows<A>& rows, A nowhere) const {
    open_rows(args_, tiles_.first_row(place), place.count, P_, rows);
    for (int j = 0; j < P_; ++j)
      rows.z_y[j] = rows.counted[j] ? nowhere : A(-INFINITY);
    for (int j = 0; j < P_; j += lanes<A>) {
      const V<A> none = {};
      for (A* sums : {rows.mass, rows.total, rows.count})
        store(sums + j, none);
      store(rows.m + j, fill(lowest<A>));
      store(rows.best_z + j, fill(A(-INFINITY)));
      store_ints<A>(rows.best + j, I<A>{} + Int<A>(args_.shape.K - 1));
    }
    for (int64_t i = 0; i < int64_t(P_) * terms_.count(); ++i)
      rows.values[i] = rows.slopes[i] = 0;
  }

  void bring(const TilePlace& place, TileRows<A>& rows, TileArrays<A>& arrays, int64_t k) const {
    tiles_.in(args_.logits, place, k, arrays.spare, arrays.z);
    for_targets(rows, place.count, k, tiles_.classes_from(k), P_, [&](int j, int64_t at) {
      rows.z_y[j] = arrays.z[at];
      arrays.z[at] = -INFINITY;
    });
  }

  // Merges the partials of some classes, and leaves their e relative to the maximum so far.
  void measure(TileRows<A>& rows, TileArrays<A>& arrays, int64_t first) const {
    const int K = tiles_.classes_from(first);
    for (int j = 0; j < P_; j += lanes<A>) {
      const V<A> before = load(rows.m + j);
      V<A> top = before, mass = {}, total = {}, count = {};
      for (int64_t i = j, k = 0; k < K; ++k, i += P_)
        top = max<A>(load(arrays.z + i), top);
      int64_t i = j;
      for (int run = 0; run < K; run += tile_run) {
        V<A> mass_run = {}, total_run = {};
        for (int k = run; k < K && k < run + tile_run; ++k, i += P_) {
          const V<A> d = load(arrays.z + i) - top, e = exp_nonpositive<A>(d);
          const I<A> there = d != A(-INFINITY);
          store(arrays.e + i, e);
          mass_run += e;
          total_run += there ? d : fill(A(0));
          count += there ? fill(A(1)) : fill(A(0));
        }
        mass += mass_run;
        total += total_run;
      }
      const V<A> counted = load(rows.count + j);
      const V<A> shift = counted > A(0) ? before - top : fill(A(0));
      store(rows.m + j, top);
      store(rows.mass + j, load(rows.mass + j) * exp_nonpositive<A>(shift) + mass);
      store(rows.total + j, load(rows.total + j) + counted * shift + total);
      store(rows.count + j, counted + count);
    }
    if (args_.argmax)
      find_best(rows, arrays.z, first, K);
  }

  // The softmax of rows out of their partials. e is kept, relative to m, or will be p.
  void normalise_rows(TileRows<A>& rows, bool e_is_kept) const {
    for (int j = 0; j < P_; j += lanes<A>) {
      const V<A> top = load(rows.m + j), count = load(rows.count + j);
      const V<A> m_others = count > A(0) ? top : fill(A(-INFINITY));
      const Softmax<V<A>> s = normalise(m_others, load(rows.mass + j), load(rows.z_y + j));
      const V<A> shift = count > A(0) ? top - s.m : fill(A(0));
      store(rows.m + j, s.m);
      store(rows.log_s + j, s.log_s);
      store(rows.l_y + j, s.l_y);
      store(rows.p_y + j, s.p_y);
      store(rows.rest + j, s.rest);
      store(rows.total + j, load(rows.total + j) + count * shift);
      store(rows.to_p + j, e_is_kept ? exp_nonpositive<A>(shift - s.log_s) : fill(A(1)));
    }
  }

  // Some classes that were measured, with their e.
  TilePiece<A> kept(const TileRows<A>& rows, const TileArrays<A>& arrays, int64_t k) const {
    return {arrays.z, arrays.e, tiles_.classes_from(k), P_, rows.m, rows.log_s, rows.to_p};
  }
  // Some classes of normalised rows, with p for their e.
  TilePiece<A> brought(const TilePlace& place, TileRows<A>& rows, TileArrays<A>& arrays,
                       int64_t k) const {
    bring(place, rows, arrays, k);
    const TilePiece<A> piece = kept(rows, arrays, k);
    tile_probabilities(piece, arrays.e);
    return piece;
  }

  void add_sums(TileRows<A>& rows, const TilePiece<A>& piece) const {
    for (int t = 0; t < terms_.count(); ++t)
      if (terms_[t].table->sum == Sum::Dense)
        terms_[t].table->tile_sums(terms_[t].functor, piece, rows.values + t * P_,
                                   rows.slopes + t * P_);
  }

  void run_heads_of_rows(TileRows<A>& rows, const TilePlace& place) const {
    for (int j = 0; j < P_; j += lanes<A>) {
      const V<A> count = load(rows.count + j), log_s = load(rows.log_s + j);
      const V<A> sum_l = load(rows.total + j) - count * log_s;
      auto sum = [&](int t, const A* dense, V<A> affine) -> V<A> {
        switch (terms_[t].table->sum) {
        case Sum::Dense:
          return load(dense + t * P_ + j);
        case Sum::Affine:
          return affine;
        default:
          return V<A>{};
        }
      };
      V<A> base = {};
      const Slopes<A> slopes = run_heads(
          terms_,
          {load(rows.l_y + j), load(rows.p_y + j), load(rows.rest + j), load(rows.m + j) + log_s,
           V<A>{}, count},
          [&](int t) { return sum(t, rows.values, sum_l); },
          [&](int t) { return sum(t, rows.slopes, count); },
          [&](int t, V<A> G) {
            store(rows.G + t * P_ + j, G);
            if (terms_[t].table->sum == Sum::Affine)
              base += G;
          },
          [&](int t, V<A> loss) { put_term_losses(rows, place, j, t, loss); });
      store(rows.base + j, base);
      store(rows.q + j, slopes.q);
      store(rows.gy + j, slopes.gy);
      store(rows.loss + j, slopes.loss);
    }
  }

  void put_results(const TileRows<A>& rows, const TilePlace& place) const {
    put_rows<A>(args_.row_losses, place,
                [&](int j) { return rows.counted[j] ? rows.loss[j] : A(0); });
    put_rows<A>(args_.lse, place, [&](int j) { return rows.m[j] + rows.log_s[j]; });
    put_rows<A>(args_.p_y, place, [&](int j) { return rows.counted[j] ? rows.p_y[j] : A(0); });
    put_rows<int64_t>(args_.argmax, place, [&](int j) {
      const A z_y = rows.z_y[j], z = rows.best_z[j];
      const Int<A> y = rows.y[j], k = rows.best[j];
      return z_y > z || (z_y == z && y < k) ? y : k;
    });
    if (args_.saved)
      put_saved(rows, place);
  }

private:
  void find_best(TileRows<A>& rows, const A* z, int64_t first, int K) const {
    for (int j = 0; j < P_; j += lanes<A>) {
      V<A> best_z = load(rows.best_z + j);
      I<A> best = load_ints<A>(rows.best + j);
      for (int64_t i = j, k = first; k < first + K; ++k, i += P_) {
        const V<A> z_k = load(z + i);
        const I<A> better = z_k > best_z;
        best_z = better ? z_k : best_z;
        best = better ? I<A>{} + Int<A>(k) : best;
      }
      store(rows.best_z + j, best_z);
      store_ints<A>(rows.best + j, best);
    }
  }

  void put_term_losses(const TileRows<A>& rows, const TilePlace& place, int j, int t,
                       V<A> loss) const {
    for (int i = 0; args_.term_losses && i < lanes<A> && j + i < place.count; ++i)
      put(args_.term_losses, (tiles_.first_row(place) + j + i) * terms_.count() + t,
          rows.counted[j + i] ? loss[i] : A(0));
  }

  // f(row) for every row of the tile, if it is wanted.
  template <class X, class F> void put_rows(void* to, const TilePlace& place, F f) const {
    if (!to)
      return;
    X* const out = static_cast<X*>(to) + tiles_.first_row(place);
    for (int j = 0; j < place.count; ++j)
      out[j] = f(j);
  }

  void put_saved(const TileRows<A>& rows, const TilePlace& place) const {
    const int width = num_saved + terms_.count();
    A* saved = static_cast<A*>(args_.saved) + tiles_.first_row(place) * width;
    for (int j = 0; j < place.count; ++j) {
      for (const A* stat : {rows.m, rows.log_s, rows.gy, rows.q})
        *saved++ = stat[j];
      for (int t = 0; t < terms_.count(); ++t)
        *saved++ = rows.G[t * P_ + j];
    }
  }

  const RowLossArgs& args_;
  const Terms<T>& terms_;
  const Tiles<T> tiles_;
  const int P_;
};

} // namespace anl::cpu
