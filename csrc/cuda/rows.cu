// Loss and gradient of long rows with neighbouring classes: a warp to a row, or a cluster.
#include "kernels.h"

#include <atomic>

namespace anl::cuda {
namespace {

// The zeros of an ignored row, which need not be read.
template <class T>
ANL_DEVICE void ignore_row(const RowLossArgs& args, int64_t n, int first, int step, bool reports) {
  using A = Accumulator<T>;
  if (reports) {
    const int64_t T_ = args.num_terms;
    store_to(args.row_losses, n, A(0));
    store_to(args.p_y, n, A(0));
    for (int64_t i = n * T_; i < (n + 1) * T_; ++i) {
      store_to(args.term_losses, i, A(0));
      store_to(args.denominators, i, A(0));
      store_to(args.term_slopes, 2 * i, A(0));
      store_to(args.term_slopes, 2 * i + 1, A(0));
    }
  }
  if (!args.grad.data)
    return;
  T* row = row_of<T>(args.grad, args.shape, n);
  const int K = int(args.shape.K);
  const Sink<T> grad(row, args.grad.cls, K);
  const A zeros[width<T>] = {};
  const int vectors = Vectors<T>::count(row, K), head = misaligned(row);
  for (int v = first; v < vectors; v += step)
    grad.store(v * width<T> - head, zeros);
}

template <class T>
ANL_KERNEL(warp_row_threads, sizeof(T) == 8 ? 3 : 5)
warp_rows_kernel(ANL_PARAM RowLossParam<Accumulator<T>> p) {
  using A = Accumulator<T>;
  const int warp = thread() / warp_size;
  const int64_t n = block_x() * (warp_row_threads / warp_size) + warp;
  if (n >= p.args.shape.B * p.args.shape.M)
    return;
  const int K = int(p.args.shape.K);
  const T* z = row_of<T>(p.args.logits, p.args.shape, n);
  const Label<A> label = label_of<T>(p.args, n, z, true);
  if (!label.counted && !p.all_rows) {
    ignore_row<T>(p.args, n, lane(), warp_size, lane() == 0);
    return;
  }
  char* shared = shared_memory() + warp * int(p.plan.shared_bytes / (warp_row_threads / warp_size));
  const RowSlots<A> slots(reinterpret_cast<A*>(shared), p.terms.num_dense);
  Lanes team(warp_size);
  Resident<T> source(z, K, label.y, 0, Vectors<T>::count(z, K), lane(), warp_size,
                     shared + slot_bytes<A>(p.terms.num_dense));
  source.start();
  source.finish();
  finish_row<T>(p, n, true, label, source, team, slots, sink_of<T>(p.args.grad, p.args.shape, n),
                sink_of<T>(p.args.probs, p.args.shape, n));
}

// At least; more would leave too few registers for the sweeps, which may not spill.
template <class T, bool kept>
constexpr int blocks_of_processor = sizeof(T) == 8 ? 1 : (kept ? 3 : 2);

// A cluster to a row; one block too. Kept in its shared memory, or read again for every sweep.
template <class T, bool kept>
ANL_KERNEL(row_threads, (blocks_of_processor<T, kept>))
cluster_row_kernel(ANL_PARAM RowLossParam<Accumulator<T>> p) {
  using A = Accumulator<T>;
  const int blocks = cluster_size(), block = cluster_rank();
  const int64_t n = block_x() / blocks;
  const int K = int(p.args.shape.K);
  const T* z = row_of<T>(p.args.logits, p.args.shape, n);
  const Label<A> label = label_of<T>(p.args, n, z, true);
  if (!label.counted && !p.all_rows) {
    ignore_row<T>(p.args, n, block * threads() + thread(), blocks * threads(),
                  block == 0 && thread() == 0);
    return;
  }
  const int vectors = Vectors<T>::count(z, K), each = (vectors + blocks - 1) / blocks;
  const int first = block * each, last = smaller_of(first + each, vectors);
  char* shared = shared_memory();
  const RowSlots<A> slots(reinterpret_cast<A*>(shared + Cluster::shared_bytes), p.terms.num_dense);
  const Sink<T> grad = sink_of<T>(p.args.grad, p.args.shape, n);
  const Sink<T> probs = sink_of<T>(p.args.probs, p.args.shape, n);
  if constexpr (kept) {
    Resident<T> source(z, K, label.y, first, last, thread(), threads(),
                       shared + Cluster::shared_bytes + slot_bytes<A>(p.terms.num_dense));
    source.start();
    Cluster team(shared);
    source.finish();
    finish_row<T>(p, n, true, label, source, team, slots, grad, probs);
  } else {
    const Streamed<T> source(z, K, label.y, first, last, thread(), threads());
    Cluster team(shared);
    finish_row<T>(p, n, true, label, source, team, slots, grad, probs);
  }
}

} // namespace

int largest_row_cluster(int device, int64_t shared_bytes) {
  constexpr int devices = 64;
  static std::atomic<int> known[devices]; // 0: not yet
  std::atomic<int>& blocks = known[device % devices];
  if (blocks == 0)
    blocks = largest_cluster(cluster_row_kernel<float, true>, row_threads, shared_bytes);
  return blocks;
}

void launch_rows(const RowLossArgs& args, const Plan& plan, void* stream) {
  with_type(args.type, [&](auto storage) {
    using T = decltype(storage);
    const auto p = param_of<Accumulator<T>>(args, plan);
    const Grid grid = grid_of(plan, args.shape, sizeof(T));
    if (plan.kind == Kind::WarpRows)
      launch(warp_rows_kernel<T>, "warp_rows", grid, stream, p);
    else if (plan.kind == Kind::Cluster)
      launch(cluster_row_kernel<T, true>, "cluster_row", grid, stream, p);
    else
      launch(cluster_row_kernel<T, false>, "stream_row", grid, stream, p);
  });
}

} // namespace anl::cuda
