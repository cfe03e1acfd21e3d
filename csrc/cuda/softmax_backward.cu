// The gradient of a softmax: p (g - sum p g).
#include "kernels.h"

namespace anl::cuda {
namespace {

template <class A> struct SoftmaxBackwardParam {
  SoftmaxBackwardArgs args;
  int lanes; // of a row; 0: the block
};

// Classes that a thread meets of a row, in vectors where all three rows allow it.
template <class T> struct ThreeRows {
  using A = Accumulator<T>;
  const T *p, *g;
  T* out;
  int64_t p_step, g_step, out_step;
  int K;

  ANL_DEVICE ThreeRows(const SoftmaxBackwardArgs& args, int64_t n)
      : p(row_of<T>(args.probs, args.shape, n)), g(row_of<T>(args.upstream, args.shape, n)),
        out(row_of<T>(args.grad, args.shape, n)), p_step(args.probs.cls), g_step(args.upstream.cls),
        out_step(args.grad.cls), K(int(args.shape.K)) {}

  // Classes from the front that are whole vectors.
  ANL_DEVICE int in_vectors() const {
    const bool neighbours = p_step == 1 && g_step == 1 && out_step == 1;
    const bool aligned = misaligned(p) + misaligned(g) + misaligned(out) == 0;
    return neighbours && aligned ? K / width<T> * width<T> : 0;
  }

  ANL_DEVICE A dot(int rank, int size) const {
    A sum = 0;
    const int whole = in_vectors();
    for (int k = rank * width<T>; k < whole; k += size * width<T>) {
      A p_k[width<T>], g_k[width<T>];
      unpack<T>(load16(p + k), p_k);
      unpack<T>(load16(g + k), g_k);
#pragma unroll
      for (int i = 0; i < width<T>; ++i)
        sum += p_k[i] * g_k[i];
    }
    for (int k = whole + rank; k < K; k += size)
      sum += A(widen(p[k * p_step])) * A(widen(g[k * g_step]));
    return sum;
  }

  ANL_DEVICE void write(A dot, int rank, int size) const {
    const int whole = in_vectors();
    for (int k = rank * width<T>; k < whole; k += size * width<T>) {
      A p_k[width<T>], g_k[width<T>];
      unpack<T>(load16(p + k), p_k);
      unpack<T>(load16(g + k), g_k);
#pragma unroll
      for (int i = 0; i < width<T>; ++i)
        p_k[i] *= g_k[i] - dot;
      store16(out + k, pack<T>(p_k));
    }
    for (int k = whole + rank; k < K; k += size)
      out[k * out_step] = narrow<T>(A(widen(p[k * p_step])) * (A(widen(g[k * g_step])) - dot));
  }
};

template <class T>
ANL_KERNEL(row_threads, 4)
softmax_backward_kernel(ANL_PARAM SoftmaxBackwardParam<Accumulator<T>> p) {
  using A = Accumulator<T>;
  const int lanes = p.lanes ? p.lanes : threads();
  const int64_t n = block_x() * (threads() / lanes) + thread() / lanes;
  const bool exists = n < p.args.shape.B * p.args.shape.M;
  const ThreeRows<T> rows(p.args, exists ? n : 0);
  const int rank = thread() % lanes;
  Sums<A> sums = {exists ? rows.dot(rank, lanes) : A(0), 0};
  if (p.lanes) {
    sums = Lanes(lanes).reduce(sums);
  } else {
    Cluster team(shared_memory());
    sums = team.reduce(sums);
  }
  if (exists)
    rows.write(sums.value, rank, lanes);
}

} // namespace

void softmax_backward(const SoftmaxBackwardArgs& given, const Place& place) {
  SoftmaxBackwardArgs args = given;
  check_shape(args.shape);
  canonical(args.shape, args.probs, args.upstream, args.grad);
  with_type(args.type, [&](auto storage) {
    using T = decltype(storage);
    const bool neighbours = args.probs.cls == 1;
    const bool by_block = neighbours && args.shape.K * int64_t(sizeof(T)) > limits().warp_bytes;
    const int lanes = by_block ? 0 : neighbours || args.shape.M == 1 ? lanes_for(args.shape.K) : 1;
    const int64_t held = by_block ? 1 : row_threads / lanes;
    launch(softmax_backward_kernel<T>, "softmax_backward",
           {ceil_div(args.shape.rows(), held), 1, row_threads,
            by_block ? int64_t(Cluster::shared_bytes) : 0},
           place.stream, SoftmaxBackwardParam<Accumulator<T>>{args, lanes});
  });
}

} // namespace anl::cuda
