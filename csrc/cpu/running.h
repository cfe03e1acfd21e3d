// A plain call with the running mean of denominators (balanced_loss in anl_kernels/rows/balance.py,
// which is the long way): 30 small tensors less.
#pragma once

#include "../tensors.h"

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <vector>

namespace anl::cpu {

// Of each term: its weight, its mean summand where all logits are equal, and whether it is one that
// is divided by a sum.
struct RunningTerms {
  std::vector<double> weights, uniform;
  std::vector<bool> normalised;

  size_t size() const { return weights.size(); }
};

// The mean summands of earlier calls, (T,), as one call has them.
class Running {
public:
  Running(const RunningTerms& terms, const at::Tensor& state, double momentum)
      : terms_(terms), state_(state), momentum_(momentum), before_(state.numel()) {
    AT_DISPATCH_FLOATING_TYPES(state.scalar_type(), "running", [&] {
      const auto* seen = state.const_data_ptr<scalar_t>();
      for (size_t t = 0; t < before_.size(); ++t)
        before_[t] = seen[t] == 0 ? terms.uniform[t] : seen[t];
    });
  }

  static bool fits(const at::Tensor& state, const RunningTerms& terms) {
    const auto type = state.scalar_type();
    return (type == at::kFloat || type == at::kDouble) && state.dim() == 1 &&
           state.is_contiguous() && size_t(state.numel()) == terms.size() &&
           !state.requires_grad() && !state.is_inference();
  }

  // (T,) weights, those of normalised terms times the mean sum over the classes.
  at::Tensor factors(int64_t K, const at::TensorOptions& options) const {
    std::vector<double> factors = terms_.weights;
    for (size_t t = 0; t < factors.size(); ++t)
      if (terms_.normalised[t])
        factors[t] *= before_[t] * double(K);
    return of(factors, options);
  }

  // By the (N, T) denominators of the rows that count. One that is infinite or NaN counts in none.
  void move(const at::Tensor& denominators, const at::Tensor& target, int64_t ignore_index,
            int64_t K) const {
    const at::Tensor labels = target.to(at::kLong).contiguous();
    const int64_t *y = labels.const_data_ptr<int64_t>(), N = labels.numel();
    const size_t T = terms_.size();
    std::vector<double> sums(T, 0);
    int64_t count = 0;
    AT_DISPATCH_FLOATING_TYPES(denominators.scalar_type(), "running", [&] {
      const auto* of_row = denominators.const_data_ptr<scalar_t>();
      for (int64_t n = 0; n < N; ++n, of_row += T) {
        double all = 0;
        for (size_t t = 0; t < T; ++t)
          all += of_row[t];
        if (y[n] == ignore_index || !(all < INFINITY))
          continue;
        ++count;
        for (size_t t = 0; t < T; ++t)
          sums[t] += of_row[t];
      }
    });
    if (count == 0)
      return;
    for (size_t t = 0; t < T; ++t)
      sums[t] = before_[t] + momentum_ * (sums[t] / double(count) / double(K) - before_[t]);
    state_.copy_(of(sums, state_.options()));
  }

private:
  static at::Tensor of(const std::vector<double>& numbers, const at::TensorOptions& options) {
    const at::Tensor made = at::empty({int64_t(numbers.size())}, options);
    AT_DISPATCH_FLOATING_TYPES(made.scalar_type(), "running", [&] {
      std::copy(numbers.begin(), numbers.end(), made.mutable_data_ptr<scalar_t>());
    });
    return made;
  }

  const RunningTerms& terms_;
  const at::Tensor& state_;
  const double momentum_;
  std::vector<double> before_;
};

// Overwrites the loss of a call, whose terms had other weights, with that of (N, T) term losses.
inline void plain_value(const at::Tensor& loss, const at::Tensor& term_losses,
                        const at::Tensor& scale, const std::vector<double>& weights, bool reduce) {
  AT_DISPATCH_FLOATING_TYPES(loss.scalar_type(), "running", [&] {
    const auto* of_row = term_losses.const_data_ptr<scalar_t>();
    const double factor = *scale.const_data_ptr<scalar_t>();
    auto* value = loss.mutable_data_ptr<scalar_t>();
    double total = 0;
    for (int64_t n = 0; n < term_losses.size(0); ++n, of_row += weights.size()) {
      double of_terms = 0;
      for (size_t t = 0; t < weights.size(); ++t)
        of_terms += weights[t] * of_row[t];
      if (reduce)
        total += factor * of_terms;
      else
        value[n] = scalar_t(factor * of_terms);
    }
    if (reduce)
      *value = scalar_t(total);
  });
}

} // namespace anl::cpu
