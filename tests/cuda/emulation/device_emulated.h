// The words of csrc/cuda/device.h on the host, for tests: compile with ANL_EMULATED_DEVICE naming
// this file, as build.py does. A word that device.h gains goes here, and where threads wait in it
// or talk through it, to machine.h or shared.h.
//
// A launch runs at once, and throws std::runtime_error for what would hang or be undefined on a
// GPU.
#pragma once

#include "machine.h"
#include "numbers.h"
#include "shared.h"

// What CUDA's own header brings along.
#include <limits.h>
#include <math.h>
#include <stdexcept>
#include <stdint.h>
#include <string.h>
#include <string>
#include <type_traits>

#define ANL_KERNEL(max_threads, min_blocks) void
#define ANL_PARAM const
#define ANL_DEVICE inline

namespace anl::cuda {

struct alignas(16) Bytes16 {
  uint32_t words[4];
};

// ---- who am I ----------------------------------------------------------------------------------

inline int thread() { return emulation::machine.thread->index; }
inline int threads() { return emulation::machine.grid.threads; }
inline int64_t block_x() { return emulation::machine.thread->block->x; }
inline int block_y() { return emulation::machine.thread->block->y; }
inline int64_t blocks_x() { return emulation::machine.grid.blocks_x; }

// ---- talking to other threads ------------------------------------------------------------------

inline char* shared_memory() { return emulation::machine.thread->block->shared; }
template <class V> inline V shared_load(const V* from) {
  emulation::before_read(from, sizeof(V), alignof(V));
  return *from;
}
template <class V> inline void shared_store(V* to, V value) {
  emulation::before_write(to, sizeof(V), alignof(V));
  *to = value;
}

inline void block_barrier() { emulation::block_barrier(); }
inline void warp_barrier() { emulation::warp_barrier(); }

template <class V> inline V shuffle_xor(V value, int mask) {
  static_assert(sizeof(V) % 4 == 0 && std::is_trivially_copyable_v<V>);
  V received = value;
  emulation::shuffle({&value, &received, int(sizeof(V)), mask});
  return received;
}

// None may be a NaN.
inline float largest_of_warp(float x) {
  for (int mask = 16; mask > 0; mask /= 2)
    x = fmaxf(x, shuffle_xor(x, mask));
  return x;
}
inline float smallest_of_warp(float x) { return -largest_of_warp(-x); }

inline void copy_async(Bytes16* shared_to, const Bytes16* from) {
  emulation::start_copy(shared_to, from);
}
inline void wait_for_copies() { emulation::finish_copies(); }

inline int cluster_rank() { return emulation::machine.thread->block->rank; }
inline int cluster_size() { return emulation::machine.grid.cluster; }
inline void cluster_barrier() { emulation::cluster_barrier(); }
template <class V> inline void store_to_peer(V* own, int rank, V value) {
  static_assert(sizeof(V) % 4 == 0 && std::is_trivially_copyable_v<V>);
  memcpy(emulation::before_store_to_peer(own, rank, sizeof(V)), &value, sizeof(V));
}

// ---- memory ------------------------------------------------------------------------------------

inline Bytes16 load16(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0)
    emulation::fail_misaligned("load16", from, 16);
  return *static_cast<const Bytes16*>(from);
}
inline void store16(void* to, Bytes16 v) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0)
    emulation::fail_misaligned("store16", to, 16);
  memcpy(to, &v, sizeof v);
}

// ---- the host's side ---------------------------------------------------------------------------

inline Device describe_device(int) { return emulation::device(); }

template <class Param> int largest_cluster(void (*)(Param), int, int64_t) {
  return emulation::device().max_cluster;
}

struct ClusterRefused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class Param>
void launch(void (*kernel)(Param), const char* name, const Grid& grid, void*, const Param& param) {
  static_assert(std::is_trivially_copyable_v<Param>);
  static_assert(sizeof(Param) <= 32764, "more than CUDA 12.1 takes");
  if (grid.cluster > emulation::placed_cluster && grid.cluster <= emulation::device().max_cluster)
    throw ClusterRefused(name);
  struct Call {
    void (*kernel)(Param);
    const Param& param;
  } const call = {kernel, param};
  emulation::launch(
      name, grid,
      [](const void* of) {
        const Call& call = *static_cast<const Call*>(of);
        call.kernel(call.param);
      },
      &call);
}

} // namespace anl::cuda
