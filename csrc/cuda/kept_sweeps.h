// The sweeps of a row that is kept in shared memory, of float arithmetic. Each is a loop without a
// branch that does for a class what most rows need, and no more: the maximum in a sweep of its own,
// so that nothing is rescaled; powers of 2; a clamp as a comparison of logits. What is
// unusual goes the way of row_sweeps.h.
#pragma once

#include "row_sweeps.h"

namespace anl::cuda {

template <class Source> constexpr bool is_kept = false;
template <class T> constexpr bool is_kept<Resident<T>> = sizeof(T) <= 4;

// exp(z - m) as a power of 2 that costs a fused multiply-add: its exponent is off by the rounding
// of m log2(e), by the same for all classes.
class PowerOf2 {
public:
  static constexpr float log2_e = 1.44269504f, ln_2 = 0.693147181f;

  // Beyond, the rounding would leave the exponent's range.
  ANL_DEVICE static bool serves(float m) { return m < 1e9f && m > -1e9f; }

  ANL_DEVICE explicit PowerOf2(float m)
      : shift_(m * log2_e), rounding_(fused(m, log2_e, -shift_)) {}
  ANL_DEVICE float exponent(float z) const { return fused(z, log2_e, -shift_); }
  ANL_DEVICE float rounding() const { return rounding_; }
  // What makes exp(z - m) of a power of 2.
  ANL_DEVICE float correction() const { return exp2_fast(-rounding_); }

private:
  float shift_, rounding_;
};

// The largest and the least number; a NaN loses. Two at a time where they are packed.
template <class T> class Extremes {
public:
  ANL_DEVICE void see(const Bytes16& packed) {
#pragma unroll
    for (const uint32_t pair : packed.words) {
      high_ = larger_pair<T>(high_, pair);
      low_ = smaller_pair<T>(low_, pair);
    }
  }
  ANL_DEVICE float highest() const { return larger(half(high_, 0), half(high_, 16)); }
  ANL_DEVICE float lowest() const { return smaller(half(low_, 0), half(low_, 16)); }

private:
  ANL_DEVICE static float half(uint32_t pair, int bits) { return widen(T{uint16_t(pair >> bits)}); }
  uint32_t high_ = narrow_pair<T>(-INFINITY, -INFINITY), low_ = narrow_pair<T>(INFINITY, INFINITY);
};

template <> class Extremes<float> {
public:
  ANL_DEVICE void see(const Bytes16& packed) {
    float z[4];
    unpack<float>(packed, z);
#pragma unroll
    for (const float number : z) {
      high_ = larger(high_, number);
      low_ = smaller(low_, number);
    }
  }
  ANL_DEVICE float highest() const { return high_; }
  ANL_DEVICE float lowest() const { return low_; }

private:
  float high_ = -INFINITY, low_ = INFINITY;
};

// The sum of the powers, and of the exponents.
template <bool linear, class T>
ANL_DEVICE void sum_powers(const Resident<T>& source, const PowerOf2& power, float& mass,
                           float& total) {
  source.visit_packed([&](const Bytes16& packed) {
    float z[width<T>];
    unpack<T>(packed, z);
#pragma unroll
    for (int i = 0; i < width<T>; ++i) {
      const float x = power.exponent(z[i]);
      mass += exp2_fast(x);
      if (linear)
        total += x;
    }
  });
}

// What of a row's partials needs to know which classes are there.
template <class T> ANL_DEVICE void sum_present(const Resident<T>& source, Partials<float>& s) {
  s.lowest = INFINITY;
  s.total = s.count = 0;
  source.visit([&](const float (&z)[width<T>], int) {
#pragma unroll
    for (int i = 0; i < width<T>; ++i) {
      const bool there = z[i] != -INFINITY;
      s.count += there ? 1.0f : 0.0f;
      s.lowest = there ? smaller(s.lowest, z[i]) : s.lowest;
      s.total += there ? z[i] - s.m : 0.0f;
    }
  });
}

template <class T>
ANL_DEVICE Partials<float> kept_partials(const Resident<T>& source, bool linear) {
  Extremes<T> extremes;
  source.visit_packed([&](const Bytes16& packed) { extremes.see(packed); });
  Partials<float> s = {extremes.highest(), 0, extremes.lowest(), 0, 0};
  if (!PowerOf2::serves(s.m))
    return partials_of(source, linear);
  const PowerOf2 power(s.m);
  if (linear)
    sum_powers<true>(source, power, s.mass, s.total);
  else
    sum_powers<false>(source, power, s.mass, s.total);
  s.mass *= power.correction();
  s.count = float(source.vectors() * width<T>);
  s.total = (s.total - s.count * power.rounding()) * PowerOf2::ln_2;
  if (s.lowest < -1e38f) // -inf, or what has overflowed
    sum_present(source, s);
  return s;
}

template <class Source, class A = typename Source::A>
ANL_DEVICE Partials<A> partials_in(const Source& source, bool linear) {
  if constexpr (is_kept<Source>)
    return kept_partials(source, linear);
  else
    return partials_of(source, linear);
}

// What a plain gradient takes of its row: slope stands for base where z is not below lowest, the
// clamp.
struct PlainRow {
  PowerOf2 power;
  float q, base, slope, lowest;
};

// The least logit that is not clamped, which sums and gradients compare with alike.
ANL_DEVICE float unclamped_from(const ClampedLine<float>& line, const RowSums<float>& row) {
  return row.softmax.m + (row.softmax.log_s - line.offset);
}

// The sums of a clamped line, of differences to the clamp.
template <class T>
ANL_DEVICE Sums<float> kept_sums(const ClampedLine<float>& line, const Resident<T>& source,
                                 const RowSums<float>& row) {
  const float lowest = unclamped_from(line, row);
  Sums<float> sums = {0, 0};
  source.visit_packed([&](const Bytes16& packed) {
    float z[width<T>];
    unpack<T>(packed, z);
#pragma unroll
    for (int i = 0; i < width<T>; ++i) {
      const float above = z[i] - lowest;
      if (above >= 0) {
        sums.value += above;
        sums.slope += 1;
      }
    }
  });
  const float rounding = (row.softmax.m - lowest) + (row.softmax.log_s - line.offset);
  sums.value -= sums.slope * rounding;
  return sums;
}

template <bool clamped, class T>
ANL_DEVICE void plain_slopes(const Bytes16& packed, const PlainRow& row, float (&g)[width<T>]) {
  float z[width<T>];
  unpack<T>(packed, z);
#pragma unroll
  for (int i = 0; i < width<T>; ++i) {
    const float flat = clamped && z[i] >= row.lowest ? row.slope : row.base;
    g[i] = fused(-row.q, exp2_fast(row.power.exponent(z[i])), flat);
  }
}

// As write_row, of a row that has all its classes, where the sums of dense terms are lines,
// or one is a clamped line.
template <bool clamped, class T>
ANL_DEVICE void write_plain(const Resident<T>& source, const PlainRow& row, const Sink<T>& grad) {
  const auto edge = [&](const Bytes16& packed, int at) {
    float g[width<T>];
    plain_slopes<clamped, T>(packed, row, g);
    grad.store(at, g);
  };
  const auto whole = [&](const Bytes16& packed, int at) {
    float g[width<T>];
    plain_slopes<clamped, T>(packed, row, g);
    grad.store_whole(at, pack<T>(g));
  };
  if (grad.starts_like(source.head()))
    source.visit_by_place(whole, edge);
  else
    source.visit_by_place(edge, edge);
}

} // namespace anl::cuda
