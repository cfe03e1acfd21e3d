// SIMD values in the compiler's own vector types (GCC, Clang), as wide as the flags of the file
// allow, and how they meet memory. A is the element, float or double; V<A> a register of them.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define ANL_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define ANL_VECTOR_BYTES 32
#else
#define ANL_VECTOR_BYTES 16
#endif

#define ANL_INLINE inline __attribute__((always_inline))

namespace anl::cpu {

// Storage types: their bits, which only the conversions below look into.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class A> struct VectorOf;
template <> struct VectorOf<float> {
  typedef int32_t Int;
  typedef float V __attribute__((vector_size(ANL_VECTOR_BYTES)));
  typedef int32_t I __attribute__((vector_size(ANL_VECTOR_BYTES)));
};
template <> struct VectorOf<double> {
  typedef int64_t Int;
  typedef double V __attribute__((vector_size(ANL_VECTOR_BYTES)));
  typedef int64_t I __attribute__((vector_size(ANL_VECTOR_BYTES)));
};
template <class A> using V = typename VectorOf<A>::V;
template <class A> using I = typename VectorOf<A>::I;
template <class A> using Int = typename VectorOf<A>::Int;
template <class A> constexpr int lanes = ANL_VECTOR_BYTES / sizeof(A);

// The type of all arithmetic on a storage type.
template <class T> struct AccumulatorOf {
  using A = float;
};
template <> struct AccumulatorOf<double> {
  using A = double;
};

template <class A> ANL_INLINE V<A> fill(A a) { return a - V<A>{}; }

template <class A> ANL_INLINE V<A> load(const A* p) {
  V<A> v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class A> ANL_INLINE void store(A* p, V<A> v) { memcpy(p, &v, sizeof v); }
template <class A> ANL_INLINE I<A> load_ints(const Int<A>* p) {
  I<A> v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class A> ANL_INLINE void store_ints(Int<A>* p, I<A> v) { memcpy(p, &v, sizeof v); }

// a where it is greater (less) than b, else b, also where either is NaN: one instruction on x86.
template <class A> ANL_INLINE V<A> max(V<A> a, V<A> b);
template <class A> ANL_INLINE V<A> min(V<A> a, V<A> b);
#if ANL_VECTOR_BYTES == 64
#define ANL_INTRINSIC(name, suffix) _mm512_##name##_##suffix
#elif ANL_VECTOR_BYTES == 32
#define ANL_INTRINSIC(name, suffix) _mm256_##name##_##suffix
#elif defined(__SSE2__)
#define ANL_INTRINSIC(name, suffix) _mm_##name##_##suffix
#endif
#ifdef ANL_INTRINSIC
template <> ANL_INLINE V<float> max<float>(V<float> a, V<float> b) {
  return (V<float>)ANL_INTRINSIC(max, ps)(a, b);
}
template <> ANL_INLINE V<float> min<float>(V<float> a, V<float> b) {
  return (V<float>)ANL_INTRINSIC(min, ps)(a, b);
}
template <> ANL_INLINE V<double> max<double>(V<double> a, V<double> b) {
  return (V<double>)ANL_INTRINSIC(max, pd)(a, b);
}
template <> ANL_INLINE V<double> min<double>(V<double> a, V<double> b) {
  return (V<double>)ANL_INTRINSIC(min, pd)(a, b);
}
#undef ANL_INTRINSIC
#else
template <class A> ANL_INLINE V<A> max(V<A> a, V<A> b) { return a > b ? a : b; }
template <class A> ANL_INLINE V<A> min(V<A> a, V<A> b) { return a < b ? a : b; }
#endif

#if __has_builtin(__builtin_shufflevector)
#define ANL_SHUFFLE(a, b, Places, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define ANL_SHUFFLE(a, b, Places, ...) __builtin_shuffle(a, b, Places{__VA_ARGS__})
#endif

// Lanes combined pairwise, in a fixed order: each half with the other, and then of one half. By
// shuffles: an array of lanes would be a loop over memory, a tenth of a short row.
template <int half, class Places, class Vec, class F, int... lane>
ANL_INLINE Vec halves(Vec v, F combine, std::integer_sequence<int, lane...> all) {
  v = combine(v, ANL_SHUFFLE(v, v, Places, (lane + half) % int(sizeof...(lane))...));
  if constexpr (half > 1)
    v = halves<half / 2, Places>(v, combine, all);
  return v;
}
template <class Places, class Vec, class F> ANL_INLINE auto across(Vec v, F combine) {
  constexpr int count = sizeof v / sizeof v[0];
  return halves<count / 2, Places>(v, combine, std::make_integer_sequence<int, count>())[0];
}
template <class A> ANL_INLINE A sum_across(V<A> v) {
  return across<I<A>>(v, [](V<A> a, V<A> b) { return a + b; });
}
template <class A> ANL_INLINE A max_across(V<A> v) {
  return across<I<A>>(v, [](V<A> a, V<A> b) { return b > a ? b : a; });
}
template <class A> ANL_INLINE A min_across(V<A> v) {
  return across<I<A>>(v, [](V<A> a, V<A> b) { return b < a ? b : a; });
}

ANL_INLINE bool all(I<float> mask) {
#if ANL_VECTOR_BYTES == 64
  return _mm512_movepi32_mask((__m512i)mask) == 0xffff;
#elif ANL_VECTOR_BYTES == 32
  return _mm256_movemask_ps((__m256)mask) == 0xff;
#else
  return (mask[0] & mask[1] & mask[2] & mask[3]) != 0;
#endif
}
ANL_INLINE bool all(I<double> mask) {
#if ANL_VECTOR_BYTES == 64
  return _mm512_movepi64_mask((__m512i)mask) == 0xff;
#elif ANL_VECTOR_BYTES == 32
  return _mm256_movemask_pd((__m256d)mask) == 0xf;
#else
  return (mask[0] & mask[1]) != 0;
#endif
}

// ---- conversions -------------------------------------------------------------------------------

typedef uint16_t Halfwords __attribute__((vector_size(ANL_VECTOR_BYTES / 2)));
typedef uint32_t Words __attribute__((vector_size(ANL_VECTOR_BYTES)));

ANL_INLINE float widen(float x) { return x; }
ANL_INLINE double widen(double x) { return x; }
ANL_INLINE float widen(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}
ANL_INLINE float widen(Half x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  // Shifted into place a half is 2^112 too small; infinity and NaN keep a full exponent.
  uint32_t bits = rest << 13;
  float result;
  memcpy(&result, &bits, sizeof result);
  result *= 0x1p112f;
  memcpy(&bits, &result, sizeof bits);
  bits |= sign | (rest >= 0x7c00 ? 0x7f800000u : 0u);
  memcpy(&result, &bits, sizeof result);
  return result;
#endif
}

// Round to nearest even.
template <class T> T narrow(float x);
template <> ANL_INLINE float narrow<float>(float x) { return x; }
template <> ANL_INLINE BFloat16 narrow<BFloat16>(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return {x != x ? uint16_t(0x7fc0) : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
template <> ANL_INLINE Half narrow<Half>(float x) {
#if defined(__F16C__)
  return {uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#else
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000)
    return {uint16_t(sign | 0x7e00)};
  if (bits >= 0x477ff000) // rounds to more than the largest half
    return {uint16_t(sign | 0x7c00)};
  if (bits < 0x38800000) { // denormal: the addition rounds at the last place of a half
    float magnitude;
    memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, sizeof bits);
    return {uint16_t(sign | (bits - 0x3f000000))};
  }
  bits += 0xc8000fff + ((bits >> 13) & 1);
  return {uint16_t(sign | (bits >> 13))};
#endif
}
template <class T> ANL_INLINE T narrow(double x) { return x; }

ANL_INLINE V<float> load_wide(const float* p) { return load(p); }
ANL_INLINE V<double> load_wide(const double* p) { return load(p); }
ANL_INLINE V<float> load_wide(const BFloat16* p) {
  Halfwords h;
  memcpy(&h, p, sizeof h);
  return (V<float>)(__builtin_convertvector(h, Words) << 16);
}
ANL_INLINE V<float> load_wide(const Half* p) {
#if ANL_VECTOR_BYTES == 64
  return (V<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif ANL_VECTOR_BYTES == 32
  return (V<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  V<float> v;
  for (int i = 0; i < lanes<float>; ++i)
    v[i] = widen(p[i]);
  return v;
#endif
}

template <class T> struct Narrowed { // what a vector becomes in memory
  typedef Halfwords Type;
};
template <> struct Narrowed<float> {
  typedef V<float> Type;
};
template <> struct Narrowed<double> {
  typedef V<double> Type;
};

ANL_INLINE V<float> narrow_vector(V<float> v, const float*) { return v; }
ANL_INLINE V<double> narrow_vector(V<double> v, const double*) { return v; }
// A NaN with a full payload would round to zero here; what kernels compute is either the
// processor's own NaN or one out of 16 bits.
ANL_INLINE Halfwords narrow_vector(V<float> v, const BFloat16*) {
  const Words bits = (Words)v;
  return __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Halfwords);
}
ANL_INLINE Halfwords narrow_vector(V<float> v, const Half*) {
#if ANL_VECTOR_BYTES == 64
  return (Halfwords)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif ANL_VECTOR_BYTES == 32
  return (Halfwords)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#else
  Halfwords h;
  for (int i = 0; i < lanes<float>; ++i)
    h[i] = narrow<Half>(v[i]).bits;
  return h;
#endif
}

// ---- stores that pass the cache by -------------------------------------------------------------

ANL_INLINE void stream(void* p, V<float> v) {
#if ANL_VECTOR_BYTES == 64
  _mm512_stream_ps((float*)p, (__m512)v);
#elif ANL_VECTOR_BYTES == 32
  _mm256_stream_ps((float*)p, (__m256)v);
#else
  memcpy(p, &v, sizeof v);
#endif
}
ANL_INLINE void stream(void* p, V<double> v) { stream(p, (V<float>)v); }
ANL_INLINE void stream(void* p, Halfwords v) {
#if ANL_VECTOR_BYTES == 64
  _mm256_stream_si256((__m256i*)p, (__m256i)v);
#elif ANL_VECTOR_BYTES == 32
  _mm_stream_si128((__m128i*)p, (__m128i)v);
#else
  memcpy(p, &v, sizeof v);
#endif
}
// A vector to storage: past the cache, aligned, or through it.
template <class T, class Vec> ANL_INLINE void store_narrow(T* to, Vec v, bool past_cache) {
  const auto narrowed = narrow_vector(v, to);
  if (past_cache)
    stream(to, narrowed);
  else
    memcpy(to, &narrowed, sizeof narrowed);
}

template <class T> ANL_INLINE T minus_infinity() {
  return narrow<T>(typename AccumulatorOf<T>::A(-INFINITY));
}

// Two neighbouring vectors, and back.
template <class T, class Vec> ANL_INLINE void load_pair(const T* p, Vec* v) {
  v[0] = load_wide(p);
  v[1] = load_wide(p + sizeof v[0] / sizeof v[0][0]);
}
template <class T, class Vec> ANL_INLINE void store_pair(T* to, const Vec* v, bool past_cache) {
  store_narrow(to, v[0], past_cache);
  store_narrow(to + sizeof v[0] / sizeof v[0][0], v[1], past_cache);
}
#if ANL_VECTOR_BYTES == 64
// Words moved to where they belong, one instruction a vector; widened each by itself it is two, and
// five to narrow instead of three and a half.
ANL_INLINE void load_pair(const BFloat16* p, V<float>* v) {
  const I<float> place = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const __m512i both = _mm512_loadu_si512(p);
  for (int i = 0; i < 2; ++i)
    v[i] = (V<float>)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, (__m512i)((place + 16 * i) << 16),
                                                    both);
}
ANL_INLINE void store_pair(BFloat16* to, const V<float>* v, bool past_cache) {
  const I<float> place = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  __m512i rounded[2];
  for (int i = 0; i < 2; ++i) { // as narrow_vector does
    const __m512i bits = (__m512i)v[i], down = (__m512i)((I<float>)bits + 0x7fff);
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    rounded[i] = _mm512_mask_add_epi32(down, odd, down, _mm512_set1_epi32(1));
  }
  const __m512i high_words = (__m512i)(place * 0x40004 + 0x30001);
  const __m512i both = _mm512_permutex2var_epi16(rounded[0], high_words, rounded[1]);
  if (past_cache) {
    _mm256_stream_si256((__m256i*)to, _mm512_castsi512_si256(both));
    _mm256_stream_si256((__m256i*)to + 1, _mm512_extracti64x4_epi64(both, 1));
  } else {
    _mm512_storeu_si512(to, both);
  }
}
#endif

// Before another thread may read what was streamed.
ANL_INLINE void finish_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

} // namespace anl::cpu
