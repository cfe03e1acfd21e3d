// What is done to one row by a team, whatever its logits come from: partials, sums,
// loss heads, gradient. Losses have no names here; docs/math.md has the algebra.
#pragma once

#include "sources.h"
#include "team.h"
#include "terms_of_call.h"

#include "../row.h"

namespace anl::cuda {

// A row's label: y is -1 where no class is the target.
template <class A> struct Label {
  int y;
  bool counted; // not ignored
  A z_y;        // -inf where there is none; NaN for a label that is no class
};

ANL_DEVICE int64_t label_number(const RowArgs& args, int64_t n) {
  return args.target_is_int32 ? static_cast<const int32_t*>(args.target)[n]
                              : static_cast<const int64_t*>(args.target)[n];
}

// `exists` is false for what hangs over the last row. Without z_y.
template <class A>
ANL_DEVICE Label<A> label_without_logit(const RowArgs& args, int64_t n, bool exists) {
  if (!args.target || !exists)
    return {-1, false, -A(INFINITY)};
  const int64_t label = label_number(args, n);
  if (label == args.ignore_index)
    return {-1, false, -A(INFINITY)};
  if (label < 0 || label >= args.shape.K)
    return {-1, true, A(NAN)};
  return {int(label), true, 0};
}

template <class T>
ANL_DEVICE void read_logit(const RowArgs& args, const T* row, Label<Accumulator<T>>& label) {
  if (label.y >= 0)
    label.z_y = widen(row[label.y * args.logits.cls]);
}

template <class T>
ANL_DEVICE Label<Accumulator<T>> label_of(const RowArgs& args, int64_t n, const T* row,
                                          bool exists) {
  auto label = label_without_logit<Accumulator<T>>(args, n, exists);
  read_logit(args, row, label);
  return label;
}

// ---- sums --------------------------------------------------------------------------------------

// Relative to the largest so far, so that no offset of the logits cancels, whatever lies far below.
template <class Source, class A = typename Source::A>
ANL_DEVICE Partials<A> partials_of(const Source& source, bool linear) {
  constexpr int W = Source::width;
  Partials<A> s = Partials<A>::nothing();
  int seen = 0, absent = 0;
  source.visit([&](const A(&z)[W], int) {
    A high = z[0], low = z[0];
#pragma unroll
    for (int i = 1; i < W; ++i) {
      high = larger(high, z[i]);
      low = smaller(low, z[i]);
    }
    if (high > s.m) {
      s.mass *= exp_below(s.m - high);
      s.total += seen > absent ? (s.m - high) * A(seen - absent) : A(0);
      s.m = high;
    }
    A d[W];
#pragma unroll
    for (int i = 0; i < W; ++i) {
      d[i] = z[i] - s.m;
      s.mass += exp_below(d[i]);
    }
    seen += W;
    if (low == -A(INFINITY)) {
#pragma unroll
      for (int i = 0; i < W; ++i) {
        const bool there = z[i] != -A(INFINITY);
        absent += !there;
        s.lowest = there ? smaller(s.lowest, z[i]) : s.lowest;
        s.total += there ? d[i] : A(0);
      }
    } else {
      s.lowest = smaller(s.lowest, low);
      if (linear)
#pragma unroll
        for (int i = 0; i < W; ++i)
          s.total += d[i];
    }
  });
  s.count = A(seen - absent);
  return s;
}

template <class Source, class A = typename Source::A>
ANL_DEVICE Best<A> best_of(const Source& source) {
  Best<A> best = Best<A>::nothing();
  source.visit([&](const A(&z)[Source::width], int at) {
#pragma unroll
    for (int i = 0; i < Source::width; ++i)
      if (z[i] > best.z)
        best = {z[i], at + i};
  });
  return best;
}

// What the classes of a row are measured by.
template <class A> struct Scale {
  A m, log_s, to_p; // p = exp(z - m) to_p
  ANL_DEVICE Scale(A m_, A log_s_) : m(m_), log_s(log_s_), to_p(Math<A>::exp(-log_s_)) {}
  ANL_DEVICE A l(A z) const { return (z - m) - log_s; }
  ANL_DEVICE A p(A z) const { return exp_below(z - m) * to_p; }
};

template <class F, class Source, class A = typename Source::A>
ANL_DEVICE Sums<A> sums_of(const F& functor, const Source& source, const Scale<A>& scale) {
  const F f = functor;
  Sums<A> sums = {0, 0};
  source.visit([&](const A(&z)[Source::width], int) {
#pragma unroll
    for (int i = 0; i < Source::width; ++i) {
      const Phi<A> phi = f.both(scale.l(z[i]), scale.p(z[i]));
      const bool there = F::vanishes || z[i] != -A(INFINITY);
      sums.value += there ? phi.value : A(0);
      sums.slope += there ? phi.slope : A(0);
    }
  });
  return sums;
}

// The sums of a dense term.
template <Dense D = Dense::Any, class Source, class A = typename Source::A>
ANL_DEVICE Sums<A> sums_of_term(const Term<A>& term, const Source& source, const Scale<A>& scale) {
  Sums<A> sums = Sums<A>::nothing();
  with_dense<D>(term, [&](const auto& f) { sums = sums_of(f, source, scale); });
  return sums;
}

// ---- the loss heads of a row --------------------------------------------------------------------

// A team's numbers in shared memory: the gradient's, and for each dense term its slope and sums.
template <class A> class RowSlots {
public:
  ANL_DEVICE RowSlots(A* slots, int num_dense) : slots_(slots), num_dense_(num_dense) {}
  ANL_FN static constexpr int size(int num_dense) { return 3 + 3 * num_dense; }

  ANL_DEVICE A gy() const { return get(0); }
  ANL_DEVICE A q() const { return get(1); }
  ANL_DEVICE A base() const { return get(2); }
  ANL_DEVICE void put_gradient(A gy, A q, A base) const {
    put(0, gy);
    put(1, q);
    put(2, base);
  }
  ANL_DEVICE A slope(int i) const { return get(3 + i); }
  ANL_DEVICE void put_slope(int i, A value) const { put(3 + i, value); }
  ANL_DEVICE Sums<A> sums(int i) const { return {get(at_sums(i)), get(at_sums(i) + 1)}; }
  ANL_DEVICE void put_sums(int i, const Sums<A>& sums) const {
    put(at_sums(i), sums.value);
    put(at_sums(i) + 1, sums.slope);
  }

private:
  ANL_DEVICE A get(int i) const { return shared_load(slots_ + i); }
  ANL_DEVICE void put(int i, A value) const { shared_store(slots_ + i, value); }
  ANL_DEVICE int at_sums(int i) const { return 3 + num_dense_ + 2 * i; }
  A* slots_;
  int num_dense_;
};

// What is known of a row once it has been swept.
template <class A> struct RowSums {
  Softmax<A> softmax;
  A linear, count; // sum of l over the others that are there, and their number
  uint32_t lines;  // dense terms that are a line on this row, by slot: no sweep
};

template <class A> ANL_DEVICE RowSums<A> row_sums(const Partials<A>& s, A z_y) {
  const A nothing = -A(INFINITY), m_others = s.mass == 0 ? nothing : s.m;
  RowSums<A> row;
  row.softmax = normalise(m_others, s.mass, z_y);
  row.count = s.count;
  row.linear = s.count > 0 ? s.total + s.count * ((s.m - row.softmax.m) - row.softmax.log_s) : A(0);
  row.lines = 0;
  return row;
}

// Whether some of a row's K classes are not there.
template <class A>
ANL_DEVICE bool some_absent(const RowSums<A>& row, const Label<A>& label, int K) {
  // A float does not count beyond 2^24.
  return row.count != A(K - (label.y >= 0)) || (sizeof(A) == 4 && K > 1 << 24);
}

template <class A> ANL_DEVICE Scale<A> scale_of(const RowSums<A>& row) {
  return Scale<A>(row.softmax.m, row.softmax.log_s);
}

// Whether a dense term is a line on this row, and which.
template <Dense D = Dense::Any, class A>
ANL_DEVICE Line<A> line_of(const Term<A>& term, const RowSums<A>& row, const Partials<A>& s) {
  const Scale<A> scale = scale_of(row);
  Line<A> line = {false, 0, 0};
  with_dense<D>(term, [&](const auto& f) { line = f.line(scale.l(s.lowest), scale.l(s.m)); });
  return line;
}

template <class A> ANL_DEVICE Sums<A> sums_on_line(const Line<A>& line, const RowSums<A>& row) {
  return {line.intercept * row.count + line.slope * row.linear, line.slope * row.count};
}

// Finds the dense terms that are a line on this row; the team's leader puts their sums into the
// slots, and the line's slope, for run_heads.
template <Dense D, class A>
ANL_DEVICE void find_lines(const Terms<A>& terms, const Partials<A>& s, const RowSlots<A>& slots,
                           bool leads, RowSums<A>& row) {
  for (int i = 0; i < num_dense<D>(terms); ++i) {
    const Line<A> line = line_of<D>(terms.term[terms.dense[i]], row, s);
    if (!line.holds)
      continue;
    row.lines |= 1u << i;
    if (leads) {
      slots.put_sums(i, sums_on_line(line, row));
      slots.put_slope(i, line.slope);
    }
  }
}

// The sums of the other dense terms, into the slots. sums_of(term) sweeps.
template <Dense D, class Team, class A, class SumsOf>
ANL_DEVICE void sum_dense(const Terms<A>& terms, const SumsOf& sums_of, Team& team,
                          const RowSlots<A>& slots, const RowSums<A>& row) {
  for (int i = 0; i < num_dense<D>(terms); ++i) {
    const bool line = row.lines >> i & 1;
    if (line && Team::row_of_its_own)
      continue;
    Sums<A> sums = Sums<A>::nothing();
    if (!line)
      sums = sums_of(terms.term[terms.dense[i]]);
    sums = team.gather(sums);
    if (!line && team.leads())
      slots.put_sums(i, sums);
  }
}

// `base` is what affine terms and those that are a line add to the gradient at other classes.
template <class A> struct RowSlopes : Slopes<A> {
  A base;
};

// Runs the loss heads. The leader puts the slopes of dense terms into the slots, times `factor`;
// put(t, head of term t, its sum of slopes, its weight) is called for every term.
template <class A, class Put>
ANL_DEVICE RowSlopes<A> run_heads(const Terms<A>& terms, const A* weights, const RowSums<A>& row,
                                  const RowSlots<A>& slots, bool leads, A factor, const Put& put) {
  const Softmax<A>& softmax = row.softmax;
  Target<A> target = {softmax.l_y,       softmax.p_y, softmax.rest, softmax.m + softmax.log_s,
                      softmax.log_ratio, 0,           row.count};
  HeadSums<A> of_row = {};
  A base = 0;
  for (int t = 0; t < terms.count; ++t) {
    const Term<A>& term = terms.term[t];
    Sums<A> sums = {0, 0};
    if (term.sum == Sum::Affine)
      sums = {row.linear, row.count};
    if (term.sum == Sum::Dense)
      sums = slots.sums(term.slot);
    target.others = sums.value;
    Head<A> head;
    with_functor(term, [&](const auto& f) { head = f.head(target); });
    head = balanced_if(term.balanced, head);
    const A weight = weights ? weights[t] : term.weight;
    of_row.add(weight, head, sums.slope);
    const A G = weight * head.g;
    if (term.sum == Sum::Affine)
      base += G;
    else if (term.slot >= 0 && (row.lines >> term.slot & 1))
      base += G * slots.slope(term.slot);
    else if (term.slot >= 0 && leads)
      slots.put_slope(term.slot, G * factor);
    put(t, head, sums.slope, weight);
  }
  return {of_row.slopes(softmax.p_y, softmax.rest), base};
}

// ---- the gradient ------------------------------------------------------------------------------

template <class A> struct RowGradient {
  A gy, q, base;  // times the row's scale
  uint32_t lines; // dense terms that are in `base`
  bool absent;    // classes at -inf have none
  bool zero;      // the row is ignored
};

// Writes the gradient and the probabilities, whichever is wanted. slope(i) is the slope of dense
// term i, times the row's scale.
template <Dense D = Dense::Any, class Source, class GradSink, class ProbSink, class SlopeOf,
          class A = typename Source::A>
ANL_DEVICE void write_row(const Terms<A>& terms, const Source& source, const Scale<A>& scale,
                          const RowGradient<A>& row, const SlopeOf& slope, const Label<A>& label,
                          A p_y, const GradSink& grad, const ProbSink& probs) {
  constexpr int W = Source::width;
  source.visit([&](const A(&z)[W], int at) {
    A p[W], g[W];
    uint32_t without = row.zero ? ~0u : 0u; // classes that have no gradient
#pragma unroll
    for (int i = 0; i < W; ++i) {
      p[i] = scale.p(z[i]);
      g[i] = row.base - row.q * p[i];
    }
    if (row.absent)
#pragma unroll
      for (int i = 0; i < W; ++i)
        without |= z[i] == -A(INFINITY) ? 1u << i : 0u;
    if (probs)
      probs.store(at, p);
    if (!grad)
      return;
    for (int d = 0; d < num_dense<D>(terms); ++d) {
      if (row.lines >> d & 1)
        continue;
      const A G = slope(d);
      with_dense<D>(terms.term[terms.dense[d]], [&](const auto& f) {
#pragma unroll
        for (int i = 0; i < W; ++i)
          g[i] += G * f.slope(scale.l(z[i]), p[i]);
      });
    }
    if (without)
#pragma unroll
      for (int i = 0; i < W; ++i)
        g[i] = without >> i & 1 ? A(0) : g[i];
    grad.store(at, g);
  });
  if (!source.owns_target())
    return;
  if (grad)
    grad.put(label.y, row.gy);
  if (probs)
    probs.put(label.y, p_y);
}

} // namespace anl::cuda
