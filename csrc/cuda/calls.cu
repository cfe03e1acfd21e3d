// The calls of interface.h that choose among kernels.
#include "kernels.h"

namespace anl::cuda {
namespace {

Device device_of(const Place& place) {
  Device device = describe_device(place.device);
  if (device.max_cluster > 1)
    device.max_cluster =
        std::min(device.max_cluster, largest_row_cluster(place.device, device.shared_bytes));
  return device;
}

// Calls run(device), and again as if there were no clusters if the device refuses one: MPS and
// green contexts leave a process fewer multiprocessors than the device says it has.
template <class Run> void with_clusters_if_placed(const Place& place, const Run& run) {
  Device device = device_of(place);
  try {
    return run(device);
  } catch (const ClusterRefused&) {
    device.max_cluster = 1;
  }
  run(device);
}

// Rows of one stride, and the plan for them.
Plan planned(RowLossArgs& args, const Device& device) {
  check_shape(args.shape);
  canonical(args.shape, args.logits, args.grad, args.probs);
  const int64_t slots =
      RowSlots<float>::size(terms_of<float>(args).num_dense) * accumulator_size(args.type);
  return plan_rows(args.type, args.shape, args.logits, slots, Cluster::shared_bytes, device,
                   limits());
}

Plan planned_shard(RowLossArgs& args, const Device& device) {
  check_shape(args.shape);
  canonical(args.shape, args.logits);
  return plan_shard(args.type, args.shape, args.logits, Cluster::shared_bytes, device, limits());
}

Launched launched(const RowArgs& args, const Plan& plan) {
  const Grid grid = grid_of(plan, args.shape, size_of(args.type));
  return {name_of(plan.kind), grid.blocks_x * grid.blocks_y, grid.threads, grid.cluster,
          grid.shared_bytes};
}

int64_t saved_bytes(const RowLossArgs& args) {
  return args.shape.rows() * (num_saved + args.num_terms) * accumulator_size(args.type);
}

// The sums, then the gradient and the softmax from what was saved of the rows.
void split_row_loss(RowLossArgs args, const Plan& plan, const Workspace& workspace,
                    const Place& place) {
  const int64_t sums = split_workspace(args, plan);
  char* const memory = static_cast<char*>(workspace(sums + saved_bytes(args)));
  if (!args.saved)
    args.saved = memory + sums;
  launch_split(args, plan, memory, place.stream);
  if (!args.grad.data && !args.probs.data)
    return;
  RowGradArgs grad = {args, args.saved};
  const Plan grad_plan =
      plan_grad(args.type, args.shape, args.logits, describe_device(place.device), limits());
  launch_grad_rows(grad, args.probs, grad_plan, place.stream);
}

} // namespace

Limits& limits() {
  static Limits limits;
  return limits;
}

int num_functors() { return count_of_functors; }

void row_loss(const RowLossArgs& given, const Workspace& workspace, const Place& place) {
  with_clusters_if_placed(place, [&](const Device& device) {
    RowLossArgs args = given;
    const Plan plan = planned(args, device);
    switch (plan.kind) {
    case Kind::Tile:
    case Kind::Elements:
      return launch_tiles(args, plan, place.stream);
    case Kind::WarpRows:
    case Kind::Cluster:
    case Kind::Stream:
      return launch_rows(args, plan, place.stream);
    case Kind::Split:
      return split_row_loss(args, plan, workspace, place);
    }
  });
}

Launched row_loss_launch(const RowLossArgs& given, const Place& place) {
  RowLossArgs args = given;
  const Plan plan = planned(args, device_of(place));
  return launched(args, plan);
}

void shard_partials(const ShardArgs& given, const Place& place) {
  with_clusters_if_placed(place, [&](const Device& device) {
    ShardArgs args = given;
    const Plan plan = planned_shard(args, device);
    launch_shard_partials(args, plan, place.stream);
  });
}

void shard_sums(const ShardArgs& given, const Place& place) {
  with_clusters_if_placed(place, [&](const Device& device) {
    ShardArgs args = given;
    const Plan plan = planned_shard(args, device);
    launch_shard_sums(args, plan, place.stream);
  });
}

Launched shard_launch(const RowLossArgs& given, const Place& place) {
  RowLossArgs args = given;
  const Plan plan = planned_shard(args, device_of(place));
  return launched(args, plan);
}

void row_grad(const RowGradArgs& given, const Place& place) {
  RowGradArgs args = given;
  check_shape(args.shape);
  canonical(args.shape, args.logits, args.grad);
  const Plan plan =
      plan_grad(args.type, args.shape, args.logits, describe_device(place.device), limits());
  if (plan.kind == Kind::Stream)
    launch_grad_rows(args, {}, plan, place.stream);
  else
    launch_grad_tiles(args, plan, place.stream);
}

} // namespace anl::cuda
