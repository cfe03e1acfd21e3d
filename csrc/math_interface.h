// What terms ask of the value they compute on; each backend specialises Math for its own.
#pragma once

#include <math.h>

#ifdef __CUDACC__
#define ANL_FN __host__ __device__ __forceinline__
#define ANL_RARE_FN __host__ __device__ __noinline__
#elif defined(_MSC_VER)
#define ANL_FN __forceinline
#define ANL_RARE_FN __declspec(noinline)
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

// The least log of a number that is not flushed to 0 by kernels.
template <class A> constexpr double least_log = sizeof(A) == 8 ? -708.396 : -87.336;

} // namespace anl
