// What is done to a tile of rows: opened, measured, normalised, summed, given to the loss heads,
// written.
#pragma once

#include "tiles.h"

namespace anl::cpu {

template <class T> class TileSweeps {
public:
  using A = Accumulator<T>;
  TileSweeps(const RowArgs& args, const Terms<T>& terms, const Tiles<T>& tiles)
      : args_(args), terms_(terms), tiles_(tiles), P_(tiles.tile.P) {}

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
  void measure(TileRows<A>& rows, TileArrays<A>& arrays, int64_t first, bool argmax) const {
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
    if (argmax)
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
    terms_.for_dense([&](int t, const Term<T>& term, int) {
      term.tile_sums(term.functor, piece, rows.values + t * P_, rows.slopes + t * P_);
    });
  }

  // Runs the loss heads, and puts what is wanted of the rows into `to`.
  void finish(TileRows<A>& rows, const TilePlace& place, const RowLossArgs& to) const {
    for (int j = 0; j < P_; j += lanes<A>)
      run_heads(rows, place, j, to);
    put_rows<A>(to.row_losses, place, [&](int j) { return rows.counted[j] ? rows.loss[j] : A(0); });
    put_rows<A>(to.lse, place, [&](int j) { return rows.m[j] + rows.log_s[j]; });
    put_rows<A>(to.p_y, place, [&](int j) { return rows.counted[j] ? rows.p_y[j] : A(0); });
    put_rows<int64_t>(to.argmax, place, [&](int j) { return best_class(rows, j); });
    A* saved = static_cast<A*>(to.saved) + tiles_.first_row(place) * (num_saved + terms_.count());
    for (int j = 0; to.saved && j < place.count; ++j) {
      for (const A* number : {rows.m, rows.log_s, rows.gy, rows.q})
        *saved++ = number[j];
      for (int t = 0; t < terms_.count(); ++t)
        *saved++ = rows.G[t * P_ + j];
    }
  }

  void write_gradient(const TilePlace& place, const TileRows<A>& rows, const TilePiece<A>& piece,
                      TileArrays<A>& arrays, int64_t k) const {
    const TileAffine<A> affine = {rows.base, rows.q, rows.scale, rows.counted};
    const Functor<A> no_term;
    if (terms_.num_dense() == 0)
      gradient_across_tile<A, Functor<A>>(&no_term, piece, affine, nullptr, true, true, arrays.out);
    terms_.for_dense([&](int t, const Term<T>& term, int i) {
      term.tile_gradient(term.functor, piece, affine, rows.G + t * P_, i == 0,
                         i == terms_.num_dense() - 1, arrays.out);
    });
    for_targets(rows, place.count, k, piece.K, P_,
                [&](int j, int64_t at) { arrays.out[at] = rows.gy[j] * rows.scale[j]; });
    tiles_.out(arrays.out, args_.grad, place, k, arrays.spare, args_.past_cache);
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

  void run_heads(TileRows<A>& rows, const TilePlace& place, int j, const RowLossArgs& to) const {
    const V<A> count = load(rows.count + j), log_s = load(rows.log_s + j);
    const V<A> sum_l = load(rows.total + j) - count * log_s;
    auto sum = [&](int t, const A* dense, V<A> affine) -> V<A> {
      if (terms_[t].sum == Sum::Dense)
        return load(dense + t * P_ + j);
      return terms_[t].sum == Sum::Affine ? affine : V<A>{};
    };
    V<A> base = {};
    const Slopes<V<A>> slopes = run_loss_heads(
        terms_,
        {load(rows.l_y + j), load(rows.p_y + j), load(rows.rest + j), load(rows.m + j) + log_s,
         load(rows.z_y + j) - load(rows.m + j), V<A>{}, count},
        [&](int t) { return sum(t, rows.values, sum_l); },
        [&](int t) { return sum(t, rows.slopes, count); },
        [&](int t, V<A> G) {
          store(rows.G + t * P_ + j, G);
          if (terms_[t].sum == Sum::Affine)
            base += G;
        },
        [&](int t, const Head<V<A>>& head, const Slopes<V<A>>& alone) {
          const int T_ = terms_.count();
          put_of_term(to.term_losses, head.loss, rows, place, j, t, T_);
          put_of_term(to.denominators, head.denominator, rows, place, j, t, T_);
          put_of_term(to.term_slopes, alone.gy, rows, place, j, 2 * t, 2 * T_);
          put_of_term(to.term_slopes, alone.q, rows, place, j, 2 * t + 1, 2 * T_);
        });
    store(rows.base + j, base);
    store(rows.q + j, slopes.q);
    store(rows.gy + j, slopes.gy);
    store(rows.loss + j, slopes.loss);
  }

  // A number of the rows from j on, in one of so many columns, if it is wanted; 0 of ignored ones.
  void put_of_term(void* to, const V<A>& number, const TileRows<A>& rows, const TilePlace& place,
                   int j, int column, int columns) const {
    for (int i = 0; to && i < lanes<A> && j + i < place.count; ++i)
      put(to, (tiles_.first_row(place) + j + i) * columns + column,
          rows.counted[j + i] ? number[i] : A(0));
  }

  static int64_t best_class(const TileRows<A>& rows, int j) {
    const A z_y = rows.z_y[j], z = rows.best_z[j];
    const Int<A> y = rows.y[j], k = rows.best[j];
    return z_y > z || (z_y == z && y < k) ? y : k;
  }

  // f(row) for every row of the tile, if it is wanted.
  template <class X, class F> void put_rows(void* to, const TilePlace& place, F f) const {
    X* const out = static_cast<X*>(to) + tiles_.first_row(place);
    for (int j = 0; to && j < place.count; ++j)
      out[j] = f(j);
  }

  const RowArgs& args_;
  const Terms<T>& terms_;
  const Tiles<T>& tiles_;
  const int P_;
};

} // namespace anl::cpu
