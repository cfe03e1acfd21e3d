// The losses as functors: the one place where a loss is named in C++. Shared by the CPU and the
// CUDA kernels; docs/math.md has the algebra.
//
// A functor holds the hyper-parameters of one term, made from its (at most three) scalars. It is
// generic in V, the value it computes on: a SIMD vector on a CPU, a scalar on a GPU. A is V's
// element, float or double.
//
//   both(l, p)    the summand phi and its derivative in l, at l = log p
//   slope(l, p)   the derivative alone
//   head(target)  one row's loss and slopes, from the target and the row's sum
//
// Clamps are selections, so that a NaN comes through; heads never subtract numbers that are close
// when p_y is near 1.
#pragma once

#include "math_interface.h"

namespace anl {

enum class Sum { None, Affine, Dense }; // phi is absent; is l; is anything else

// What a head sees of its row. rest is 1 - p, from the mass of the other classes; log_ratio is
// log(p / max p), exactly 0 if no other logit is larger; others is the sum of phi over the other
// classes, count their number.
template <class V> struct Target {
  V l, p, rest, lse, log_ratio, others, count;
};

// The loss and its slopes: c in l_y, all told; g in the sum; h in lse where it enters by itself.
// And the size of what the loss is divided by.
template <class V> struct Head {
  V loss, c, g, h;
  V denominator = Math<V>::fill(1);
};

// A phi that is intercept + slope * l on an interval: the row's sum is then known without a sweep.
template <class A> struct Line {
  bool holds;
  A intercept, slope;
};

// phi and its derivative.
template <class V> struct Phi {
  V value, slope;
};

template <class A> struct Functor {
  static constexpr Sum sum = Sum::None;
  // Whether slope(l, p) reads l: else the logits need not be read again for the gradient.
  static constexpr bool slope_reads_l = false;
  // Whether value and slope are 0 at l = -inf, p = 0: else absent classes are masked.
  static constexpr bool vanishes = false;
  // Whether it is a ClampedLine.
  static constexpr bool clamped_line = false;

  template <class V> ANL_FN V slope(V l, V p) const { return Math<V>::fill(0); }
  template <class V> ANL_FN Phi<V> both(V l, V p) const { return {slope(l, p), slope(l, p)}; }
  ANL_FN Line<A> line(A lowest_l, A highest_l) const { return {false, 0, 0}; }
};

template <class A> constexpr A line_margin = A(1e-3);

template <class A> struct AffineFunctor : Functor<A> {
  static constexpr Sum sum = Sum::Affine;
};
template <class A> struct DenseFunctor : Functor<A> {
  static constexpr Sum sum = Sum::Dense;
};

// ---- pieces ------------------------------------------------------------------------------------

// (1 - p)^gamma. Among very many classes nearly every p is small, where three terms of the binomial
// series (seven in double) are exact to rounding; elsewhere it is an exponential of a logarithm.
template <class A> struct ComplementPower {
  static constexpr int terms = sizeof(A) == 8 ? 7 : 3;
  A gamma, small, series[terms];

  explicit ComplementPower(double g)
      : gamma(A(g)), small(A(1.0 / 64 / (fabs(g) > 1 ? fabs(g) : 1))) {
    double coefficient = 1;
    for (int j = 0; j < terms; ++j) {
      coefficient *= -(g - j) / (j + 1);
      series[j] = A(coefficient);
    }
  }

  template <class V> ANL_FN V operator()(V p) const {
    return is_small(p) ? of_small(p) : of_large(p);
  }

  template <class V> ANL_RARE_FN V of_large(V p) const { return of_complement(A(1) - p); }

  template <class V> ANL_FN bool is_small(V p) const { return Math<V>::all(p < small); }

  template <class V> ANL_FN V of_small(V p) const {
    V sum = Math<V>::fill(series[terms - 1]);
    for (int j = terms - 2; j >= 0; --j)
      sum = sum * p + series[j];
    return sum * p + A(1);
  }

  // x^gamma with a floor under x, so that its logarithm is finite; 0^0 = 1.
  template <class V> ANL_FN V of_complement(V x) const {
    return Math<V>::exp(gamma * Math<V>::log(at_least_tiny(x)));
  }

  template <class V> ANL_FN static V at_least_tiny(V x) {
    return Math<V>::select(x < A(1e-35), Math<V>::fill(A(1e-35)), x);
  }
};

// -(1-p)^gamma l with its true derivative, weight * (gamma p l / (1 - p) - 1), which tends to 0 as
// p tends to 1.
template <class A> struct TrueFocal {
  ComplementPower<A> weigh, weigh_less; // gamma, gamma - 1
  explicit TrueFocal(double gamma) : weigh(gamma), weigh_less(gamma - 1) {}

  // (1-p)^gamma in `value`, and the derivative.
  template <class V> ANL_FN Phi<V> operator()(V l, V p) const {
    if (weigh_less.is_small(p) && weigh.is_small(p)) {
      const V weight = weigh.of_small(p);
      return {weight, weigh.gamma * p * l * weigh_less.of_small(p) - weight};
    }
    return of_large(l, p);
  }
  // Where p is close to 1, 1 - p has lost the digits that l still has.
  template <class V> ANL_RARE_FN Phi<V> of_large(V l, V p) const {
    using M = Math<V>;
    return at_target(l, p, M::select(p > A(0.5), -M::expm1(l), A(1) - p));
  }
  template <class V> ANL_FN Phi<V> at_target(V l, V p, V complement) const {
    const V weight = weigh.of_complement(complement);
    const V ratio = l / ComplementPower<A>::at_least_tiny(complement);
    return {weight, weight * (weigh.gamma * p * ratio - A(1))};
  }
};

template <class V, class A = typename Math<V>::Element> ANL_FN V power(V x, A exponent) {
  return Math<V>::exp(exponent * Math<V>::log(ComplementPower<A>::at_least_tiny(x)));
}

// v / (v + others), v the target's summand; 1 and flat where both are 0. Compared with the total
// first: where both are infinite the quotient would be NaN.
template <class V> ANL_FN Head<V> share(V v, V slope, V others) {
  using M = Math<V>;
  const V zero = M::fill(0), one = M::fill(1), total = v + others;
  const auto empty = total == zero;
  const V inverse = one / M::select(empty, one, total);
  const V part = M::select(v == total, one, v * inverse);
  V rest = M::select(others == total, one, others * inverse);
  rest = M::select(empty, others * inverse, rest);
  return {part, slope * rest * inverse, zero - M::select(empty, zero, part) * inverse, zero,
          M::select(total < zero, zero - total, total)};
}

// 1 - v / (v + others), without the subtraction.
template <class V> ANL_FN Head<V> complement_of_share(V v, V slope, V others) {
  using M = Math<V>;
  const V zero = M::fill(0), total = v + others;
  const Head<V> part = share(v, slope, others);
  return {others / M::select(total == zero, M::fill(1), total), zero - part.c, zero - part.g, zero,
          part.denominator};
}

// A head without a sum.
template <class V> ANL_FN Head<V> lone(V loss, V c) {
  return {loss, c, Math<V>::fill(0), Math<V>::fill(0)};
}

// ---- the terms ---------------------------------------------------------------------------------

template <class A> struct Ce : Functor<A> {
  explicit Ce(const double*) {}
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    return lone(-y.l, Math<V>::fill(-1));
  }
};

template <class A> struct CeSmoothed : AffineFunctor<A> {
  A smoothing;
  explicit CeSmoothed(const double* s) : smoothing(A(s[0])) {}
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    const V g = -smoothing / (y.count + A(1));
    const A kept = A(1) - smoothing;
    return {g * (y.l + y.others) - kept * y.l, g - kept, g, Math<V>::fill(0)};
  }
};

template <class A> struct Nce : AffineFunctor<A> {
  explicit Nce(const double*) {}
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    return share(y.l, Math<V>::fill(1), y.others);
  }
};

// phi is offset + l where p is at least lowest_p, and else 0. Clamps by p, in the sums as in the
// gradient, so that the gradient of a row needs no logit and still sums to 0. A lowest_p below the
// smallest normal number stands for that number.
template <class A> struct ClampedLine : DenseFunctor<A> {
  static constexpr bool vanishes = true, clamped_line = true;
  A offset, lowest_p;
  explicit ClampedLine(double given)
      : offset(A(fmin(given, -least_log<A>))), lowest_p(A(exp(-double(offset)))) {}
  template <class V> ANL_FN Phi<V> both(V l, V p) const { return {value(l, p), slope(l, p)}; }
  template <class V> ANL_FN V value(V l, V p) const { return above(p, offset + l); }
  template <class V> ANL_FN V slope(V l, V p) const { return above(p, Math<V>::fill(1)); }
  template <class V> ANL_FN V above(V p, V v) const {
    return Math<V>::select(p < lowest_p, Math<V>::fill(0), v);
  }
  ANL_FN Line<A> line(A lowest_l, A highest_l) const {
    // Inside by more than l and p may disagree by.
    return {lowest_l > line_margin<A> - offset, offset, A(1)};
  }
};

template <class A> struct Nnce : ClampedLine<A> {
  explicit Nnce(const double* s) : ClampedLine<A>(s[0]) {}
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    return complement_of_share(this->value(y.l, y.p), this->slope(y.l, y.p), y.others);
  }
};

// The same with an upper bound on p.
template <class A> struct NnceBounded : DenseFunctor<A> {
  static constexpr bool vanishes = true;
  ClampedLine<A> clamp;
  A ceiling, highest_p;
  explicit NnceBounded(const double* s) : clamp(s[0]), ceiling(A(s[1])), highest_p(A(exp(s[1]))) {}
  template <class V> ANL_FN Phi<V> both(V l, V p) const { return {value(l, p), slope(l, p)}; }
  template <class V> ANL_FN V value(V l, V p) const {
    return clamp.value(Math<V>::select(p > highest_p, Math<V>::fill(ceiling), l), p);
  }
  template <class V> ANL_FN V slope(V l, V p) const {
    return Math<V>::select(p > highest_p, Math<V>::fill(0), clamp.slope(l, p));
  }
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    return complement_of_share(value(y.l, y.p), slope(y.l, y.p), y.others);
  }
  ANL_FN Line<A> line(A lowest_l, A highest_l) const {
    Line<A> line = clamp.line(lowest_l, highest_l);
    line.holds = line.holds && highest_l < ceiling - line_margin<A>;
    return line;
  }
};

template <class A> struct Fl : Functor<A> {
  ComplementPower<A> weigh;
  explicit Fl(const double* s) : weigh(s[0]) {}
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    const V weight = weigh.of_complement(y.rest);
    return lone(-weight * y.l, -weight);
  }
};

template <class A> struct FlTrue : Functor<A> {
  TrueFocal<A> focal;
  explicit FlTrue(const double* s) : focal(s[0]) {}
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    const Phi<V> f = focal.at_target(y.l, y.p, y.rest);
    return lone(-f.value * y.l, f.slope);
  }
};

template <class A> struct Nfl : DenseFunctor<A> {
  ComplementPower<A> weigh;
  explicit Nfl(const double* s) : weigh(s[0]) {}
  template <class V> ANL_FN V slope(V l, V p) const { return -weigh(p); }
  template <class V> ANL_FN Phi<V> both(V l, V p) const {
    const V weight = weigh(p);
    return {-weight * l, -weight};
  }
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    const V weight = weigh.of_complement(y.rest);
    return share(-weight * y.l, -weight, y.others);
  }
};

template <class A> struct NflTrue : DenseFunctor<A> {
  static constexpr bool slope_reads_l = true;
  TrueFocal<A> focal;
  explicit NflTrue(const double* s) : focal(s[0]) {}
  template <class V> ANL_FN V slope(V l, V p) const { return focal(l, p).slope; }
  template <class V> ANL_FN Phi<V> both(V l, V p) const {
    const Phi<V> f = focal(l, p);
    return {-f.value * l, f.slope};
  }
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    const Phi<V> f = focal.at_target(y.l, y.p, y.rest);
    return share(-f.value * y.l, f.slope, y.others);
  }
};

// What the forms of NNFL share: largest + (1-p)^gamma l where p is not clamped, else nothing.
template <class A> struct NnflClamp : DenseFunctor<A> {
  static constexpr bool vanishes = true;
  A lowest_p, largest;
  explicit NnflClamp(const double* s)
      : lowest_p(A(exp(-fmin(s[1], -least_log<A>)))),
        largest(A(s[2] * fmin(1, -least_log<A> / s[1]))) {}
  template <class V> ANL_FN V above(V p, V v) const {
    return Math<V>::select(p < lowest_p, Math<V>::fill(0), v);
  }
  template <class V> ANL_FN Phi<V> clamped(V l, V p, V weight, V slope) const {
    return {above(p, largest + weight * l), above(p, slope)};
  }
};

template <class A> struct Nnfl : NnflClamp<A> {
  ComplementPower<A> weigh;
  explicit Nnfl(const double* s) : NnflClamp<A>(s), weigh(s[0]) {}
  template <class V> ANL_FN V slope(V l, V p) const { return this->above(p, weigh(p)); }
  template <class V> ANL_FN Phi<V> both(V l, V p) const {
    const V weight = weigh(p);
    return this->clamped(l, p, weight, weight);
  }
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    const V weight = weigh.of_complement(y.rest);
    const Phi<V> u = this->clamped(y.l, y.p, weight, weight);
    return complement_of_share(u.value, u.slope, y.others);
  }
};

template <class A> struct NnflTrue : NnflClamp<A> {
  static constexpr bool slope_reads_l = true;
  TrueFocal<A> focal;
  explicit NnflTrue(const double* s) : NnflClamp<A>(s), focal(s[0]) {}
  template <class V> ANL_FN V slope(V l, V p) const { return this->above(p, -focal(l, p).slope); }
  template <class V> ANL_FN Phi<V> both(V l, V p) const {
    const Phi<V> f = focal(l, p);
    return this->clamped(l, p, f.value, -f.slope);
  }
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    const Phi<V> f = focal.at_target(y.l, y.p, y.rest);
    const Phi<V> u = this->clamped(y.l, y.p, f.value, -f.slope);
    return complement_of_share(u.value, u.slope, y.others);
  }
};

template <class A> struct Mae : Functor<A> {
  explicit Mae(const double*) {}
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const { return lone(y.rest, -y.p); }
};

// 1 - p^q and its slope, with a floor under l.
template <class A> struct Generalised {
  A q, floor;
  bool floored;
  explicit Generalised(const double* s) : q(A(s[0])), floor(A(s[1])), floored(s[1] > -INFINITY) {}
  template <class V> ANL_FN V slope(V l) const {
    return slope_of(l, Math<V>::exp_nonpositive(q * l));
  }
  template <class V> ANL_FN Phi<V> both(V l) const {
    const V x = q * (floored ? Math<V>::select(l < floor, Math<V>::fill(floor), l) : l);
    const V power = Math<V>::exp_nonpositive(x);
    // 1 - exp(x) has lost digits only where x is close to 0. Each lane by its own x: what a row
    // gets may not depend on its neighbours.
    const auto far = x < A(-0.5);
    const V value = A(1) - power;
    return {Math<V>::all(far) ? value : Math<V>::select(far, value, near_one(x)),
            slope_of(l, power)};
  }
  template <class V> ANL_RARE_FN V near_one(V x) const { return -Math<V>::expm1(x); }
  template <class V> ANL_FN V slope_of(V l, V power) const {
    const V slope = -q * power;
    return floored ? Math<V>::select(l < floor, Math<V>::fill(0), slope) : slope;
  }
};

template <class A> struct Gce : Functor<A> {
  Generalised<A> phi;
  explicit Gce(const double* s) : phi(s) {}
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    const Phi<V> f = phi.both(y.l);
    return lone(f.value / phi.q, f.slope / phi.q);
  }
};

template <class A> struct Rce : Functor<A> {
  A factor;
  explicit Rce(const double* s) : factor(A(s[0])) {}
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    return lone(factor * y.rest, -factor * y.p);
  }
};

template <class A> struct RceClamped : DenseFunctor<A> {
  A factor, lowest_p;
  explicit RceClamped(const double* s) : factor(A(s[0])), lowest_p(A(s[1])) {}
  template <class V> ANL_FN Phi<V> both(V l, V p) const {
    return {factor * Math<V>::select(p < lowest_p, Math<V>::fill(lowest_p), p), slope(l, p)};
  }
  template <class V> ANL_FN V slope(V l, V p) const {
    return Math<V>::select(p < lowest_p, Math<V>::fill(0), factor * p);
  }
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    return {y.others, Math<V>::fill(0), Math<V>::fill(1), Math<V>::fill(0)};
  }
};

template <class A> struct Agce : Functor<A> {
  A a, q;
  explicit Agce(const double* s) : a(A(s[0])), q(A(s[1])) {}
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    using M = Math<V>;
    const V top = power(M::fill(a + A(1)), q);
    const V loss = -top * M::expm1(q * M::log1p(-y.rest / (a + A(1)))) / q;
    return lone(loss, -power(a + y.p, q - A(1)) * y.p);
  }
};

template <class A> struct Aul : Functor<A> {
  A a, q;
  explicit Aul(const double* s) : a(A(s[0])), q(A(s[1])) {}
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    using M = Math<V>;
    const V base = power(M::fill(a - A(1)), q);
    const V loss = base * M::expm1(q * M::log1p(y.rest / (a - A(1)))) / q;
    return lone(loss, -power(a - A(1) + y.rest, q - A(1)) * y.p);
  }
};

template <class A> struct Ael : Functor<A> {
  A a;
  explicit Ael(const double* s) : a(A(s[0])) {}
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    const V loss = Math<V>::exp(-y.p / a);
    return lone(loss, -(y.p / a) * loss);
  }
};

template <class A> struct Dft : Functor<A> {
  explicit Dft(const double*) {}
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    return lone(-y.p * y.l, -y.p);
  }
};

template <class A> struct Ngce : DenseFunctor<A> {
  static constexpr bool slope_reads_l = true;
  Generalised<A> phi;
  explicit Ngce(const double* s) : phi(s) {}
  template <class V> ANL_FN V slope(V l, V p) const { return phi.slope(l); }
  template <class V> ANL_FN Phi<V> both(V l, V p) const { return phi.both(l); }
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    const Phi<V> f = phi.both(y.l);
    return share(f.value, f.slope, y.others);
  }
};

template <class A> struct Amse : DenseFunctor<A> {
  static constexpr bool vanishes = true;
  A a;
  explicit Amse(const double* s) : a(A(s[0])) {}
  template <class V> ANL_FN V slope(V l, V p) const { return A(2) * p * p; }
  template <class V> ANL_FN Phi<V> both(V l, V p) const { return {p * p, slope(l, p)}; }
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    const V g = A(1) / (y.count + A(1));
    const V miss = (A(1) - a) - y.rest; // p_y - a
    return {(y.others + miss * miss) * g, A(2) * y.p * miss * g, g, Math<V>::fill(0)};
  }
};

template <class A> struct RelativeGce : Functor<A> {
  A q;
  explicit RelativeGce(const double* s) : q(A(s[0])) {}
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    const V weight = Math<V>::exp(q * y.log_ratio);
    return lone(-weight * y.l, -weight);
  }
};

// log p' at the target, p' = (p + m [k is an argmax]) / (1 + m), and its slope in log p.
template <class A> struct EpsilonSoftmax {
  A m, total, log_total, floor;
  EpsilonSoftmax(double m, double floor)
      : m(A(m)), total(A(1 + m)), log_total(A(log1p(m))), floor(A(floor)) {}
  template <class V> ANL_FN Phi<V> operator()(const Target<V>& y) const {
    using M = Math<V>;
    const V one = M::fill(1), prob = (y.p + m) / total;
    const auto is_top = y.log_ratio == A(0);
    // Of the two the one that keeps its digits.
    const V of_top = M::select(prob < A(0.5), M::log(prob), M::log1p(-y.rest / total));
    const V l = M::select(is_top, of_top, y.l - log_total);
    const V slope = M::select(is_top, y.p / (y.p + m), one);
    const auto below = l < floor;
    return {M::select(below, M::fill(floor), l), M::select(below, M::fill(0), slope)};
  }
};

template <class A> struct EpsilonCe : Functor<A> {
  EpsilonSoftmax<A> log_prob;
  explicit EpsilonCe(const double* s) : log_prob(s[0], s[1]) {}
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    const Phi<V> l = log_prob(y);
    return lone(-l.value, -l.slope);
  }
};

template <class A> struct EpsilonFl : Functor<A> {
  EpsilonSoftmax<A> log_prob;
  ComplementPower<A> weigh;
  explicit EpsilonFl(const double* s) : log_prob(s[0], s[2]), weigh(s[1]) {}
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    const Phi<V> l = log_prob(y);
    const V weight = weigh.of_complement(-Math<V>::expm1(l.value));
    return lone(-weight * l.value, -weight * l.slope);
  }
};

// A function of p_y between two values of it, 0 outside.
template <class A> struct Between {
  A lowest, highest;
  explicit Between(const double* s) : lowest(A(s[0])), highest(A(s[1])) {}
  template <class V> ANL_FN V operator()(V p, V v) const {
    const V zero = Math<V>::fill(0);
    return Math<V>::select(p < lowest, zero, Math<V>::select(p > highest, zero, v));
  }
};

template <class A> struct ProbBetween : Functor<A> {
  Between<A> between;
  explicit ProbBetween(const double* s) : between(s) {}
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    return lone(between(y.p, y.rest), between(y.p, -y.p));
  }
};

template <class A> struct LogBetween : Functor<A> {
  Between<A> between;
  explicit LogBetween(const double* s) : between(s) {}
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    return lone(between(y.p, -y.l), between(y.p, Math<V>::fill(-1)));
  }
};

// What the sums of these two are is a constant to the gradient: phi has no slope.
template <class A> struct Eaft : DenseFunctor<A> {
  A alpha, per_unit;
  explicit Eaft(const double* s) : alpha(A(s[0])), per_unit(A(1 / s[1])) {}
  template <class V> ANL_FN Phi<V> both(V l, V p) const { return {-p * l, Math<V>::fill(0)}; }
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    const V own = Math<V>::select(y.p == A(0), Math<V>::fill(0), -y.p * y.l);
    const V weight = power((y.others + own) * per_unit, alpha);
    return lone(-weight * y.l, -weight);
  }
};

template <class A> struct Deft : DenseFunctor<A> {
  static constexpr bool vanishes = true;
  explicit Deft(const double*) {}
  template <class V> ANL_FN Phi<V> both(V l, V p) const { return {p * p, Math<V>::fill(0)}; }
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    const V q = y.others + y.p * y.p, x = q * y.l;
    return lone(-Math<V>::expm1(x) / q, -Math<V>::exp(x));
  }
};

template <class A> struct Zloss : Functor<A> {
  explicit Zloss(const double*) {}
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    return {y.lse * y.lse, Math<V>::fill(0), Math<V>::fill(0), A(2) * y.lse};
  }
};

// Terms of weight 0, whose losses are what is asked for beside a loss (terms/probes.py). They are
// finite where the row's loss is: 0 times infinity would be NaN.
template <class A> struct Entropy : DenseFunctor<A> {
  explicit Entropy(const double*) {}
  template <class V> ANL_FN V slope(V l, V p) const { return Math<V>::fill(0); }
  template <class V> ANL_FN Phi<V> both(V l, V p) const { return {-p * l, Math<V>::fill(0)}; }
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    const V own = Math<V>::select(y.p == A(0), Math<V>::fill(0), -y.p * y.l);
    return lone(y.others + own, Math<V>::fill(0));
  }
};

template <class A> struct LogProb : Functor<A> {
  explicit LogProb(const double*) {}
  template <class V> ANL_FN Head<V> head(const Target<V>& y) const {
    const V least = Math<V>::fill(A(-1e38));
    return lone(Math<V>::select(y.l < least, least, y.l), Math<V>::fill(0));
  }
};

// Every functor under the name that a Python term gives (Term.functor). A kernel knows a term by
// its place in this list.
#define ANL_FOR_EACH_FUNCTOR(X)                                                                    \
  X("ce", Ce)                                                                                      \
  X("ce_smoothed", CeSmoothed)                                                                     \
  X("nce", Nce)                                                                                    \
  X("nnce", Nnce)                                                                                  \
  X("nnce_bounded", NnceBounded)                                                                   \
  X("fl", Fl)                                                                                      \
  X("fl_true", FlTrue)                                                                             \
  X("nfl", Nfl)                                                                                    \
  X("nfl_true", NflTrue)                                                                           \
  X("nnfl", Nnfl)                                                                                  \
  X("nnfl_true", NnflTrue)                                                                         \
  X("mae", Mae)                                                                                    \
  X("gce", Gce)                                                                                    \
  X("rce", Rce)                                                                                    \
  X("rce_clamped", RceClamped)                                                                     \
  X("agce", Agce)                                                                                  \
  X("aul", Aul)                                                                                    \
  X("ael", Ael)                                                                                    \
  X("dft", Dft)                                                                                    \
  X("ngce", Ngce)                                                                                  \
  X("amse", Amse)                                                                                  \
  X("relativegce", RelativeGce)                                                                    \
  X("epsilonce", EpsilonCe)                                                                        \
  X("epsilonfl", EpsilonFl)                                                                        \
  X("prob_between", ProbBetween)                                                                   \
  X("log_between", LogBetween)                                                                     \
  X("eaft", Eaft)                                                                                  \
  X("deft", Deft)                                                                                  \
  X("zloss", Zloss)                                                                                \
  X("entropy", Entropy)                                                                            \
  X("log_prob", LogProb)

} // namespace anl
