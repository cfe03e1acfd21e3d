// The loops that a functor is compiled into, and the table through which kernels call them.
#pragma once

#include "../terms.h"
#include "math.h"

namespace anl::cpu {

// Elements that a loop handles at once: enough independent sums to hide the adder's latency.
constexpr int unroll = 4;
template <class A> constexpr int block = unroll * lanes<A>;

template <class T> using Accumulator = typename AccumulatorOf<T>::A;

// A contiguous piece of a row: logits z, and e with p = e * to_p. y is the target's place in it, or
// -1. e is 0 at the target, past n up to a whole block, and at classes that are not there; it is
// null where a single sweep makes p for itself.
template <class T> struct Piece {
  using A = Accumulator<T>;
  const T* z;
  const A* e;
  int n, y;
  A m, log_s, to_p;
};

// K x P values with P rows side by side, the same for every array of a tile; see lanes.h.
template <class A> struct TilePiece {
  const A *z, *e;
  int K, P;
  const A *m, *log_s, *to_p; // (P,)
};

// Classes of a tile that are summed before they are added to the rest, so that the roundings of
// many thousand do not pile up.
constexpr int tile_run = 64;

// The block at z[at], or a copy in which the target and what lies past n is replaced by `absent`.
template <class T>
ANL_INLINE const T* whole_block(const T* z, int at, int n, int y, T absent, T* copy) {
  constexpr int size = block<Accumulator<T>>;
  const int y_here = y - at, left = n - at;
  if (left >= size && (y_here < 0 || y_here >= size))
    return z + at;
  if (left < size)
    for (int i = 0; i < size; ++i)
      copy[i] = absent;
  memcpy(copy, z + at, (left < size ? left : size) * sizeof(T));
  if (y_here >= 0 && y_here < size)
    copy[y_here] = absent;
  return copy;
}

template <class T, class Vec> ANL_INLINE void load_block(const T* z, Vec (&v)[unroll]) {
#pragma GCC unroll 4
  for (int u = 0; u < unroll; u += 2)
    load_pair(z + u * (block<Accumulator<T>> / unroll), v + u);
}
template <class T, class Vec>
ANL_INLINE void store_block(T* to, const Vec (&v)[unroll], bool past_cache) {
#pragma GCC unroll 4
  for (int u = 0; u < unroll; u += 2)
    store_pair(to + u * (block<Accumulator<T>> / unroll), v + u, past_cache);
}

template <class A> ANL_INLINE V<A> add_up(const V<A> (&part)[unroll]) {
  return (part[0] + part[1]) + (part[2] + part[3]);
}

// Where a clamped line's clamp begins: a bound on e, so that nothing is multiplied, and the same in
// every sweep, so that the gradient of a row sums to 0.
template <class T, class F, class A = Accumulator<T>>
ANL_INLINE A lowest_e(const F& f, const Piece<T>& piece) {
  if constexpr (F::clamped_line)
    return f.lowest_p / piece.to_p;
  return 0;
}

// Sums over the others of phi and of its slope.
template <class T, class F, bool has_e, class A = Accumulator<T>>
void sums_of_piece(const F& f, const Piece<T>& piece, A* sums) {
  V<A> values[unroll] = {}, slopes[unroll] = {};
  const A lowest = lowest_e(f, piece);
  alignas(64) T copy[block<A>];
  for (int at = 0; at < piece.n; at += block<A>) {
    V<A> z[unroll];
    load_block(whole_block(piece.z, at, piece.n, piece.y, minus_infinity<T>(), copy), z);
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u) {
      const V<A> d = z[u] - piece.m, l = d - piece.log_s;
      V<A> e;
      if constexpr (has_e)
        e = load(piece.e + at + u * lanes<A>);
      else
        e = exp_nonpositive<A>(l);
      if constexpr (F::clamped_line) {
        const I<A> clamped = e < lowest;
        values[u] = clamped ? values[u] : values[u] + (d + (f.offset - piece.log_s));
        slopes[u] = clamped ? slopes[u] : slopes[u] + A(1);
        continue;
      }
      Phi<V<A>> phi = f.both(l, e * piece.to_p);
      if (!F::vanishes) {
        const I<A> there = z[u] != A(-INFINITY);
        phi = {there ? phi.value : fill(A(0)), there ? phi.slope : fill(A(0))};
      }
      values[u] += phi.value;
      slopes[u] += phi.slope;
    }
  }
  sums[0] = sum_across<A>(add_up<A>(values));
  sums[1] = sum_across<A>(add_up<A>(slopes));
}
template <class T, class F>
void sums_along(const void* functor, const Piece<T>& piece, Accumulator<T>* sums) {
  const F f = *static_cast<const F*>(functor);
  piece.e ? sums_of_piece<T, F, true>(f, piece, sums) : sums_of_piece<T, F, false>(f, piece, sums);
}

// The gradient at other classes is base + sum_t G_t slope_t(l, p) - q e.
template <class A> struct Affine {
  A base, q;
};

// Bytes from what is written to what is fetched to be written: a store that misses the cache waits.
constexpr int written_ahead = 4096;

// The whole gradient of a piece that has one dense term, or none. `past_cache` wants `out` to be
// aligned to the vectors that are stored. What this leaves at the target is for the caller to mend.
template <class T, class F, class Out, class A = Accumulator<T>>
ANL_INLINE void gradient_of_piece(const F& f, const Piece<T>& piece, Affine<A> affine, A G,
                                  Out* out, bool past_cache) {
  const A lowest = lowest_e(f, piece);
  const V<A> base = fill(affine.base), above = fill(affine.base + G);
  alignas(64) T copy[block<A>];
  alignas(64) Out last[block<A>];
  for (int at = 0; at < piece.n; at += block<A>) {
    const bool whole = piece.n - at >= block<A>;
    V<A> z[unroll] = {}, v[unroll];
    if (!past_cache)
#pragma GCC unroll 8
      for (int i = 0; i < block<A>; i += 64 / sizeof(Out))
        __builtin_prefetch(out + at + i + written_ahead / sizeof(Out), 1, 3);
    if (F::slope_reads_l)
      load_block(whole_block(piece.z, at, piece.n, -1, minus_infinity<T>(), copy), z);
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u) {
      const V<A> e = load(piece.e + at + u * lanes<A>), l = (z[u] - piece.m) - piece.log_s;
      if constexpr (F::clamped_line) {
        v[u] = (e < lowest ? base : above) - affine.q * e;
      } else {
        v[u] = base - affine.q * e;
        if (F::sum == Sum::Dense)
          v[u] = v[u] + G * f.slope(l, e * piece.to_p);
      }
    }
    store_block(whole ? out + at : last, v, past_cache && whole);
    if (!whole)
      memcpy(out + at, last, (piece.n - at) * sizeof(Out));
  }
}
template <class T, class F>
void gradient_along(const void* functor, const Piece<T>& piece, Affine<Accumulator<T>> affine,
                    Accumulator<T> G, T* out, bool past_cache) {
  const F f = *static_cast<const F*>(functor);
  gradient_of_piece(f, piece, affine, G, out, past_cache);
}

// Numbers, for several dense terms: grad += G slope(l, p).
template <class T, class F>
void add_slopes_along(const void* functor, const Piece<T>& piece, Accumulator<T> G,
                      Accumulator<T>* grad) {
  using A = Accumulator<T>;
  const F f = *static_cast<const F*>(functor);
  const A lowest = lowest_e(f, piece);
  alignas(64) T copy[block<A>];
  for (int at = 0; at < piece.n; at += block<A>) {
    V<A> z[unroll] = {};
    if (F::slope_reads_l)
      load_block(whole_block(piece.z, at, piece.n, piece.y, minus_infinity<T>(), copy), z);
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u) {
      A* to = grad + at + u * lanes<A>;
      const V<A> e = load(piece.e + at + u * lanes<A>), l = (z[u] - piece.m) - piece.log_s;
      if constexpr (F::clamped_line)
        store(to, e < lowest ? load(to) : load(to) + G);
      else
        store(to, load(to) + G * f.slope(l, e * piece.to_p));
    }
  }
}

// As sums_along, for the rows of a tile: (P,) sums are added to.
template <class A, class F>
void sums_across_tile(const void* functor, const TilePiece<A>& tile, A* values, A* slopes) {
  const F f = *static_cast<const F*>(functor);
  for (int j = 0; j < tile.P; j += lanes<A>) {
    const V<A> m = load(tile.m + j), log_s = load(tile.log_s + j), to_p = load(tile.to_p + j);
    V<A> S = load(values + j), D = load(slopes + j);
    int64_t i = j;
    for (int first = 0; first < tile.K; first += tile_run) {
      V<A> S_run = {}, D_run = {};
      for (int k = first; k < tile.K && k < first + tile_run; ++k, i += tile.P) {
        const V<A> z = load(tile.z + i), l = (z - m) - log_s, p = load(tile.e + i) * to_p;
        const I<A> there = z != A(-INFINITY);
        const Phi<V<A>> phi = f.both(l, p);
        S_run += there ? phi.value : fill(A(0));
        D_run += there ? phi.slope : fill(A(0));
      }
      S += S_run;
      D += D_run;
    }
    store(values + j, S);
    store(slopes + j, D);
  }
}

// What the gradient of a tile is made of beside slopes, (P,) each; rows without `counted` (all bits
// set) have none.
template <class A> struct TileAffine {
  const A *base, *q, *scale;
  const Int<A>* counted;
};

// grad = (base - q e + sum of G slope(l, p)) * scale, and 0 at absent classes and targets: one call
// for each dense term, of which the first begins the sum and the last ends it.
template <class A, class F>
void gradient_across_tile(const void* functor, const TilePiece<A>& tile,
                          const TileAffine<A>& affine, const A* G, bool begin, bool end, A* grad) {
  const F f = *static_cast<const F*>(functor);
  for (int j = 0; j < tile.P; j += lanes<A>) {
    const V<A> m = load(tile.m + j), log_s = load(tile.log_s + j), to_p = load(tile.to_p + j);
    const V<A> base = load(affine.base + j), q = load(affine.q + j) * to_p;
    const V<A> G_j = F::sum == Sum::Dense ? load(G + j) : V<A>{}, scale = load(affine.scale + j);
    const I<A> counted = load_ints<A>(affine.counted + j);
    for (int64_t i = j, k = 0; k < tile.K; ++k, i += tile.P) {
      const V<A> z = load(tile.z + i), e = load(tile.e + i);
      V<A> sum = begin ? base - q * e : load(grad + i);
      if (F::sum == Sum::Dense)
        sum = sum + G_j * f.slope((z - m) - log_s, e * to_p);
      const I<A> there = (z != A(-INFINITY)) & counted;
      store(grad + i, !end ? sum : there ? sum * scale : fill(A(0)));
    }
  }
}

// A functor, as kernels of a storage type see it.
template <class T> struct FunctorTable {
  using A = Accumulator<T>;
  Sum sum;
  bool slope_reads_l;
  void (*make)(const double* scalars, void* functor);
  void (*head)(const void* functor, const Target<V<A>>&, Head<V<A>>*);
  Line<A> (*line)(const void* functor, A lowest_l, A highest_l);
  decltype(&sums_along<T, DenseFunctor<A>>) sums;
  decltype(&gradient_along<T, DenseFunctor<A>>) gradient;
  decltype(&add_slopes_along<T, DenseFunctor<A>>) add_slopes;
  decltype(&sums_across_tile<A, DenseFunctor<A>>) tile_sums;
  decltype(&gradient_across_tile<A, DenseFunctor<A>>) tile_gradient;
};

constexpr int functor_bytes = 256;

template <class A, class F> void make(const double* scalars, void* functor) {
  static_assert(sizeof(F) <= functor_bytes, "grow functor_bytes");
  const F f(scalars);
  memcpy(functor, &f, sizeof f);
}
template <class A, class F>
void head(const void* functor, const Target<V<A>>& target, Head<V<A>>* result) {
  *result = static_cast<const F*>(functor)->head(target);
}
template <class A, class F> Line<A> line(const void* functor, A lowest_l, A highest_l) {
  return static_cast<const F*>(functor)->line(lowest_l, highest_l);
}

template <class T, class F> constexpr FunctorTable<T> table_of() {
  using A = Accumulator<T>;
  FunctorTable<T> table = {F::sum,  F::slope_reads_l, make<A, F>, head<A, F>, line<A, F>,
                           nullptr, nullptr,          nullptr,    nullptr,    nullptr};
  if constexpr (F::sum == Sum::Dense) {
    table.sums = sums_along<T, F>;
    table.gradient = gradient_along<T, F>;
    table.add_slopes = add_slopes_along<T, F>;
    table.tile_sums = sums_across_tile<A, F>;
    table.tile_gradient = gradient_across_tile<A, F>;
  }
  return table;
}

#define ANL_TABLE_ENTRY(name, F) table_of<T, F<Accumulator<T>>>(),
template <class T>
constexpr FunctorTable<T> functor_tables[] = {ANL_FOR_EACH_FUNCTOR(ANL_TABLE_ENTRY)};
#undef ANL_TABLE_ENTRY

} // namespace anl::cpu
