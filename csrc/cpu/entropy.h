// The entropy regulariser of column sums and its slopes: of_column_sums in
// anl_kernels/regularisers/entropy_operators.py, in one sweep. A dozen operators on a few numbers
// would take longer than all rows of a small batch.
#pragma once

#include "math.h"

namespace anl::cpu {

template <class A> void entropy(const A* sums, int64_t K, double min_prob, A* value, A* slopes) {
  using W = V<double>;
  constexpr int width = lanes<double>;
  double total = 0;
  for (int64_t k = 0; k < K; ++k)
    total += sums[k];
  if (total == 0) { // no row counts
    *value = 0;
    memset(slopes, 0, K * sizeof(A));
    return;
  }
  const double log_k = log(double(K));
  W phi = {}, added = {}, dot = {}, of_clamped = {};
  for (int64_t k = 0; k < K; k += width) {
    const int here = int(K - k < width ? K - k : width);
    double part[width];
    for (int i = 0; i < width; ++i)
      part[i] = i < here ? sums[k + i] / total : 1.0 / double(K); // which changes nothing
    const W q = load(part), high = max<double>(fill(min_prob), q), d = high * double(K) - 1.0;
    const W t = Math<W>::log1p(d);
    const I<double> clamped = q < min_prob;
    const W slope = clamped ? fill(log_k - 1) : t;
    phi += (d + 1.0) * t - d;
    added += high - q;
    dot += clamped ? fill(0.0) : t * q;
    of_clamped += clamped ? q : fill(0.0);
    for (int i = 0; i < here; ++i)
      slopes[k + i] = A(slope[i]);
  }
  const double shift = sum_across<double>(dot) - (1 - log_k) * sum_across<double>(of_clamped);
  *value = A(sum_across<double>(phi) / double(K) + sum_across<double>(added) * (1 - log_k));
  for (int64_t k = 0; k < K; ++k)
    slopes[k] = A((slopes[k] - shift) / total);
}

} // namespace anl::cpu
