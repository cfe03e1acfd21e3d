// What is computed once for a row, by the CPU and the CUDA kernels alike: its softmax at the
// target, from what a sweep over the other classes found; its loss and slopes, from those of its
// terms.
#pragma once

#include "call.h"
#include "terms.h"

namespace anl {

// Saved numbers of a row beside one slope for each term: m, log_s, the target's gradient, q.
constexpr int num_saved = 4;

template <class V> struct Softmax {
  V m, log_s;       // lse = m + log_s
  V l_y, p_y, rest; // rest = 1 - p_y, from the others' mass, never from 1 - exp(l_y)
  V log_ratio;      // log(p_y / max p): exactly 0 where no logit is larger
};

// m_others: the others' maximum; mass: their sum of exp(z - m_others). Guards compare with 0, so
// that a NaN stays one.
template <class V> ANL_FN Softmax<V> normalise(V m_others, V mass, V z_y) {
  using M = Math<V>;
  const V zero = M::fill(0), one = M::fill(1), nothing = M::fill(-INFINITY);
  V m = M::select(z_y < m_others, m_others, z_y);
  m = M::select(m == nothing, zero, m); // no class is there
  mass = M::select(mass == zero, mass, mass * M::exp(m_others - m));
  const V d_y = z_y - m, e_y = M::exp(d_y);
  const auto near = e_y > mass;
  V larger = M::select(near, e_y, mass);
  larger = M::select(larger == zero, one, larger);
  const V tail = M::log1p(M::select(near, mass, e_y) / larger);
  V log_s = M::select(near, d_y, M::log(larger)) + tail;
  const V total = e_y + mass;
  log_s = M::select(total == zero, nothing, log_s); // lse, of no classes
  return {m, log_s, M::select(near, -tail, d_y - log_s), e_y / total, mass / total, d_y};
}

// The loss head of a term, its slopes times the denominator if it is balanced. Of a sum that is
// infinite, as a label that is not there makes it, they are 0, as they are without.
template <class V> ANL_FN Head<V> balanced_if(bool balanced, Head<V> head) {
  if (!balanced)
    return head;
  const V nothing = Math<V>::fill(0);
  const V w =
      Math<V>::select(head.denominator == Math<V>::fill(INFINITY), nothing, head.denominator);
  return {head.loss, w * head.c, w * head.g, w * head.h, head.denominator};
}

// Whether more than zeros is asked of ignored rows.
inline bool reads_ignored_rows(const RowLossArgs& args) {
  return args.lse || args.argmax || args.probs.data;
}

// The gradient is gy at the target and, at another class, sum_t G_t phi_t'(l) - q p.
template <class V> struct Slopes {
  V loss, gy, q;
};

// What the heads of all terms give together.
template <class V> struct HeadSums {
  V loss, by_target, by_lse;

  // slope: the sum of the term's slopes over the others.
  template <class A> ANL_FN void add(A weight, const Head<V>& head, V slope) {
    loss += weight * head.loss;
    by_target += weight * head.c;
    by_lse += weight * (head.h - head.g * slope);
  }
  ANL_FN Slopes<V> slopes(V p_y, V rest) const {
    return {loss, by_target * rest + by_lse * p_y, by_target - by_lse};
  }
};

// The numbers that a term alone would give: its loss, and its part in gy and q.
template <class V, class A>
ANL_FN Slopes<V> slopes_of_term(A weight, const Head<V>& head, V slope, V p_y, V rest) {
  HeadSums<V> alone = {};
  alone.add(weight, head, slope);
  return alone.slopes(p_y, rest);
}

} // namespace anl
