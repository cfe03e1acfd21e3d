// The terms of one call, ready to run.
#pragma once

#include "functors.h"
#include "interface.h"

#include <memory>

namespace anl::cpu {

template <class T> struct Term {
  const FunctorTable<T>* table;
  Accumulator<T> weight;
  alignas(16) char functor[functor_bytes];
};

template <class T> class Terms {
public:
  using A = Accumulator<T>;
  Terms(const TermSpec* specs, int count, const A* weights)
      : count_(count), terms_(std::make_unique<Term<T>[]>(count)) {
    for (int t = 0; t < count; ++t) {
      Term<T>& term = terms_[t];
      term.table = &functor_tables<T>[specs[t].functor];
      term.weight = weights ? weights[t] : A(specs[t].weight);
      if (term.weight != term.weight)
        term.weight = NAN; // without a payload: see narrow_vector
      term.table->make(specs[t].scalars, term.functor);
      num_dense_ += term.table->sum == Sum::Dense;
    }
  }

  int count() const { return count_; }
  int num_dense() const { return num_dense_; }
  const Term<T>& operator[](int t) const { return terms_[t]; }
  const Term<T>* begin() const { return terms_.get(); }
  const Term<T>* end() const { return terms_.get() + count_; }

private:
  int count_, num_dense_ = 0;
  std::unique_ptr<Term<T>[]> terms_;
};

// What the heads of all terms give together: the gradient is gy at the target and, at another
// class, sum_t G_t phi_t'(l) - q p.
template <class A> struct Slopes {
  V<A> loss, gy, q;
};

// Runs the heads on rows side by side. sums(t) and slopes(t) are the sums of term t over the
// others; G(t) receives its slope, term_loss(t) its loss.
template <class T, class Values, class SlopeSums, class PutG, class PutLoss,
          class A = Accumulator<T>>
ANL_INLINE Slopes<A> run_heads(const Terms<T>& terms, Target<V<A>> target, Values values,
                               SlopeSums slopes, PutG put_G, PutLoss put_loss) {
  V<A> loss = {}, by_target = {}, by_lse = {};
  for (int t = 0; t < terms.count(); ++t) {
    const Term<T>& term = terms[t];
    Head<V<A>> head;
    target.others = values(t);
    term.table->head(term.functor, target, &head);
    loss += term.weight * head.loss;
    by_target += term.weight * head.c;
    by_lse += term.weight * (head.h - head.g * slopes(t));
    put_G(t, term.weight * head.g);
    put_loss(t, head.loss);
  }
  return {loss, by_target * target.rest + by_lse * target.p, by_target - by_lse};
}

} // namespace anl::cpu
