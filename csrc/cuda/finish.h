// From a row's partials to its results: sums, loss heads, what is stored for the row.
#pragma once

#include "kept_sweeps.h"
#include "plan.h"

namespace anl::cuda {

template <class A> struct RowLossParam {
  RowLossArgs args;
  Plan plan;
  bool all_rows; // ignored ones are read too
  Terms<A> terms;
};

template <class A> ANL_DEVICE A scale_of_row(const RowArgs& args, int64_t n) {
  return static_cast<const A*>(args.row_scale)[n * args.scale_stride];
}

template <class A> ANL_DEVICE void store_to(void* rows, int64_t at, A value) {
  if (rows)
    static_cast<A*>(rows)[at] = value;
}

// Stores the row's numbers, but for those of each term.
template <class A>
ANL_DEVICE void store_row(const RowLossArgs& args, int64_t n, const Label<A>& label,
                          const RowSums<A>& row, const Slopes<A>& slopes) {
  const Softmax<A>& softmax = row.softmax;
  store_to(args.row_losses, n, label.counted ? slopes.loss : A(0));
  store_to(args.lse, n, softmax.m + softmax.log_s);
  store_to(args.p_y, n, label.counted ? softmax.p_y : A(0));
  if (!args.saved)
    return;
  A* saved = static_cast<A*>(args.saved) + n * (num_saved + args.num_terms);
  saved[0] = softmax.m;
  saved[1] = softmax.log_s;
  saved[2] = slopes.gy;
  saved[3] = slopes.q;
}

template <class A>
ANL_DEVICE void store_argmax(const RowLossArgs& args, int64_t n, const Best<A>& best,
                             const Label<A>& label) {
  const Best<A> target = {label.z_y, label.y};
  const int index = label.y >= 0 ? merge(best, target).index : best.index;
  // No logit is more than -inf: all are equal, and the first is the best.
  args.argmax[n] = best.z > -A(INFINITY) || label.z_y > -A(INFINITY) ? index : 0;
}

// The loss heads of a row, by whoever runs them; `reports` stores what is kept of it, `leads` puts
// the gradient's numbers, times `factor`, into the slots.
template <class A>
ANL_DEVICE void finish_heads(const RowLossParam<A>& p, int64_t n, const Label<A>& label,
                             const RowSums<A>& row, const RowSlots<A>& slots, bool leads,
                             bool reports, A factor) {
  const RowLossArgs& args = p.args;
  const auto put = [&](int t, const Head<A>& head, A slope, A weight) {
    if (!reports)
      return;
    const int64_t T = p.terms.count;
    store_to(args.term_losses, n * T + t, label.counted ? head.loss : A(0));
    store_to(args.denominators, n * T + t, label.counted ? head.denominator : A(0));
    store_to(args.saved, n * (num_saved + T) + num_saved + t, weight * head.g);
    if (args.term_slopes) {
      const Slopes<A> alone =
          slopes_of_term(weight, head, slope, row.softmax.p_y, row.softmax.rest);
      store_to(args.term_slopes, 2 * (n * T + t), label.counted ? alone.gy : A(0));
      store_to(args.term_slopes, 2 * (n * T + t) + 1, label.counted ? alone.q : A(0));
    }
  };
  const RowSlopes<A> slopes =
      run_heads(p.terms, static_cast<const A*>(args.term_weights), row, slots, leads, factor, put);
  if (reports)
    store_row(args, n, label, row, slopes);
  if (leads)
    slots.put_gradient(slopes.gy * factor, slopes.q * factor, slopes.base * factor);
}

// The gradient of a row that is kept, if it is plain; whether it was.
template <Dense D, class T, class A>
ANL_DEVICE bool wrote_plain(const Terms<A>& terms, const Resident<T>& source, const RowSums<A>& row,
                            const RowSlots<A>& slots, const Label<A>& label, const Sink<T>& grad) {
  const bool lines = row.lines == (1ull << num_dense<D>(terms)) - 1;
  if (D == Dense::Any && !lines)
    return false;
  const PowerOf2 power(row.softmax.m);
  const A q = slots.q() * (scale_of(row).to_p * power.correction()), base = slots.base();
  PlainRow plain = {power, q, base, base, 0};
  if (lines) {
    write_plain<false>(source, plain, grad);
  } else if constexpr (D == Dense::ClampedLine) {
    plain.slope += slots.slope(0);
    plain.lowest = unclamped_from(clamped_line_of(terms), row);
    write_plain<true>(source, plain, grad);
  }
  if (source.owns_target())
    grad.put(label.y, slots.gy());
  return true;
}

// Everything of a row but the reading of its logits. D: what dense terms there may be.
template <class T, Dense D = Dense::Any, class Source, class Team, class GradSink>
ANL_DEVICE void finish_row(const RowLossParam<Accumulator<T>>& p, int64_t n, bool exists,
                           const Label<Accumulator<T>>& label, const Source& source, Team& team,
                           const RowSlots<Accumulator<T>>& slots, const GradSink& grad,
                           const Sink<T>& probs) {
  using A = Accumulator<T>;
  const RowLossArgs& args = p.args;
  const Partials<A> s = team.gather(partials_in(source, p.terms.linear));
  if (args.argmax) {
    const Best<A> best = team.gather(best_of(source));
    if (team.reports() && exists)
      store_argmax(args, n, best, label);
  }
  const bool counts = exists && label.counted;
  const A factor = team.runs_heads() && grad && counts ? scale_of_row<A>(args, n) : A(0);
  const auto run = [&](const RowSums<A>& row) {
    finish_heads(p, n, label, row, slots, team.leads(), team.reports() && exists, factor);
  };
  const auto row = team.template once<RowSums<A>>([&] {
    RowSums<A> row = row_sums(s, label.z_y);
    find_lines<D>(p.terms, s, slots, team.leads(), row);
    if constexpr (D == Dense::None)
      run(row);
    return row;
  });
  const bool absent = some_absent(row, label, int(args.shape.K));
  // Both sums and gradient are of kept_sweeps.h, or neither: they must agree on what is clamped.
  const bool plain = is_kept<Source> && grad && !probs && counts && !absent &&
                     PowerOf2::serves(float(row.softmax.m));
  if constexpr (D != Dense::None) {
    const auto sums_of = [&](const Term<A>& term) {
      if constexpr (is_kept<Source> && D == Dense::ClampedLine)
        if (plain)
          return kept_sums(clamped_line_of(p.terms), source, row);
      return sums_of_term<D>(term, source, scale_of(row));
    };
    sum_dense<D>(p.terms, sums_of, team, slots, row);
    if (team.runs_heads()) {
      warp_barrier(); // the sums are in their slots
      run(row);
    }
    team.synchronise();
  }
  if (!exists || !(grad || probs))
    return;
  if constexpr (is_kept<Source>)
    if (plain && wrote_plain<D>(p.terms, source, row, slots, label, grad))
      return;
  const RowGradient<A> gradient = {slots.gy(), slots.q(), slots.base(), row.lines, absent, !counts};
  write_row<D>(
      p.terms, source, scale_of(row), gradient, [&](int i) { return slots.slope(i); }, label,
      row.softmax.p_y, grad, probs);
}

} // namespace anl::cuda
