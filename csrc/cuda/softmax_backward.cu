// The gradient of a softmax: p (g - sum p g).
#include "seats.h"

namespace anl::cuda {
namespace {

struct SoftmaxBackwardParam {
  SoftmaxBackwardArgs args;
  int lanes; // of a row; 0: the block
};

// Classes that a thread meets of a row, in vectors where all three rows allow it.
template <class T> struct ThreeRows {
  using A = Accumulator<T>;
  const StridedRow<T> p, g, out;
  const int rank, size, K, whole; // classes from the front that are whole vectors

  ANL_DEVICE ThreeRows(const SoftmaxBackwardArgs& args, const Seat& seat, int64_t n)
      : p(args.probs, args.shape, n), g(args.upstream, args.shape, n),
        out(args.grad, args.shape, n), rank(seat.rank), size(seat.size), K(int(args.shape.K)),
        whole(p.in_vectors() && g.in_vectors() && out.in_vectors() ? K / width<T> * width<T> : 0) {}

  ANL_DEVICE A dot() const {
    A sum = 0;
    for (int k = rank * width<T>; k < whole; k += size * width<T>) {
      A p_k[width<T>], g_k[width<T>];
      p.load(k, p_k);
      g.load(k, g_k);
#pragma unroll
      for (int i = 0; i < width<T>; ++i)
        sum += p_k[i] * g_k[i];
    }
    for (int k = whole + rank; k < K; k += size)
      sum += p[k] * g[k];
    return sum;
  }

  ANL_DEVICE void write(A dot) const {
    for (int k = rank * width<T>; k < whole; k += size * width<T>) {
      A p_k[width<T>], g_k[width<T>];
      p.load(k, p_k);
      g.load(k, g_k);
#pragma unroll
      for (int i = 0; i < width<T>; ++i)
        p_k[i] *= g_k[i] - dot;
      out.store(k, p_k);
    }
    for (int k = whole + rank; k < K; k += size)
      out.put(k, p[k] * (g[k] - dot));
  }
};

template <class T>
ANL_KERNEL(row_threads, 4)
softmax_backward_kernel(ANL_PARAM SoftmaxBackwardParam p) {
  using A = Accumulator<T>;
  const Seat seat(p.lanes);
  const bool exists = seat.n < p.args.shape.B * p.args.shape.M;
  const ThreeRows<T> rows(p.args, seat, exists ? seat.n : 0);
  const Sums<A> sums = seat.reduce(Sums<A>{exists ? rows.dot() : A(0), 0});
  if (exists)
    rows.write(sums.value);
}

} // namespace

void softmax_backward(const SoftmaxBackwardArgs& given, const Place& place) {
  SoftmaxBackwardArgs args = given;
  check_shape(args.shape);
  canonical(args.shape, args.probs, args.upstream, args.grad);
  with_type(args.type, [&](auto storage) {
    using T = decltype(storage);
    const bool one_thread = args.probs.cls != 1 && args.shape.M != 1;
    const Seats seats(args.shape, args.probs, one_thread, sizeof(T));
    launch(softmax_backward_kernel<T>, "softmax_backward", seats.grid, place.stream,
           SoftmaxBackwardParam{args, seats.lanes});
  });
}

} // namespace anl::cuda
