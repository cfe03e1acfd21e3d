// Conversions between the types of numbers, bit for bit as the hardware has them.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

namespace anl::cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

namespace emulation {

inline float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

// Drops the lowest bits of a magnitude, to nearest even.
inline uint32_t round_off(uint32_t magnitude, int bits) {
  const uint32_t odd = magnitude >> bits & 1;
  return (magnitude + (1u << (bits - 1)) - 1 + odd) >> bits;
}

inline uint16_t bfloat16_of(float x) {
  return x != x ? 0x7fff : uint16_t(round_off(bits_of(x), 16));
}

inline uint16_t float16_of(float x) {
  constexpr uint32_t infinity = 0x7c00, overflow = 0x477ff000; // 65520
  constexpr uint32_t normal = 0x38800000, rebias = 112u << 23; // 2^-14
  const uint32_t sign = bits_of(x) >> 16 & 0x8000, magnitude = bits_of(x) & 0x7fffffff;
  if (x != x)
    return 0x7fff;
  if (magnitude >= overflow)
    return uint16_t(sign | infinity);
  if (magnitude >= normal)
    return uint16_t(sign | round_off(magnitude - rebias, 13));
  // The last place of 1/2 is the least Float16: the sum rounds as it should.
  return uint16_t(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
}

} // namespace emulation

inline float widen(BFloat16 x) { return emulation::float_of(uint32_t(x.bits) << 16); }
inline float widen(Float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  if (magnitude >= 0x7c00) // infinite or NaN
    return emulation::float_of(sign | 0x7f800000 | magnitude << 13);
  if (magnitude >= 0x400)
    return emulation::float_of(sign | ((magnitude << 13) + (112u << 23)));
  return emulation::float_of(sign | emulation::bits_of(float(magnitude) * 0x1p-24f));
}
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

inline int log2_of(int power) { return 31 - __builtin_clz(unsigned(power)); }

template <class T> inline uint32_t narrow_pair(float low, float high);
template <> inline uint32_t narrow_pair<BFloat16>(float low, float high) {
  return emulation::bfloat16_of(low) | uint32_t(emulation::bfloat16_of(high)) << 16;
}
template <> inline uint32_t narrow_pair<Float16>(float low, float high) {
  return emulation::float16_of(low) | uint32_t(emulation::float16_of(high)) << 16;
}

template <class T> inline T half_of(uint32_t pair, int which) {
  return {uint16_t(pair >> 16 * which)};
}
// A NaN loses.
template <class T> inline uint32_t larger_pair(uint32_t a, uint32_t b) {
  return narrow_pair<T>(fmaxf(widen(half_of<T>(a, 0)), widen(half_of<T>(b, 0))),
                        fmaxf(widen(half_of<T>(a, 1)), widen(half_of<T>(b, 1))));
}
template <class T> inline uint32_t smaller_pair(uint32_t a, uint32_t b) {
  return narrow_pair<T>(fminf(widen(half_of<T>(a, 0)), widen(half_of<T>(b, 0))),
                        fminf(widen(half_of<T>(a, 1)), widen(half_of<T>(b, 1))));
}

// Subnormal arguments count as 0, where 2^x is 1 all the same.
inline float exp2_fast(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;
}

inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
// The compiler fuses nothing here.
inline float product(float a, float b) { return a * b; }
inline double product(double a, double b) { return a * b; }

} // namespace anl::cuda
