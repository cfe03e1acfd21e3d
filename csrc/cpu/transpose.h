// Numbers from rows to columns.
#pragma once

#include "simd.h"

namespace anl::cpu {

template <class A> struct Four {
  typedef A V __attribute__((vector_size(4 * sizeof(A))));
  static ANL_INLINE V load(const A* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static ANL_INLINE void store(A* p, V v) { memcpy(p, &v, sizeof v); }
};

// Four rows of four.
template <class A>
ANL_INLINE void transpose_block(const A* from, int64_t from_stride, A* to, int64_t to_stride) {
  using V4 = typename Four<A>::V;
  using I4 [[maybe_unused]] = typename Four<Int<A>>::V;
  const V4 a0 = Four<A>::load(from), a1 = Four<A>::load(from + from_stride),
           a2 = Four<A>::load(from + 2 * from_stride), a3 = Four<A>::load(from + 3 * from_stride);
  const V4 b0 = ANL_SHUFFLE(a0, a2, I4, 0, 4, 1, 5), b1 = ANL_SHUFFLE(a0, a2, I4, 2, 6, 3, 7),
           b2 = ANL_SHUFFLE(a1, a3, I4, 0, 4, 1, 5), b3 = ANL_SHUFFLE(a1, a3, I4, 2, 6, 3, 7);
  Four<A>::store(to, ANL_SHUFFLE(b0, b2, I4, 0, 4, 1, 5));
  Four<A>::store(to + to_stride, ANL_SHUFFLE(b0, b2, I4, 2, 6, 3, 7));
  Four<A>::store(to + 2 * to_stride, ANL_SHUFFLE(b1, b3, I4, 0, 4, 1, 5));
  Four<A>::store(to + 3 * to_stride, ANL_SHUFFLE(b1, b3, I4, 2, 6, 3, 7));
}

// to[k, j] = from[j, k] for (rows, columns) numbers.
template <class A>
void transpose(const A* from, int rows, int columns, int64_t from_stride, A* to,
               int64_t to_stride) {
  if (rows < 4 || columns < 4) {
    for (int j = 0; j < rows; ++j)
      for (int k = 0; k < columns; ++k)
        to[k * to_stride + j] = from[j * from_stride + k];
    return;
  }
  // The last blocks overlap those before them.
  for (int row = 0; row < rows; row += 4)
    for (int column = 0; column < columns; column += 4) {
      const int64_t j = row < rows - 4 ? row : rows - 4;
      const int64_t k = column < columns - 4 ? column : columns - 4;
      transpose_block(from + j * from_stride + k, from_stride, to + k * to_stride + j, to_stride);
    }
}

} // namespace anl::cpu
