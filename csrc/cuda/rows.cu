// Loss and gradient of long rows with neighbouring classes: a warp to a row, or a cluster.
#include "row_kernels.h"

#include <atomic>

namespace anl::cuda {
namespace {

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

} // namespace

int largest_row_cluster(int device, int64_t shared_bytes) {
  constexpr int devices = 64, portable = 8;
  static std::atomic<int> known[devices]; // 0: not yet
  std::atomic<int>& blocks = known[device % devices];
  if (blocks == 0)
    blocks =
        largest_cluster(cluster_row_kernel<float, true, Dense::Any>, kept_threads, shared_bytes);
  return blocks ? blocks.load() : portable;
}

void launch_rows(const RowLossArgs& args, const Plan& plan, void* stream) {
  if (plan.kind == Kind::Cluster && launch_common_rows(args, plan, stream))
    return;
  with_type(args.type, [&](auto storage) {
    using T = decltype(storage);
    const auto p = param_of<Accumulator<T>>(args, plan);
    const Grid grid = grid_of(plan, args.shape, sizeof(T));
    if (plan.kind == Kind::WarpRows)
      launch(warp_rows_kernel<T>, "warp_rows", grid, stream, p);
    else if (plan.kind == Kind::Cluster)
      launch(cluster_row_kernel<T, true, Dense::Any>, "cluster_row", grid, stream, p);
    else
      launch(cluster_row_kernel<T, false, Dense::Any>, "stream_row", grid, stream, p);
  });
}

} // namespace anl::cuda
