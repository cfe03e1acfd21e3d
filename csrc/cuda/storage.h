// Numbers as they lie in memory: 16 bytes of them are what a thread moves at a time.
#pragma once

#include "math.h"

#include <type_traits>

namespace anl::cuda {

template <class T> struct AccumulatorOf {
  using A = float;
};
template <> struct AccumulatorOf<double> {
  using A = double;
};
// The type of all arithmetic on a storage type.
template <class T> using Accumulator = typename AccumulatorOf<T>::A;

// Numbers in 16 bytes.
template <class T> constexpr int width = 16 / sizeof(T);

template <class T> ANL_DEVICE T narrow(Accumulator<T> x) {
  if constexpr (sizeof(T) == 2)
    return {uint16_t(narrow_pair<T>(x, x))};
  else
    return x;
}

ANL_DEVICE float bits_to_float(uint32_t bits) {
  float number;
  memcpy(&number, &bits, sizeof number);
  return number;
}

template <class T> ANL_DEVICE T minus_infinity() { return narrow<T>(-Accumulator<T>(INFINITY)); }

template <class T> ANL_DEVICE void unpack(Bytes16 packed, Accumulator<T> (&values)[width<T>]) {
  if constexpr (std::is_same_v<T, BFloat16>) { // two instructions a pair; the compiler finds three
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[2 * i] = bits_to_float(packed.words[i] << 16);
      values[2 * i + 1] = bits_to_float(packed.words[i] & 0xffff0000u);
    }
    return;
  }
  T stored[width<T>];
  memcpy(stored, &packed, sizeof packed);
#pragma unroll
  for (int i = 0; i < width<T>; ++i)
    values[i] = widen(stored[i]);
}

template <class T> ANL_DEVICE Bytes16 pack(const Accumulator<T> (&values)[width<T>]) {
  Bytes16 packed;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      packed.words[i] = narrow_pair<T>(values[2 * i], values[2 * i + 1]);
  } else {
    memcpy(&packed, values, sizeof packed);
  }
  return packed;
}

// Elements by which a row starts after a multiple of 16 bytes.
template <class T> ANL_DEVICE int misaligned(const T* row) {
  return int(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
}

} // namespace anl::cuda
