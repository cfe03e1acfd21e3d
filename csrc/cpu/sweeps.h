// Sweeps over a contiguous piece of a row that know no term: in and out of memory, the softmax's
// partials, and the part of the gradient that is affine in p.
#pragma once

#include "functors.h"

namespace anl::cpu {

// Classes in a piece. A row is always cut at its multiples, so that the results of a row are the
// same however many threads share it. z and e of a piece fit in the first-level cache.
template <class A> constexpr int piece_size = 16384 / sizeof(A);

// ---- in and out --------------------------------------------------------------------------------

// n elements side by side, in `buffer` unless they are.
template <class T> const T* gathered(const T* from, int64_t stride, int n, T* buffer) {
  if (stride == 1)
    return from;
  for (int i = 0; i < n; ++i)
    buffer[i] = from[i * stride];
  return buffer;
}

template <class T> void widen_all(const T* from, int n, Accumulator<T>* to) {
  constexpr int width = lanes<Accumulator<T>>;
  int i = 0;
  for (; i + width <= n; i += width)
    store(to + i, load_wide(from + i));
  for (; i < n; ++i)
    to[i] = widen(from[i]);
}

template <class T>
void narrow_all(const Accumulator<T>* from, int n, T* to, bool past_cache = false) {
  constexpr int width = lanes<Accumulator<T>>;
  int i = 0;
  for (; i + width <= n; i += width)
    store_narrow(to + i, load(from + i), past_cache);
  for (; i < n; ++i)
    to[i] = narrow<T>(from[i]);
}

template <class T> void scatter(const T* from, int n, T* to, int64_t stride) {
  for (int i = 0; i < n; ++i)
    to[i * stride] = from[i];
}

// Whether vectors of storage can be streamed to an address.
template <class T> bool streamable(const T* to) {
  return reinterpret_cast<uintptr_t>(to) % sizeof(typename Narrowed<T>::Type) == 0;
}

template <class T> void zero_out(T* to, int64_t stride, int n) {
  if (stride == 1)
    memset(to, 0, n * sizeof(T));
  else
    for (int i = 0; i < n; ++i)
      to[i * stride] = T{};
}

// ---- partials --------------------------------------------------------------------------------

// Of the others in a piece.
template <class A> struct Partials {
  A max, min;    // of z; max is never -inf, so that z - max is no NaN where z is
  A mass, total; // sums of e = exp(z - max), and of z - max where z is not -inf
  int count;     // classes that are there
};

// The lowest finite number, which is what masks often are made of.
template <class A> constexpr A lowest = sizeof(A) == 8 ? A(-__DBL_MAX__) : A(-__FLT_MAX__);

// Words in the order of the numbers that they are: both 16-bit types have their sign first.
typedef int16_t Order __attribute__((vector_size(ANL_VECTOR_BYTES)));
template <class X> ANL_INLINE X in_order(X word) { return word ^ ((word >> 15) & 0x7fff); }

// max and min of 16-bit numbers, two vectors of them in one; false if one is NaN.
template <class T>
bool find_range_of_words(const T* z, int n, int y, T neutral, Partials<float>* result) {
  constexpr int size = block<float>, width = sizeof(Order) / sizeof(T);
  Order high = Order{} + in_order(int16_t(neutral.bits)), low = high;
  alignas(64) T copy[size];
  for (int at = 0; at < n; at += size) {
    const T* from = whole_block(z, at, n, y, neutral, copy);
#pragma GCC unroll 4
    for (int i = 0; i < size; i += width) {
      Order word;
      memcpy(&word, from + i, sizeof word);
      word = in_order(word);
      high = word > high ? word : high;
      low = word < low ? word : low;
    }
  }
  const int16_t highest = across<Order>(high, [](Order a, Order b) { return b > a ? b : a; });
  const int16_t least = across<Order>(low, [](Order a, Order b) { return b < a ? b : a; });
  result->max = widen(T{uint16_t(in_order(highest))});
  result->min = widen(T{uint16_t(in_order(least))});
  return result->max >= result->min;
}

template <class T, class A = Accumulator<T>>
void find_range(const T* z, int n, int y, Partials<A>* result) {
  // Any other class may stand in for what is absent.
  const T neutral = z[y == 0 && n > 1 ? 1 : 0];
  if constexpr (sizeof(T) == 2)
    if (find_range_of_words(z, n, y, neutral, result))
      return;
  V<A> high[unroll], low[unroll];
  for (int u = 0; u < unroll; ++u)
    high[u] = low[u] = fill(A(widen(neutral)));
  alignas(64) T copy[block<A>];
  for (int at = 0; at < n; at += block<A>) {
    const T* from = whole_block(z, at, n, y, neutral, copy);
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u) {
      const V<A> z_u = load_wide(from + u * lanes<A>);
      high[u] = max<A>(z_u, high[u]);
      low[u] = min<A>(z_u, low[u]);
    }
  }
  result->max = max_across<A>(max<A>(max<A>(high[0], high[1]), max<A>(high[2], high[3])));
  result->min = min_across<A>(min<A>(min<A>(low[0], low[1]), min<A>(low[2], low[3])));
}

// Fetches a block of the memory at `next`, which is null or read after this piece of n classes. Of
// long rows into the second-level cache: a piece and its e leave no room in the first (float32: all
// sweeps 1.25 times as fast; of short ones 0.9 times).
template <class T> ANL_INLINE void fetch_block(const T* next, int at, int n) {
  const bool fills_first = n == piece_size<Accumulator<T>>;
  if (next)
#pragma GCC unroll 8
    for (int i = 0; i < block<Accumulator<T>>; i += 64 / sizeof(T))
      fills_first ? __builtin_prefetch(next + at + i, 0, 2) : __builtin_prefetch(next + at + i);
}

// e = exp(z - max), and its sum; also that of z - max, which is -inf if a class is not there.
template <class T, class A = Accumulator<T>>
void exponentials(const T* z, int n, int y, A* e, const T* next, Partials<A>* result) {
  const A top = result->max;
  const bool near = result->min - top > ExpConstants<A>::near;
  V<A> mass[unroll] = {}, total[unroll] = {};
  alignas(64) T copy[block<A>];
  for (int at = 0; at < n; at += block<A>) {
    const T* from = whole_block(z, at, n, y, minus_infinity<T>(), copy);
    fetch_block(next, at, n);
    V<A> d[unroll], e_u[unroll];
    load_block(from, d);
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u)
      d[u] -= top;
    if (near && from != copy) {
#pragma GCC unroll 4
      for (int u = 0; u < unroll; ++u)
        e_u[u] = exp_nonpositive<A, true>(d[u]);
    } else {
      for (int u = 0; u < unroll; ++u)
        e_u[u] = exp_nonpositive<A>(d[u]);
      for (int u = 0; u < unroll && from == copy; ++u)
        d[u] = d[u] == A(-INFINITY) ? fill(A(0)) : d[u];
    }
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u) {
      store(e + at + u * lanes<A>, e_u[u]);
      mass[u] += e_u[u];
      total[u] += d[u];
    }
  }
  result->mass = sum_across<A>(add_up<A>(mass));
  result->total = sum_across<A>(add_up<A>(total));
  if (near && result->total != result->total) // a NaN's payload may have moved into the exponent
    result->mass = NAN;
}

// The count and total of those that are there, where some class is not.
template <class T, class A = Accumulator<T>>
void count_present(const T* z, int n, int y, Partials<A>* result) {
  result->count = 0;
  double total = 0;
  for (int i = 0; i < n; ++i) {
    const A z_i = widen(z[i]);
    if (i != y && z_i != A(-INFINITY)) {
      result->count += 1;
      total += z_i - result->max;
    }
  }
  result->total = A(total);
}

// The partials of the others, and e. `next` is what will be read from memory after this piece.
template <class T, class A = Accumulator<T>>
Partials<A> measure(const T* z, int n, int y, A* e, const T* next) {
  const bool has_target = y >= 0;
  Partials<A> s = {lowest<A>, A(INFINITY), 0, 0, n - has_target};
  if (s.count > 0)
    find_range(z, n, y, &s);
  const bool holes = s.min == A(-INFINITY);
  if (s.max < lowest<A>) // all of them are holes
    s.max = lowest<A>;
  exponentials(z, n, y, e, next, &s);
  if (holes)
    count_present(z, n, y, &s);
  return s;
}

// p of a row whose softmax is known, 0 at the target; returns whether a class is not there.
template <class T, class A = Accumulator<T>>
bool probabilities(Piece<T> piece, A* p, const T* next) {
  alignas(64) T copy[block<A>];
  V<A> least = fill(A(0));
  for (int at = 0; at < piece.n; at += block<A>) {
    const T* from = whole_block(piece.z, at, piece.n, piece.y, minus_infinity<T>(), copy);
    fetch_block(next, at, piece.n);
    V<A> z[unroll];
    load_block(from, z);
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u) {
      if (from != copy)
        least = min<A>(z[u], least);
      store(p + at + u * lanes<A>, exp_nonpositive<A>((z[u] - piece.m) - piece.log_s));
    }
    for (int i = at; from == copy && i < at + block<A> && i < piece.n; ++i)
      least[0] = widen(piece.z[i]) < least[0] ? widen(piece.z[i]) : least[0];
  }
  return min_across<A>(least) == A(-INFINITY);
}

template <class T, class A = Accumulator<T>> int first_equal(const T* z, int n, int y, A value) {
  int i = 0;
  for (; i + block<A> <= n; i += block<A>) {
    I<A> other = I<A>{} - 1;
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u)
      other &= load_wide(z + i + u * lanes<A>) != value;
    if (!all(other))
      break;
  }
  for (; i < n; ++i)
    if (widen(z[i]) == value && i != y)
      return i;
  return n - 1;
}

// ---- gradient ----------------------------------------------------------------------------------

// base - q e, for no dense term: to storage, or as numbers for add_slopes.
template <class T, class Out, class A = Accumulator<T>>
void affine_along(const Piece<T>& piece, Affine<A> affine, Out* out, bool past_cache) {
  gradient_of_piece(Functor<A>(), piece, affine, A(0), out, past_cache);
}

// Absent classes have no gradient.
template <class T> void mend_holes(const T* z, int n, T* grad) {
  for (int i = 0; i < n; ++i)
    if (widen(z[i]) == -INFINITY)
      grad[i] = narrow<T>(Accumulator<T>(0));
}

} // namespace anl::cpu
