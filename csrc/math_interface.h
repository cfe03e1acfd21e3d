// What terms ask of the value they compute on; each backend specialises Math for its own.
#pragma once

#include <math.h>

#ifdef __CUDACC__
#define ANL_FN __host__ __device__ __forceinline__
#define ANL_RARE_FN __host__ __device__ __noinline__
#else
#define ANL_FN inline __attribute__((always_inline))
#define ANL_RARE_FN __attribute__((noinline, cold)) // keeps the registers of a loop for the loop
#endif

namespace anl {

// Element           the scalar type
// fill(a)           a value of it
// select(c, a, b)   a where c holds, else b; c is what comparing two values gives
// all(c)            whether c holds everywhere
// exp, expm1, log, log1p
// exp_nonpositive   exp for arguments that are at most 0, but for their rounding
template <class V> struct Math;

// exp(x), but the smallest normal number where that is less: kernels flush smaller ones to 0.
template <class A> A normal_exp(double x) {
  const double smallest = sizeof(A) == 8 ? 2.2250738585072014e-308 : 1.1754943508222875e-38;
  const double value = ::exp(x);
  return A(value < smallest ? smallest : value);
}

} // namespace anl
