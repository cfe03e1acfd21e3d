// The backward pass of softmax. Its forward pass is a loss of no terms that writes probabilities.
#pragma once

#include "lanes.h"
#include "rows.h"

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
  using A = typename AccumulatorOf<T>::A;
  explicit SoftmaxBackwardRows(const SoftmaxBackwardArgs& args) : args_(args), cut_(args.shape.K) {}

  int64_t units(int) const override { return args_.shape.rows(); }
  int64_t elements_of_unit(int) const override { return args_.shape.K; }

  void run(int, int64_t begin, int64_t end) override {
    Workspace space(Memory::of_thread(), 2 * Buffers<T>::bytes());
    Buffers<T> for_p(space), for_g(space);
    for (int64_t n = begin; n < end; ++n) {
      double dot = 0;
      for (int64_t c = 0; c < cut_.count(); ++c)
        dot += dot_along(in(args_.probs, n, c, for_p.z), in(args_.upstream, n, c, for_g.z),
                         cut_.size(c));
      for (int64_t c = 0; c < cut_.count(); ++c)
        softmax_gradient_along(
            in(args_.probs, n, c, for_p.z), in(args_.upstream, n, c, for_g.z), A(dot), cut_.size(c),
            Outlet<T>(at(args_.grad, n, c), args_.grad.cls, for_p.out, args_.past_cache));
    }
    finish_streaming();
  }

private:
  T* at(const Rows& rows, int64_t n, int64_t piece) const {
    return row_of<T>(rows, args_.shape, n) + cut_.start(piece) * rows.cls;
  }
  const T* in(const Rows& rows, int64_t n, int64_t piece, T* buffer) const {
    return gathered(at(rows, n, piece), rows.cls, cut_.size(piece), buffer);
  }

  const SoftmaxBackwardArgs args_;
  const Cut<A> cut_;
};

// The same for the rows of tiles.
template <class T> class SoftmaxBackwardTiles : public Job {
public:
  using A = typename AccumulatorOf<T>::A;
  explicit SoftmaxBackwardTiles(const SoftmaxBackwardArgs& args)
      : args_(args), tiles_(args.shape) {}

  int64_t units(int) const override { return tiles_.count(); }
  int64_t elements_of_unit(int) const override { return tiles_.tile.P * args_.shape.K; }

  void run(int, int64_t begin, int64_t end) override {
    TileMemory<A> memory(tiles_.tile, 0);
    for (int64_t unit = begin; unit < end; ++unit)
      run_tile(tiles_.place(unit), memory.rows.mass, memory.arrays);
    finish_streaming();
  }

private:
  void bring(const TilePlace& place, TileArrays<A>& arrays, int64_t k) const {
    tiles_.in(args_.probs, place, k, arrays.spare, arrays.z);
    tiles_.in(args_.upstream, place, k, arrays.spare, arrays.e);
  }
  void run_tile(const TilePlace& place, A* dot, TileArrays<A>& arrays) const {
    const int P = tiles_.tile.P;
    for (int j = 0; j < P; ++j)
      dot[j] = 0;
    for (int64_t first = 0; first < args_.shape.K; first += tiles_.tile.K) {
      bring(place, arrays, first);
      for (int64_t i = 0, k = 0; k < tiles_.classes_from(first); ++k)
        for (int j = 0; j < P; ++j, ++i)
          dot[j] += arrays.z[i] * arrays.e[i];
    }
    for (int64_t first = 0; first < args_.shape.K; first += tiles_.tile.K) {
      if (!tiles_.at_once())
        bring(place, arrays, first);
      for (int64_t i = 0, k = 0; k < tiles_.classes_from(first); ++k)
        for (int j = 0; j < P; ++j, ++i)
          arrays.out[i] = arrays.z[i] * (arrays.e[i] - dot[j]);
      tiles_.out(arrays.out, args_.grad, place, first, arrays.spare, args_.past_cache);
    }
  }

  const SoftmaxBackwardArgs args_;
  const Tiles<T> tiles_;
};

} // namespace anl::cpu
