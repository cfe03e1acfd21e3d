// A device on the host: runs the clusters of a launch one after another, the threads of all blocks
// of a cluster as fibres. What would hang or be undefined on a GPU is an error.
#pragma once

#include "fibre.h"

#include <stdint.h>
#include <string>
#include <vector>

namespace anl::cuda {

constexpr int warp_size = 32;

struct Device {
  int capability;
  int processors;
  int64_t shared_bytes;
  int max_cluster;
};

struct Grid {
  int64_t blocks_x;
  int blocks_y = 1;
  int threads;
  int64_t shared_bytes = 0;
  int cluster = 1;
};

} // namespace anl::cuda

namespace anl::cuda::emulation {

constexpr int max_threads = 1024, max_blocks = 16; // of a block; of a cluster

// ---- what tests set ----------------------------------------------------------------------------

// The order in which clusters run, and of the threads that can go on, the one that does.
enum class Order { Forward, Backward, Shuffled };
void set_schedule(Order, uint64_t seed = 0);
// What describe_device says, and launches are held to; an H200 at first.
void set_device(const Device&);
const Device& device();
// The largest cluster that it places, though it says that it has larger ones.
inline int placed_cluster = 16;

// ---- the state of a launch ---------------------------------------------------------------------

// Barriers are numbered in the order in which they complete, over all launches. An access to memory
// keeps the number of the last one before it; it lies before a barrier that all of a warp, block or
// cluster met if that one's number is larger.
using Time = uint64_t;

// An access: its time and, in the lower bits, the thread.
using Access = uint64_t;
constexpr int thread_bits = 16;
constexpr Time copying = (Time(1) << (64 - thread_bits)) - 1; // the time of copies under way

// Some bytes of shared memory: the last write, and the last reads by any thread, by a thread other
// than that, and by a warp other than that one's. If a write comes too early after any read, it
// does so after one of these.
struct Shadow {
  Access write, read, other_thread, other_warp;
};
constexpr int shadow_bytes = 2; // the smallest number that kernels store

enum class State : uint8_t { Ready, BlockBarrier, ClusterBarrier, WarpBarrier, Shuffle, Ended };

struct Copy {
  char* to;
  const char* from;
  char bytes[16]; // as they were when the copy began
};

struct Exchange {
  const void* offered;
  void* received;
  int bytes, mask;
};

struct Warp {
  Time barrier = 0; // the last that all its threads met
  int at_barrier = 0, at_shuffle = 0;
};

struct Block {
  int64_t x = 0;
  int y = 0, rank = 0;
  Time barrier = 0;
  int at_barrier = 0, ended = 0;
  Time stored_by_peer = 0;
  std::vector<char> memory;
  char* shared = nullptr; // aligned, in `memory`
  std::vector<Shadow> shadow;
};

struct Thread {
  Fibre fibre;
  Block* block = nullptr;
  Warp* warp = nullptr;
  int index = 0; // in the block
  int id = 0;    // max_threads * rank + index
  State state = State::Ready;
  Exchange exchange = {};
  std::vector<Copy> copies;
};

struct Machine {
  Thread* thread = nullptr; // that runs
  Time now = 1;
  Time cluster_barrier = 0; // the last
  int cluster_barriers = 0; // since the cluster began
  const char* kernel = "";
  Grid grid = {};
};
inline Machine machine;

// ---- what threads do ---------------------------------------------------------------------------

// An error in the thread that runs.
[[noreturn]] void fail(const std::string& what);

void block_barrier();
void cluster_barrier();
void warp_barrier();
void shuffle(const Exchange&);
Block& block_of_rank(int rank);

// Runs call(argument) in every thread.
void launch(const char* kernel, const Grid&, void (*call)(const void*), const void* argument);

} // namespace anl::cuda::emulation
