// The loops that a functor is compiled into, and the table through which kernels call them.
#pragma once

#include "../terms.h"
#include "math.h"

namespace anl::cpu {

// Elements that a loop handles at once: enough independent sums to hide the adder's latency.
constexpr int unroll = 4;
template <class A> constexpr int block = unroll * lanes<A>;

// A contiguous piece of a row: logits z, and e with p = e * to_p. y is the target's place in it, or
// negative. e is 0 at the target, past n up to a whole block, and at classes that are not there.
template <class A> struct Piece {
  const A *z, *e;
  int n, y;
  A m, log_s, to_p;
};

// K x P values with P rows side by side, the same for every array of a tile; see lanes.h.
template <class A> struct TilePiece {
  const A *z, *e;
  int K, P;
  const A *m, *log_s, *to_p; // (P,)
};

// The block at z[at], or a copy in which the target and what lies past n is replaced by `absent`.
template <class A>
ANL_INLINE const A* whole_block(const A* z, int at, int n, int y, A absent, A* copy) {
  const int y_here = y - at, left = n - at;
  if (left >= block<A> && (y_here < 0 || y_here >= block<A>))
    return z + at;
  if (left >= block<A>) {
    for (int u = 0; u < unroll; ++u)
      store(copy + u * lanes<A>, load(z + at + u * lanes<A>));
  } else {
    for (int u = 0; u < unroll; ++u)
      store(copy + u * lanes<A>, fill(absent));
    memcpy(copy, z + at, left * sizeof(A));
  }
  if (y_here >= 0 && y_here < block<A>)
    copy[y_here] = absent;
  return copy;
}

template <class A> ANL_INLINE V<A> add_up(const V<A> (&part)[unroll]) {
  return (part[0] + part[1]) + (part[2] + part[3]);
}

// Sums over the others of phi and of its slope.
template <class A, class F> void sums_along(const void* functor, const Piece<A>& piece, A* sums) {
  const F f = *static_cast<const F*>(functor);
  V<A> values[unroll] = {}, slopes[unroll] = {};
  alignas(64) A copy[block<A>];
  for (int at = 0; at < piece.n; at += block<A>) {
    const A* z = whole_block<A>(piece.z, at, piece.n, piece.y, A(-INFINITY), copy);
    const A* e = piece.e + at;
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u) {
      const V<A> z_u = load(z + u * lanes<A>), p = load(e + u * lanes<A>) * piece.to_p;
      const V<A> l = (z_u - piece.m) - piece.log_s;
      V<A> value = f.value(l, p), slope = f.slope(l, p);
      if (!F::vanishes) {
        const I<A> there = z_u != A(-INFINITY);
        value = there ? value : fill(A(0));
        slope = there ? slope : fill(A(0));
      }
      values[u] += value;
      slopes[u] += slope;
    }
  }
  sums[0] = sum_across<A>(add_up<A>(values));
  sums[1] = sum_across<A>(add_up<A>(slopes));
}

// grad = start + G slope(l, p), where start is base - q e, or what is in grad already. What this
// leaves at the target and at absent classes is for the caller to mend.
template <class A, class F, bool First>
void slopes_along(const void* functor, const Piece<A>& piece, A base, A q, A G, A* grad) {
  const F f = *static_cast<const F*>(functor);
  alignas(64) A copy[block<A>];
  for (int at = 0; at < piece.n; at += block<A>) {
    const A *e = piece.e + at, *z = nullptr;
    if (F::slope_reads_l)
      z = whole_block<A>(piece.z, at, piece.n, piece.y, A(-INFINITY), copy);
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u) {
      const V<A> e_u = load(e + u * lanes<A>);
      V<A> l = {};
      if (F::slope_reads_l)
        l = (load(z + u * lanes<A>) - piece.m) - piece.log_s;
      A* out = grad + at + u * lanes<A>;
      const V<A> start = First ? base - q * e_u : load(out);
      store(out, start + G * f.slope(l, e_u * piece.to_p));
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
    for (int64_t i = j, k = 0; k < tile.K; ++k, i += tile.P) {
      const V<A> z = load(tile.z + i), l = (z - m) - log_s, p = load(tile.e + i) * to_p;
      const I<A> there = z != A(-INFINITY);
      S += there ? f.value(l, p) : fill(A(0));
      D += there ? f.slope(l, p) : fill(A(0));
    }
    store(values + j, S);
    store(slopes + j, D);
  }
}

// grad += G slope(l, p) for the rows of a tile.
template <class A, class F>
void slopes_across_tile(const void* functor, const TilePiece<A>& tile, const A* G, A* grad) {
  const F f = *static_cast<const F*>(functor);
  for (int j = 0; j < tile.P; j += lanes<A>) {
    const V<A> m = load(tile.m + j), log_s = load(tile.log_s + j), to_p = load(tile.to_p + j);
    const V<A> G_j = load(G + j);
    for (int64_t i = j, k = 0; k < tile.K; ++k, i += tile.P) {
      const V<A> l = (load(tile.z + i) - m) - log_s;
      store(grad + i, load(grad + i) + G_j * f.slope(l, load(tile.e + i) * to_p));
    }
  }
}

// A functor, as kernels see it.
template <class A> struct FunctorTable {
  Sum sum;
  bool slope_reads_l;
  void (*make)(const double* scalars, void* functor);
  void (*head)(const void* functor, const Target<V<A>>&, Head<V<A>>*);
  Line<A> (*line)(const void* functor, A lowest_l, A highest_l);
  decltype(&sums_along<A, DenseFunctor<A>>) sums;
  decltype(&slopes_along<A, DenseFunctor<A>, true>) first_slopes, more_slopes;
  decltype(&sums_across_tile<A, DenseFunctor<A>>) tile_sums;
  decltype(&slopes_across_tile<A, DenseFunctor<A>>) tile_slopes;
};

constexpr int functor_bytes = 128;

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

template <class A, class F> constexpr FunctorTable<A> table_of() {
  FunctorTable<A> table = {F::sum,  F::slope_reads_l, make<A, F>, head<A, F>, line<A, F>,
                           nullptr, nullptr,          nullptr,    nullptr,    nullptr};
  if constexpr (F::sum == Sum::Dense) {
    table.sums = sums_along<A, F>;
    table.first_slopes = slopes_along<A, F, true>;
    table.more_slopes = slopes_along<A, F, false>;
    table.tile_sums = sums_across_tile<A, F>;
    table.tile_slopes = slopes_across_tile<A, F>;
  }
  return table;
}

#define ANL_TABLE_ENTRY(name, F) table_of<A, F<A>>(),
template <class A>
constexpr FunctorTable<A> functor_tables[] = {ANL_FOR_EACH_FUNCTOR(ANL_TABLE_ENTRY)};
#undef ANL_TABLE_ENTRY

} // namespace anl::cpu
