// Several log-probabilities of a row (LogProbsFunction in anl_kernels/rows/log_probs.py, which has
// the same in tensors): what is gathered from the logits, and scattered into their gradient. Logits
// are (N, K), classes (N, M) int64, row after row.
#pragma once

#include "../tensors.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

namespace anl::cpu {

#define ANL_EACH_TYPE(type, ...)                                                                   \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "log_probs", __VA_ARGS__)

// Rows of M entries that are worth a thread.
inline int64_t rows_of_thread(int64_t M) { return std::max<int64_t>(1, 8192 / M); }

template <class Row> void for_each_row(int64_t N, int64_t M, const Row& row) {
  at::parallel_for(0, N, rows_of_thread(M), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      row(n);
  });
}

// (N, 1), of each row's classes the most probable: the label that the kernels are given. A class
// that is not there, or a NaN, is it, so that it shows in the row; an ignored one if all are.
inline Tensor most_probable(const Tensor& logits, const Tensor& classes, int64_t ignore_index) {
  const int64_t N = classes.size(0), M = classes.size(1), K = logits.size(1);
  const int64_t by_row = logits.stride(0), by_class = logits.stride(1);
  const Tensor labels = at::empty({N, 1}, classes.options());
  const int64_t* c = classes.const_data_ptr<int64_t>();
  auto* label = labels.mutable_data_ptr<int64_t>();
  ANL_EACH_TYPE(logits.scalar_type(), [&] {
    using A = at::opmath_type<scalar_t>;
    const auto* z = logits.const_data_ptr<scalar_t>();
    for_each_row(N, M, [&](int64_t n) {
      const int64_t* of_row = c + n * M;
      int64_t best = of_row[0];
      A most = -std::numeric_limits<A>::infinity();
      for (int64_t m = 0; m < M; ++m) {
        if (of_row[m] == ignore_index)
          continue;
        const bool inside = of_row[m] >= 0 && of_row[m] < K;
        const A value = inside ? A(z[n * by_row + of_row[m] * by_class]) : A(NAN);
        if (value > most || value != value || best == ignore_index) {
          best = of_row[m];
          most = value;
        }
        if (value != value)
          break;
      }
      label[n] = best;
    });
  });
  return labels;
}

// (N, M) log-probabilities out of the label's, (N,) losses.
inline Tensor log_probs(const Tensor& logits, const Tensor& classes, const Tensor& labels,
                        const Tensor& losses, int64_t ignore_index) {
  const int64_t N = classes.size(0), M = classes.size(1), K = logits.size(1);
  const int64_t by_row = logits.stride(0), by_class = logits.stride(1);
  const Tensor made = at::empty({N, M}, losses.options());
  const int64_t *c = classes.const_data_ptr<int64_t>(), *label = labels.const_data_ptr<int64_t>();
  ANL_EACH_TYPE(logits.scalar_type(), [&] {
    using A = at::opmath_type<scalar_t>;
    const auto* z = logits.const_data_ptr<scalar_t>();
    const auto* loss = losses.const_data_ptr<A>();
    auto* log_p = made.mutable_data_ptr<A>();
    for_each_row(N, M, [&](int64_t n) {
      const auto logit_of = [&](int64_t k) {
        const int64_t place = std::clamp<int64_t>(k, 0, K - 1);
        return A(z[n * by_row + place * by_class]);
      };
      const A top = logit_of(label[n]);
      for (int64_t m = n * M; m < (n + 1) * M; ++m) {
        const A value = logit_of(c[m]);
        const A below = value == top ? A(0) : value - top; // -inf - -inf is 0 here
        log_p[m] = c[m] == ignore_index ? A(0) : below - loss[n];
      }
    });
  });
  return made;
}

// (N,) sums of upstream gradients, (N, M), of the entries that count: what -p has as its factor.
inline Tensor totals(const Tensor& upstream, const Tensor& classes, int64_t ignore_index) {
  const int64_t N = classes.size(0), M = classes.size(1);
  const Tensor made = at::empty({N}, upstream.options());
  const int64_t* c = classes.const_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES(upstream.scalar_type(), "totals", [&] {
    const auto* g = upstream.const_data_ptr<scalar_t>();
    auto* total = made.mutable_data_ptr<scalar_t>();
    for_each_row(N, M, [&](int64_t n) {
      double sum = 0;
      for (int64_t m = n * M; m < (n + 1) * M; ++m)
        sum += c[m] == ignore_index ? 0 : double(g[m]);
      total[n] = scalar_t(sum);
    });
  });
  return made;
}

// Completes the gradient of the logits, -total p until here, at the classes of each row: rounded
// once. Where p is close to 1 its two parts are large and nearly equal; only the label can be
// there.
inline void add_ones_(const Tensor& grad, const Tensor& upstream, const Tensor& classes,
                      const Tensor& labels, const Tensor& log_probs, const Tensor& totals,
                      int64_t ignore_index) {
  const int64_t N = classes.size(0), M = classes.size(1), K = grad.size(1);
  const int64_t by_row = grad.stride(0), by_class = grad.stride(1);
  const int64_t *c = classes.const_data_ptr<int64_t>(), *label = labels.const_data_ptr<int64_t>();
  ANL_EACH_TYPE(grad.scalar_type(), [&] {
    using A = at::opmath_type<scalar_t>;
    const auto *g = upstream.const_data_ptr<A>(), *log_p = log_probs.const_data_ptr<A>(),
               *total = totals.const_data_ptr<A>();
    auto* to = grad.mutable_data_ptr<scalar_t>();
    constexpr bool is_wide = std::is_same_v<A, scalar_t>;
    at::parallel_for(0, N, rows_of_thread(M), [&](int64_t begin, int64_t end) {
      std::vector<A> own(K, 0); // sums over the entries of one class, which may occur again
      for (int64_t n = begin; n < end; ++n) {
        A others = 0, log_p_label = 0;
        scalar_t* const row = to + n * by_row;
        const auto counts = [&](int64_t m) {
          return c[m] != ignore_index && c[m] >= 0 && c[m] < K;
        };
        for (int64_t m = n * M; m < (n + 1) * M; ++m)
          if (counts(m)) {
            const bool is_label = c[m] == label[n];
            own[c[m]] += g[m];
            others += is_label ? A(0) : g[m];
            log_p_label = is_label ? log_p[m] : log_p_label;
          }
        const bool labelled = label[n] != ignore_index && label[n] >= 0 && label[n] < K;
        const A own_label = labelled ? own[label[n]] : A(0);
        for (int64_t m = n * M; m < (n + 1) * M; ++m)
          if (counts(m)) {
            scalar_t& value = row[c[m] * by_class];
            if constexpr (is_wide) {
              value += own[c[m]];
              own[c[m]] = 0; // so that nothing is added for the class again
            } else {
              value = own[c[m]] - std::exp(log_p[m]) * total[n];
            }
          }
        if (labelled)
          row[label[n] * by_class] =
              own_label * -std::expm1(log_p_label) - std::exp(log_p_label) * others;
        if constexpr (!is_wide)
          for (int64_t m = n * M; m < (n + 1) * M; ++m)
            if (counts(m))
              own[c[m]] = 0;
      }
    });
  });
}

#undef ANL_EACH_TYPE

} // namespace anl::cpu
