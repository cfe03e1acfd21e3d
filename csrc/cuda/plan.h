// Which kind of launch a row takes, and how it goes: tables with their reasons. None of the numbers
// has been measured on a GPU yet.
#pragma once

#include "device.h"
#include "interface.h"

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <utility>

namespace anl::cuda {

enum class Kind { Tile, Elements, WarpRows, Cluster, Stream, Split };

inline const char* name_of(Kind kind) {
  constexpr const char* names[] = {"tile", "elements", "warp_rows", "cluster", "stream", "split"};
  return names[int(kind)];
}

constexpr int tile_threads = 128, row_threads = 256, warp_row_threads = 128;

// Threads of a multiprocessor whose registers suffice for the sweeps of kept rows, but in float64.
constexpr int kept_threads = 768;

// Parts of a row: several for each multiprocessor, and few enough that merging them is quick.
constexpr int max_parts = 1024;

struct Plan {
  Kind kind;
  int lanes = warp_size;   // of a row
  bool rows_first = false; // a tile's rows, not its classes, are neighbours in memory
  int cluster = 1;
  int threads = row_threads; // of a block that has a row or a part of one
  int64_t shared_bytes = 0;
  int64_t part_bytes = 0; // of a row that is split, or of its gradient
};

inline int64_t size_of(Type type) {
  return type == Type::Float64 ? 8 : type == Type::Float32 ? 4 : 2;
}
inline int64_t accumulator_size(Type type) { return type == Type::Float64 ? 8 : 4; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Bytes of a row in whole vectors, wherever it starts.
inline int64_t row_bytes(int64_t K, int64_t size) { return ceil_div(K * size, 16) * 16 + 16; }

inline int64_t aligned(int64_t bytes) { return ceil_div(bytes, 16) * 16; }

inline void check_shape(const Shape& shape) {
  if (shape.K > INT_MAX - (1 << 16)) // so that a step past the end stays an int
    throw std::runtime_error("anl_kernels: the cuda backend takes fewer than 2^31 classes, got " +
                             std::to_string(shape.K));
}

// Rows of one stride: a batch of one where two strides make one, positions where there were
// batches.
template <class... Others> void canonical(Shape& shape, Rows& rows, Others&... others) {
  if (shape.K == 1)
    for (Rows* r : {&rows, &others...})
      r->cls = 1; // whatever it was
  const auto one_stride = [&](const Rows& r) { return !r.data || r.batch == r.pos * shape.M; };
  if (shape.M == 1) {
    for (Rows* r : {&rows, &others...})
      r->pos = r->batch;
    std::swap(shape.B, shape.M);
  } else if (one_stride(rows) && (one_stride(others) && ...)) {
    shape.M *= std::exchange(shape.B, 1);
  }
}

// Lanes to a row: each has eight classes or so, so that a row's own work is not all there is.
inline int lanes_for(int64_t K) {
  int lanes = 1;
  while (lanes < warp_size && lanes * 8 < K)
    lanes *= 2;
  return lanes;
}

// A tile of short rows, or of rows that are neighbours in memory, goes through shared memory, so
// that both directions are read and written in whole lines.
inline Plan plan_tile(const Shape& shape, const Rows& rows, int64_t size, int64_t slot_bytes,
                      int64_t shared_limit) {
  Plan plan = {Kind::Tile};
  plan.rows_first = rows.pos != 0 && std::abs(rows.pos) < std::abs(rows.cls) && shape.M > 1;
  plan.lanes = plan.rows_first ? 1 : lanes_for(shape.K);
  const int64_t held = tile_threads / plan.lanes;
  const int64_t slots = aligned(held * slot_bytes);
  plan.shared_bytes = slots + aligned(held * shape.K * size);
  // A third of what there is, so that blocks share a multiprocessor and hide each other's loads.
  if (plan.shared_bytes > shared_limit / 3) {
    plan.kind = Kind::Elements;
    plan.shared_bytes = slots;
  }
  return plan;
}

// `slot_bytes`: of the numbers that a row keeps in shared memory beside its logits.
inline Plan plan_rows(Type type, const Shape& shape, const Rows& rows, int64_t slot_bytes,
                      int64_t fixed_bytes, const Device& device, const Limits& limits) {
  const int64_t size = size_of(type), K = shape.K;
  const int64_t shared_limit = std::min(device.shared_bytes, limits.shared_bytes);
  if (rows.cls != 1 || K <= limits.tile_classes)
    return plan_tile(shape, rows, size, slot_bytes, shared_limit);
  const int64_t bytes = row_bytes(K, size);
  if (bytes <= limits.warp_bytes) {
    Plan plan = {Kind::WarpRows};
    plan.shared_bytes = warp_row_threads / warp_size * (aligned(slot_bytes) + bytes);
    return plan;
  }
  Plan plan = {Kind::Cluster};
  const int64_t fixed = aligned(fixed_bytes) + aligned(slot_bytes);
  const int max_cluster = int(std::min<int64_t>(device.max_cluster, limits.max_cluster));
  // Grown until a block's part is short enough for several blocks to share a multiprocessor: while
  // one waits for memory another computes.
  while (2 * plan.cluster <= max_cluster && K * size > plan.cluster * limits.chunk_bytes)
    plan.cluster *= 2;
  const int64_t vectors = ceil_div(bytes / 16, plan.cluster);
  plan.shared_bytes = fixed + vectors * 16;
  // Fewer threads than four vectors each would spend their time in reductions.
  while (plan.threads > 64 && plan.threads * 4 > vectors)
    plan.threads /= 2;
  // Where one or two blocks fill the shared memory, they have the threads of three.
  const int64_t blocks = std::max<int64_t>(1, device.shared_bytes / plan.shared_bytes);
  if (size < 8 && plan.threads == row_threads && blocks * row_threads < kept_threads)
    plan.threads = int(kept_threads / blocks);
  if (plan.shared_bytes <= shared_limit)
    return plan;
  plan.cluster = 1;
  plan.threads = row_threads;
  plan.shared_bytes = fixed;
  plan.kind = Kind::Stream;
  if (shape.rows() < limits.split_below_rows && bytes >= limits.split_from_bytes) {
    plan.kind = Kind::Split;
    plan.part_bytes = std::max(limits.part_bytes, aligned(ceil_div(bytes, max_parts)));
  }
  return plan;
}

// The gradient from what was saved of a row: tiles, or parts of rows.
inline Plan plan_grad(Type type, const Shape& shape, const Rows& rows, const Device& device,
                      const Limits& limits) {
  if (rows.cls != 1 || shape.K <= limits.tile_classes)
    return plan_tile(shape, rows, size_of(type), 0,
                     std::min(device.shared_bytes, limits.shared_bytes));
  Plan plan = {Kind::Stream};
  const int64_t bytes = row_bytes(shape.K, size_of(type));
  plan.part_bytes = std::max(limits.part_bytes, aligned(ceil_div(bytes, max_parts)));
  return plan;
}

// Threads that have two of these vectors each, at the least, which they read together.
inline int threads_for(int64_t vectors, int most) {
  return int(std::min<int64_t>(most, ceil_div(vectors, 2 * warp_size) * warp_size));
}

// Blocks that a multiprocessor should have when rows are only read.
constexpr int reading_blocks = 4;

// The partials or the sums of a shard: nearly every call reads its rows once, so that they are
// not kept, and lanes read them where they lie. Few long rows take clusters, which fill the device
// without memory to merge in.
inline Plan plan_shard(Type type, const Shape& shape, const Rows& rows, int64_t fixed_bytes,
                       const Device& device, const Limits& limits) {
  if (rows.cls != 1 || shape.K <= limits.tile_classes)
    return plan_tile(shape, rows, size_of(type), 0, 0);
  Plan plan = {Kind::Stream};
  const int64_t bytes = row_bytes(shape.K, size_of(type));
  const int max_cluster = int(std::min<int64_t>(device.max_cluster, limits.max_cluster));
  while (2 * plan.cluster <= max_cluster && bytes >= 2 * plan.cluster * limits.part_bytes &&
         shape.rows() * plan.cluster < reading_blocks * device.processors)
    plan.cluster *= 2;
  plan.threads = threads_for(ceil_div(bytes / 16, plan.cluster), row_threads);
  plan.shared_bytes = fixed_bytes;
  return plan;
}

inline int64_t parts_of_row(const Plan& plan, const Shape& shape, int64_t size) {
  return ceil_div(row_bytes(shape.K, size), plan.part_bytes);
}

// The launch of a plan; of the parts, where rows are split.
inline Grid grid_of(const Plan& plan, const Shape& shape, int64_t size) {
  const int64_t N = shape.rows();
  switch (plan.kind) {
  case Kind::Tile:
  case Kind::Elements:
    return {shape.B * ceil_div(shape.M, tile_threads / plan.lanes), 1, tile_threads,
            plan.shared_bytes};
  case Kind::WarpRows:
    return {ceil_div(N, warp_row_threads / warp_size), 1, warp_row_threads, plan.shared_bytes};
  case Kind::Cluster:
  case Kind::Stream:
    return {N * plan.cluster, 1, plan.threads, plan.shared_bytes, plan.cluster};
  case Kind::Split:
    return {N, int(parts_of_row(plan, shape, size)), plan.threads, plan.shared_bytes};
  }
  return {};
}

} // namespace anl::cuda
