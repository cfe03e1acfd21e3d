// The CUDA kernels, to whoever has pointers and a stream: no PyTorch.
#pragma once

#include "../call.h"

#include <functional>

namespace anl::cuda {

// Where kernels run. The device must be the current one.
struct Place {
  int device;
  void* stream; // cudaStream_t
};

// Which rows take which kind of launch; see plan.h. Tests change them to meet every kind at small
// sizes.
struct Limits {
  int64_t tile_classes = 128;   // neighbouring classes up to this many: several rows in a tile
  int64_t warp_bytes = 4 << 10; // rows up to this long: a warp each
  int64_t chunk_bytes =
      32 << 10;             // of a row that a block of a cluster takes, while there are blocks
  int64_t max_cluster = 16; // blocks
  int64_t shared_bytes = 1 << 20;     // of a block, where the device has more
  int64_t split_below_rows = 64;      // fewer rows than this are split, if they are
  int64_t split_from_bytes = 1 << 18; // this long, and no cluster holds one;
  int64_t part_bytes = 32 << 10;      // a block then takes this much
};
Limits& limits();

// Names of functors are places in the list of terms.h.
int num_functors();

// Most terms in a sum.
constexpr int max_terms = 32;

// Gives device memory to work in, for as long as the kernels that the call starts run.
using Workspace = std::function<void*(int64_t bytes)>;

void row_loss(const RowLossArgs&, const Workspace&, const Place&);
void row_grad(const RowGradArgs&, const Place&);
void softmax_backward(const SoftmaxBackwardArgs&, const Place&);

// Sums of groups of rows, of which there are column_groups: args.sums is (groups, K).
int64_t column_groups(const ColumnArgs&, const Place&);
void column_sums(const ColumnSumsArgs&, const Place&);
void column_grad(const ColumnGradArgs&, const Place&);

void shard_partials(const ShardArgs&, const Place&);
void shard_sums(const ShardArgs&, const Place&);
void shard_finish(const ShardArgs&, const Place&);

// Multiplies `count` numbers by one on the device, in the accumulator's type: float64 for float64,
// else float32. Reads and writes nothing when it is 1.
void scale(Type, void* data, int64_t count, const void* factor, const Place&);

// How a call is launched, for people and tests.
struct Launched {
  const char* kind; // plan.h
  int64_t blocks;
  int threads, cluster;
  int64_t shared_bytes;
};
Launched row_loss_launch(const RowLossArgs&, const Place&);
Launched shard_launch(const RowLossArgs&, const Place&); // of partials and of sums

} // namespace anl::cuda
