// Sweeps over a contiguous piece of a row that know no term: in and out of memory, the softmax's
// statistics, and the part of the gradient that is affine in p.
#pragma once

#include "functors.h"

namespace anl::cpu {

// Classes in a piece. A row is always cut at its multiples, so that the results of a row are the
// same however many threads share it. z and e of a piece fit in the first-level cache.
template <class A> constexpr int piece_size = 8192 / sizeof(A);

// ---- in and out --------------------------------------------------------------------------------

// n elements of storage as numbers, in `buffer` unless they can be read where they are.
template <class T, class A = typename AccumulatorOf<T>::A>
const A* bring_in(const T* from, int64_t stride, int n, A* buffer) {
  if (stride == 1) {
    if constexpr (sizeof(T) == sizeof(A))
      return from;
    int i = 0;
    for (; i + lanes<A> <= n; i += lanes<A>)
      store(buffer + i, load_wide(from + i));
    for (; i < n; ++i)
      buffer[i] = widen(from[i]);
    return buffer;
  }
  for (int i = 0; i < n; ++i)
    buffer[i] = widen(from[i * stride]);
  return buffer;
}

// n numbers to storage; `past_cache` for what will not be read soon: it saves the memory from
// being fetched before it is overwritten.
template <class T, class A = typename AccumulatorOf<T>::A>
void bring_out(const A* from, T* to, int64_t stride, int n, bool past_cache) {
  if (stride != 1) {
    for (int i = 0; i < n; ++i)
      to[i * stride] = narrow<T>(from[i]);
    return;
  }
  int i = 0;
  if (past_cache) {
    constexpr int width = sizeof(typename Narrowed<T>::Type);
    for (; i < n && reinterpret_cast<uintptr_t>(to + i) % width; ++i)
      to[i] = narrow<T>(from[i]);
    for (; i + lanes<A> <= n; i += lanes<A>)
      stream(to + i, narrow_vector(load(from + i), to));
  } else {
    for (; i + lanes<A> <= n; i += lanes<A>) {
      const auto v = narrow_vector(load(from + i), to);
      memcpy(to + i, &v, sizeof v);
    }
  }
  for (; i < n; ++i)
    to[i] = narrow<T>(from[i]);
}

template <class T> void zero_out(T* to, int64_t stride, int n) {
  if (stride == 1)
    memset(to, 0, n * sizeof(T));
  else
    for (int i = 0; i < n; ++i)
      to[i * stride] = T{};
}

// ---- statistics --------------------------------------------------------------------------------

// Of the others in a piece.
template <class A> struct Statistics {
  A max, min;    // of z; max is never -inf, so that z - max is no NaN where z is
  A mass, total; // sums of e = exp(z - max), and of z - max where z is not -inf
  int count;     // classes that are there
};

template <class A> constexpr A lowest = sizeof(A) == 8 ? A(-1.7e308) : A(-3.4e38f);

template <class A> void find_range(const A* z, int n, int y, Statistics<A>* result) {
  // Any other class may stand in for what is absent.
  const A neutral = z[y == 0 && n > 1 ? 1 : 0];
  V<A> high[unroll], low[unroll];
  for (int u = 0; u < unroll; ++u)
    high[u] = low[u] = fill(neutral);
  alignas(64) A copy[block<A>];
  for (int at = 0; at < n; at += block<A>) {
    const A* from = whole_block<A>(z, at, n, y, neutral, copy);
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u) {
      const V<A> z_u = load(from + u * lanes<A>);
      high[u] = max<A>(z_u, high[u]);
      low[u] = min<A>(z_u, low[u]);
    }
  }
  result->max = max_across<A>(max<A>(max<A>(high[0], high[1]), max<A>(high[2], high[3])));
  result->min = min_across<A>(min<A>(min<A>(low[0], low[1]), min<A>(low[2], low[3])));
}

// e = exp(z - max), and its sum; also that of z - max, which is -inf if a class is not there. While
// it computes, it fetches the memory at `next`, of which Bytes belong to a block of z.
template <class A, int Bytes>
void exponentials(const A* z, int n, int y, A* e, const char* next, Statistics<A>* result) {
  const A top = result->max;
  V<A> mass[unroll] = {}, total[unroll] = {};
  alignas(64) A copy[block<A>];
  for (int at = 0; at < n; at += block<A>) {
    const A* from = whole_block<A>(z, at, n, y, A(-INFINITY), copy);
#pragma GCC unroll 8
    for (int byte = 0; byte < Bytes; byte += 64)
      __builtin_prefetch(next + byte);
    next += Bytes;
    V<A> d[unroll];
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u) {
      d[u] = load(from + u * lanes<A>) - top;
      const V<A> e_u = exp_nonpositive<A>(d[u]);
      store(e + at + u * lanes<A>, e_u);
      mass[u] += e_u;
    }
    if (from == copy)
      for (int u = 0; u < unroll; ++u)
        d[u] = d[u] == A(-INFINITY) ? fill(A(0)) : d[u];
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u)
      total[u] += d[u];
  }
  result->mass = sum_across<A>(add_up<A>(mass));
  result->total = sum_across<A>(add_up<A>(total));
}

// The count and total of those that are there, where some class is not.
template <class A> void count_present(const A* z, int n, int y, Statistics<A>* result) {
  result->count = 0;
  double total = 0;
  for (int i = 0; i < n; ++i)
    if (i != y && z[i] != A(-INFINITY)) {
      result->count += 1;
      total += z[i] - result->max;
    }
  result->total = A(total);
}

// The statistics of the others, and e. `next` is what will be read from memory after this piece.
template <class T, class A = typename AccumulatorOf<T>::A>
Statistics<A> measure(const A* z, int n, int y, A* e, const T* next) {
  const bool has_target = y >= 0 && y < n;
  Statistics<A> s = {lowest<A>, A(INFINITY), 0, 0, n - has_target};
  if (s.count > 0)
    find_range(z, n, has_target ? y : -1, &s);
  const bool holes = s.min == A(-INFINITY);
  if (s.max < lowest<A>) // all of them are holes
    s.max = lowest<A>;
  constexpr int bytes = block<A> * sizeof(T);
  exponentials<A, bytes>(z, n, y, e, reinterpret_cast<const char*>(next), &s);
  if (holes)
    count_present(z, n, y, &s);
  return s;
}

// p of a row whose softmax is known, 0 at the target; returns whether a class is not there.
template <class A> bool probabilities(const A* z, int n, int y, A m, A log_s, A* p) {
  alignas(64) A copy[block<A>];
  V<A> least = fill(A(0));
  for (int at = 0; at < n; at += block<A>) {
    const A* from = whole_block<A>(z, at, n, y, A(-INFINITY), copy);
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u) {
      const V<A> z_u = load(from + u * lanes<A>);
      least = min<A>(z_u, least);
      store(p + at + u * lanes<A>, exp_nonpositive<A>((z_u - m) - log_s));
    }
  }
  return min_across<A>(least) == A(-INFINITY);
}

template <class A> int first_equal(const A* z, int n, int y, A value) {
  for (int i = 0; i < n; ++i)
    if (z[i] == value && i != y)
      return i;
  return n - 1;
}

// ---- gradient ----------------------------------------------------------------------------------

// grad = base - q e
template <class A> void affine_along(const A* e, int n, A base, A q, A* grad) {
  for (int at = 0; at < n; at += lanes<A>)
    store(grad + at, base - q * load(e + at));
}

// Absent classes have no gradient.
template <class A> void mend_holes(const A* z, int n, A* grad) {
  for (int i = 0; i < n; ++i)
    grad[i] = z[i] == A(-INFINITY) ? A(0) : grad[i];
}

} // namespace anl::cpu
