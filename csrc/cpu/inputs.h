// What a call says of its rows: where they are, their labels and scales, and its terms, ready to
// run.
#pragma once

#include "../row.h"
#include "functors.h"
#include "interface.h"

#include <vector>

namespace anl::cpu {

template <class T> T* row_of(const Rows& rows, const Shape& shape, int64_t n) {
  return static_cast<T*>(rows.data) + n / shape.M * rows.batch + n % shape.M * rows.pos;
}

struct Label {
  bool counted; // not ignored
  int64_t y;    // -1: not a class
};

ANL_INLINE Label label_of(const RowArgs& args, int64_t n) {
  if (!args.target)
    return {false, -1};
  const int64_t y = args.target_is_int32 ? static_cast<const int32_t*>(args.target)[n]
                                         : static_cast<const int64_t*>(args.target)[n];
  const bool counted = y != args.ignore_index;
  return {counted, counted && y >= 0 && y < args.shape.K ? y : -1};
}

template <class A> A scale_of(const RowArgs& args, int64_t n) {
  const A scale = static_cast<const A*>(args.row_scale)[n * args.scale_stride];
  return scale == scale ? scale : A(NAN); // without a payload: see narrow_vector
}

// A number for row n, if it is wanted.
template <class A> void put(void* to, int64_t n, A value) {
  if (to)
    static_cast<A*>(to)[n] = value;
}

template <class T> struct Term : FunctorTable<T> {
  explicit Term(const FunctorTable<T>& table) : FunctorTable<T>(table) {}
  Accumulator<T> weight;
  bool balanced;
  alignas(16) char functor[functor_bytes];
};

template <class T> class Terms {
public:
  using A = Accumulator<T>;
  explicit Terms(const RowArgs& args, const void* weights = nullptr) {
    terms_.reserve(args.num_terms);
    for (int t = 0; t < args.num_terms; ++t) {
      const TermSpec& spec = args.terms[t];
      Term<T>& term = terms_.emplace_back(functor_tables<T>[spec.functor]);
      term.weight = weights ? static_cast<const A*>(weights)[t] : A(spec.weight);
      if (term.weight != term.weight)
        term.weight = NAN; // without a payload: see narrow_vector
      term.balanced = spec.balanced;
      term.make(spec.scalars, term.functor);
      num_dense_ += term.sum == Sum::Dense;
    }
  }
  explicit Terms(const RowLossArgs& args) : Terms(args, args.term_weights) {}

  int count() const { return int(terms_.size()); }
  int num_dense() const { return num_dense_; }
  const Term<T>& operator[](int t) const { return terms_[t]; }

  // f(t, term, its place among them) for the dense ones.
  template <class F> void for_dense(F f) const {
    for (int t = 0, i = 0; t < count(); ++t)
      if (terms_[t].sum == Sum::Dense)
        f(t, terms_[t], i++);
  }

private:
  std::vector<Term<T>> terms_;
  int num_dense_ = 0;
};

// Runs the loss heads on rows side by side. sums(t) and slopes(t) are the sums of term t over the
// others; put_G(t, ...) receives its slope, put_head(t, ...) its head
// and its own part in the slopes.
template <class T, class Values, class Derivatives, class PutG, class PutHead,
          class A = Accumulator<T>>
ANL_INLINE Slopes<V<A>> run_loss_heads(const Terms<T>& terms, Target<V<A>> target, Values values,
                                       Derivatives slopes, PutG put_G, PutHead put_head) {
  HeadSums<V<A>> of_row = {};
  for (int t = 0; t < terms.count(); ++t) {
    Head<V<A>> head;
    target.others = values(t);
    terms[t].head(terms[t].functor, target, &head);
    head = balanced_if(terms[t].balanced, head);
    of_row.add(terms[t].weight, head, slopes(t));
    put_G(t, terms[t].weight * head.g);
    put_head(t, head, slopes_of_term(terms[t].weight, head, slopes(t), target.p, target.rest));
  }
  return of_row.slopes(target.p, target.rest);
}

} // namespace anl::cpu
