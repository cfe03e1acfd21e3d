// The backward pass of softmax. Its forward pass is a loss of no terms that writes probabilities.
#pragma once

#include "long_row.h"
#include "tiles.h"

namespace anl::cpu {

template <class T, class A = Accumulator<T>> A dot_along(const T* a, const T* b, int n) {
  V<A> sum[unroll] = {};
  int i = 0;
  for (; i + block<A> <= n; i += block<A>)
#pragma GCC unroll 4
    for (int u = 0; u < unroll; ++u)
      sum[u] += load_wide(a + i + u * lanes<A>) * load_wide(b + i + u * lanes<A>);
  A total = sum_across<A>(add_up<A>(sum));
  for (; i < n; ++i)
    total += widen(a[i]) * widen(b[i]);
  return total;
}

// out = p (g - dot)
template <class T, class A = Accumulator<T>>
void softmax_gradient_along(const T* p, const T* g, A dot, int n, const Outlet<T>& out) {
  int i = 0;
  for (; i + lanes<A> <= n; i += lanes<A>)
    store_narrow(out.data + i, load_wide(p + i) * (load_wide(g + i) - dot), out.past_cache);
  for (; i < n; ++i)
    out.data[i] = narrow<T>(widen(p[i]) * (widen(g[i]) - dot));
  out.close(n);
}

// grad = p (g - sum p g), row by row.
template <class T> class SoftmaxBackwardRows : public Job {
public:
  explicit SoftmaxBackwardRows(const SoftmaxBackwardArgs& args)
      : args_(args), pieces_(args.shape) {}

  int64_t units(int) const override { return args_.shape.rows(); }
  int64_t elements_of_unit(int) const override { return args_.shape.K; }

  void run(int, int64_t begin, int64_t end) override {
    Workspace& space = Workspace::of_thread();
    Buffers<T> for_p(space), for_g(space);
    auto p = [&](int64_t n, int64_t c) { return pieces_.in(args_.probs, n, c, for_p.z); };
    auto g = [&](int64_t n, int64_t c) { return pieces_.in(args_.upstream, n, c, for_g.z); };
    for (int64_t n = begin; n < end; ++n) {
      double dot = 0;
      for (int64_t c = 0; c < pieces_.count; ++c)
        dot += dot_along(p(n, c), g(n, c), pieces_.size(c));
      for (int64_t c = 0; c < pieces_.count; ++c)
        softmax_gradient_along(p(n, c), g(n, c), Accumulator<T>(dot), pieces_.size(c),
                               pieces_.out(args_.grad, n, c, for_p.out, args_.past_cache));
    }
    finish_streaming();
  }

private:
  const SoftmaxBackwardArgs args_;
  const Pieces<T> pieces_;
};

// The same for the rows of tiles.
template <class T> class SoftmaxBackwardTiles : public TileJob<T, SoftmaxBackwardArgs> {
  using Base = TileJob<T, SoftmaxBackwardArgs>;
  using Base::args_, Base::tiles_, Base::P_;
  using typename Base::A;

public:
  using Base::Base;

private:
  void bring(const TilePlace& place, TileArrays<A>& arrays, int64_t k) const {
    tiles_.in(args_.probs, place, k, arrays.spare, arrays.z);
    tiles_.in(args_.upstream, place, k, arrays.spare, arrays.e);
  }
  void run_tile(const TilePlace& place, TileRows<A>& rows, TileArrays<A>& arrays) const override {
    A* const dot = rows.mass;
    for (int j = 0; j < P_; ++j)
      dot[j] = 0;
    tiles_.for_classes([&](int64_t first) {
      bring(place, arrays, first);
      for (int64_t i = 0, k = 0; k < tiles_.classes_from(first); ++k)
        for (int j = 0; j < P_; ++j, ++i)
          dot[j] += arrays.z[i] * arrays.e[i];
    });
    tiles_.for_classes([&](int64_t first) {
      if (!tiles_.at_once())
        bring(place, arrays, first);
      for (int64_t i = 0, k = 0; k < tiles_.classes_from(first); ++k)
        for (int j = 0; j < P_; ++j, ++i)
          arrays.out[i] = arrays.z[i] * (arrays.e[i] - dot[j]);
      tiles_.out(arrays.out, args_.grad, place, first, arrays.spare, args_.past_cache);
    });
  }
};

} // namespace anl::cpu
