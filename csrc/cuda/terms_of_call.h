// The terms of one call as a kernel's parameter: functors made on the host, called by their number.
#pragma once

#include "interface.h"
#include "storage.h"

#include "../terms.h"

namespace anl::cuda {

// The functors' places in the list of terms.h.
enum Functors {
#define ANL_PLACE(name, F) place_of_##F,
  ANL_FOR_EACH_FUNCTOR(ANL_PLACE)
#undef ANL_PLACE
      count_of_functors
};

template <class A> struct Term {
  int functor;
  int slot; // among the dense terms; -1: it is none
  Sum sum;
  bool clamped_line, balanced;
  A weight;
  alignas(8) unsigned char numbers[sizeof(A) == 8 ? 168 : 56];
};

template <class A> struct Terms {
  int count, num_dense;
  bool linear; // some term needs the sum of z
  Term<A> term[max_terms];
  int dense[max_terms]; // which terms those are
};

// Calls action(functor) with the one of that number. Where only dense ones come, no code is made
// for the others.
template <bool dense_only = false, class A, class Action>
ANL_DEVICE void with_functor(const Term<A>& term, const Action& action) {
  switch (term.functor) {
#define ANL_CASE(name, F)                                                                          \
  case place_of_##F:                                                                               \
    if constexpr (!dense_only || F<A>::sum == Sum::Dense)                                          \
      action(*reinterpret_cast<const F<A>*>(term.numbers));                                        \
    break;
    ANL_FOR_EACH_FUNCTOR(ANL_CASE)
#undef ANL_CASE
  }
}

// The dense terms that a kernel is made for: none, one clamped line, or any.
enum class Dense { None, ClampedLine, Any };

template <class A> Dense dense_of(const Terms<A>& terms) {
  if (terms.num_dense == 0)
    return Dense::None;
  const bool line = terms.num_dense == 1 && terms.term[terms.dense[0]].clamped_line;
  return line ? Dense::ClampedLine : Dense::Any;
}

template <Dense D, class A> ANL_DEVICE int num_dense(const Terms<A>& terms) {
  return D == Dense::None ? 0 : D == Dense::ClampedLine ? 1 : terms.num_dense;
}

// The dense term of Dense::ClampedLine.
template <class A> ANL_DEVICE const ClampedLine<A>& clamped_line_of(const Terms<A>& terms) {
  return *reinterpret_cast<const ClampedLine<A>*>(terms.term[terms.dense[0]].numbers);
}

// As with_functor, for a dense term.
template <Dense D, class A, class Action>
ANL_DEVICE void with_dense(const Term<A>& term, const Action& action) {
  if constexpr (D == Dense::ClampedLine)
    action(*reinterpret_cast<const ClampedLine<A>*>(term.numbers));
  else if constexpr (D == Dense::Any)
    with_functor<true>(term, action);
}

template <class F, class A> void make(Term<A>& term, const double* scalars) {
  static_assert(sizeof(F) <= sizeof term.numbers, "grow Term::numbers");
  const F functor(scalars);
  memcpy(term.numbers, &functor, sizeof functor);
  term.sum = F::sum;
  term.clamped_line = F::clamped_line;
}

template <class A> Terms<A> terms_of(const RowArgs& args) {
  if (args.num_terms > max_terms)
    throw std::runtime_error("anl_kernels: a sum has at most " + std::to_string(max_terms) +
                             " terms on the cuda backend, got " + std::to_string(args.num_terms));
#define ANL_MAKE(name, F) make<F<A>, A>,
  constexpr void (*makers[])(Term<A>&, const double*) = {ANL_FOR_EACH_FUNCTOR(ANL_MAKE)};
#undef ANL_MAKE
  Terms<A> terms = {};
  terms.count = args.num_terms;
  for (int t = 0; t < args.num_terms; ++t) {
    Term<A>& term = terms.term[t];
    term.functor = args.terms[t].functor;
    term.balanced = args.terms[t].balanced;
    term.weight = A(args.terms[t].weight);
    makers[term.functor](term, args.terms[t].scalars);
    term.slot = term.sum == Sum::Dense ? terms.num_dense : -1;
    if (term.sum == Sum::Dense)
      terms.dense[terms.num_dense++] = t;
    terms.linear = terms.linear || term.sum != Sum::None; // a dense one may be a line
  }
  return terms;
}

} // namespace anl::cuda
