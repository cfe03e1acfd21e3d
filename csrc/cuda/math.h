// What terms.h asks of a number, for one value a thread.
#pragma once

#include "device.h"

#include "../math_interface.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstring>

namespace anl {

template <class A> struct ScalarMath {
  using Element = A;
  ANL_FN static A fill(double a) { return A(a); }
  ANL_FN static A select(bool c, A a, A b) { return c ? a : b; }
  ANL_FN static bool all(bool c) { return c; }
};

template <> struct Math<float> : ScalarMath<float> {
  ANL_FN static float exp(float x) { return expf(x); }
  ANL_FN static float exp_nonpositive(float x) { return expf(x); }
  ANL_FN static float expm1(float x) { return expm1f(x); }
  ANL_FN static float log(float x) { return logf(x); }
  ANL_FN static float log1p(float x) { return log1pf(x); }
};

template <> struct Math<double> : ScalarMath<double> {
  ANL_FN static double exp(double x) { return ::exp(x); }
  ANL_FN static double exp_nonpositive(double x) { return ::exp(x); }
  ANL_FN static double expm1(double x) { return ::expm1(x); }
  ANL_FN static double log(double x) { return ::log(x); }
  ANL_FN static double log1p(double x) { return ::log1p(x); }
};

} // namespace anl

namespace anl::cuda {

// exp of a difference to a maximum, once for every class: three instructions. The difference is
// formed first, since the classes that matter are those where it is small, and exact.
ANL_DEVICE float exp_below(float d) { return exp2_fast(d * 1.44269504f); }
ANL_DEVICE double exp_below(double d) { return ::exp(d); }

// The larger and the smaller; a NaN loses.
ANL_DEVICE float larger(float a, float b) { return fmaxf(a, b); }
ANL_DEVICE double larger(double a, double b) { return fmax(a, b); }
ANL_DEVICE float smaller(float a, float b) { return fminf(a, b); }
ANL_DEVICE double smaller(double a, double b) { return fmin(a, b); }

template <class A> constexpr A lowest_number = A(-3.4028234663852886e38);
template <> constexpr double lowest_number<double> = -1.7976931348623157e308;

} // namespace anl::cuda
