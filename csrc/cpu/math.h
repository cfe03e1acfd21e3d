// exp, log and their kin on SIMD values: polynomials of our own, since a library call an element
// costs more than a whole loss. tests/cpu/test_math.py holds the errors stated here.
//
//   exp              1.5 ulp (units in the last place); denormal results too, to 1 of theirs
//   exp_nonpositive  2.7 ulp in float for x >= -20, 5 below; 1.5 in double; 0 for results below
//                    2^-1/2 times the smallest normal number
//   expm1            2.5 ulp for x <= 88
//   log              1 ulp on normal positive numbers; log(0) = -inf
//   log1p            2 ulp above -1
#pragma once

#include "../math_interface.h"
#include "simd.h"

namespace anl::cpu {

template <class A> struct ExpConstants;

// exp(r) = 1 + r + r^2 c(r) on |r| <= log(2) / 2: polynomials of the least relative error with
// these first two coefficients, 3.1e-9 (c) and, one degree less, 1.0e-7 (rough), about one ulp.
template <> struct ExpConstants<float> {
  static constexpr int bias = 127, mantissa_bits = 23, rough_terms = 4, terms = 5;
  static constexpr float round = 12582912.0f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  // One number for log(2) where speed counts: its error, 1.9e-9 n, is half an ulp at x = -20.
  static constexpr float ln2 = 0x1.62e43p-1f, ln2_rest = 0;
#else // n times it would be rounded, by up to 68 ulp of the result
  static constexpr float ln2 = ln2_high, ln2_rest = ln2_low;
#endif
  static constexpr float lowest = -88.0f, near = -86.0f, vanishing = -105.0f, highest = 89.0f;
  static constexpr float log2e = 1.44269504f;
  static constexpr float c[] = {0x1.fffffcp-2f, 0x1.555492p-3f, 0x1.5558f2p-5f, 0x1.1239f2p-7f,
                                0x1.6a241ap-10f};
  static constexpr float rough[] = {0x1.fffdfcp-2f, 0x1.5557aep-3f, 0x1.572a1ep-5f, 0x1.10626fp-7f};
};

// The Taylor series: its remainder is 4e-18.
template <> struct ExpConstants<double> {
  static constexpr int bias = 1023, mantissa_bits = 52, rough_terms = 12, terms = 12;
  static constexpr double round = 6755399441055744.0;
  static constexpr double ln2_high = 0x1.62e42fee00000p-1, ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr double ln2 = ln2_high, ln2_rest = ln2_low;
  static constexpr double lowest = -709.0, near = -707.0, vanishing = -746.0, highest = 710.0;
  static constexpr double log2e = 0x1.71547652b82fep+0;
  static constexpr double c[] = {1 / 2.0,       1 / 6.0,        1 / 24.0,        1 / 120.0,
                                 1 / 720.0,     1 / 5040.0,     1 / 40320.0,     1 / 362880.0,
                                 1 / 3628800.0, 1 / 39916800.0, 1 / 479001600.0, 1 / 6227020800.0};
  static constexpr const double* rough = c;
};

// exp(x) = 2^n (1 + tail).
template <class A> struct ExpParts {
  I<A> n;
  V<A> tail;
};

template <class A> ANL_INLINE V<A> power_of_two(I<A> n) {
  using C = ExpConstants<A>;
  return (V<A>)((n + C::bias) << C::mantissa_bits);
}

template <class A> ANL_INLINE ExpParts<A> exp_parts(V<A> x) {
  using C = ExpConstants<A>;
  const V<A> shifted = x * C::log2e + C::round; // its last bits are n
  const V<A> n = shifted - C::round;
  const V<A> r = n * -C::ln2_low + (n * -C::ln2_high + x);
  V<A> c = fill(C::c[C::terms - 1]);
#pragma GCC unroll 16
  for (int i = C::terms - 2; i >= 0; --i)
    c = c * r + C::c[i];
  return {(I<A>)shifted - (I<A>)fill(C::round), c * (r * r) + r};
}

// exp(x) for x <= 0 in the fewest instructions: an element of a sweep costs little else. The scale
// is the last bits of `shifted`, moved to where the exponent is; at the low end it is 0. If every x
// is `near`, above C::near, the same comes without the clamp, and by an addition of exponents.
template <class A, bool near = false> ANL_INLINE V<A> exp_nonpositive(V<A> x) {
  using C = ExpConstants<A>;
  constexpr A round = near ? C::round : C::round + C::bias;
  if (!near)
    x = max<A>(fill(C::lowest), x); // a NaN stays one
  const V<A> shifted = x * C::log2e + round;
  const V<A> n = shifted - round;
  V<A> r = x - n * C::ln2;
  if (C::ln2_rest != 0)
    r = r - n * C::ln2_rest;
  V<A> e = fill(C::rough[C::rough_terms - 1]);
#pragma GCC unroll 16
  for (int i = C::rough_terms - 2; i >= 0; --i)
    e = e * r + C::rough[i];
  e = (e * r + A(1)) * r + A(1);
  const I<A> scale = (I<A>)shifted << C::mantissa_bits;
  return near ? (V<A>)((I<A>)e + scale) : e * (V<A>)scale;
}

template <class A> struct VectorMath {
  using Element = A;
  using Vec = V<A>;
  using C = ExpConstants<A>;

  static ANL_INLINE Vec fill(A a) { return cpu::fill(a); }
  static ANL_INLINE Vec select(I<A> c, Vec a, Vec b) { return c ? a : b; }
  static ANL_INLINE bool all(I<A> c) { return cpu::all(c); }

  static ANL_INLINE Vec exp_nonpositive(Vec x) { return cpu::exp_nonpositive<A>(x); }

  static ANL_INLINE Vec exp(Vec x) {
    x = x < C::vanishing ? fill(C::vanishing) : x;
    x = x > C::highest ? fill(C::highest) : x;
    // In two factors: 2^128 and 2^-149 are not normal floats, but their roots are.
    const ExpParts<A> e = exp_parts<A>(x);
    const I<A> half = e.n >> 1;
    return (e.tail + A(1)) * power_of_two<A>(half) * power_of_two<A>(e.n - half);
  }

  static ANL_INLINE Vec expm1(Vec x) {
    x = x < C::lowest ? fill(C::lowest) : x;
    const ExpParts<A> e = exp_parts<A>(x > C::highest ? fill(C::highest) : x);
    const Vec scale = power_of_two<A>(e.n);
    return e.tail * scale + (scale - A(1));
  }

  static ANL_INLINE Vec log(Vec x) {
    // x = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
    const I<A> root = (I<A>)fill(A(0x1.6a09e667f3bcdp-1));
    const I<A> exponent = ((I<A>)x - root) >> C::mantissa_bits;
    const Vec f = (Vec)((I<A>)x - (exponent << C::mantissa_bits)) - A(1);
    const Vec e = __builtin_convertvector(exponent, Vec);
    // log(1 + f) = 2 atanh(s) = f - f^2/2 + s (f^2/2 + s^2 (2/3 + 2/5 s^2 + ...))
    const Vec s = f / (f + A(2)), s2 = s * s, half_square = A(0.5) * f * f;
    constexpr int terms = sizeof(A) == 8 ? 10 : 4;
    Vec series = fill(A(2.0 / (2 * terms + 1)));
#pragma GCC unroll 16
    for (int i = terms - 1; i >= 1; --i)
      series = series * s2 + A(2.0 / (2 * i + 1));
    const Vec small = s * (half_square + s2 * series) + e * C::ln2_low;
    const Vec result = e * C::ln2_high + (f - (half_square - small));
    const Vec edge = x == A(0) ? fill(A(-INFINITY)) : x; // infinity and NaN stay what they are
    return (x > A(0)) & (x < A(INFINITY)) ? result : edge;
  }

  static ANL_INLINE Vec log1p(Vec x) {
    const Vec u = x + A(1);
    const Vec lost = x < A(1) ? x - (u - A(1)) : A(1) - (u - x); // in forming 1 + x
    return log(u) + (u < A(INFINITY) ? lost / u : fill(A(0)));
  }
};

} // namespace anl::cpu

namespace anl {
template <> struct Math<cpu::V<float>> : cpu::VectorMath<float> {};
template <> struct Math<cpu::V<double>> : cpu::VectorMath<double> {};
} // namespace anl
