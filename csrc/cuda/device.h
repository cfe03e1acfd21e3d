// The words that kernels are written in: threads, warps, blocks, clusters, shared memory and their
// synchronisation. The one file that speaks CUDA; tests replace it by an emulation on the host
// (tests/cuda/emulation), so that the same kernels run on any machine.
//
// Needs sm_80; clusters are there from sm_90 on.
#pragma once

#ifdef ANL_EMULATED_DEVICE
#include ANL_EMULATED_DEVICE
#else

#include <climits>
#include <cstring>
#include <cuda_runtime.h>
#include <stdexcept>
#include <stdint.h>
#include <string>

#define ANL_KERNEL(max_threads, min_blocks)                                                        \
  __global__ void __launch_bounds__(max_threads, min_blocks)
#define ANL_PARAM const __grid_constant__
#define ANL_DEVICE __device__ __forceinline__

namespace anl::cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
struct alignas(16) Bytes16 {
  uint32_t words[4];
};

constexpr int warp_size = 32;

// ---- who am I ----------------------------------------------------------------------------------

ANL_DEVICE int thread() { return int(threadIdx.x); }
ANL_DEVICE int threads() { return int(blockDim.x); }
ANL_DEVICE int64_t block_x() { return blockIdx.x; }
ANL_DEVICE int block_y() { return int(blockIdx.y); }
ANL_DEVICE int64_t blocks_x() { return gridDim.x; }

// ---- talking to other threads ------------------------------------------------------------------
// Memory that another thread of the block reads goes through shared_load and shared_store, where
// the emulation looks for races.

// The dynamic shared memory of the block, aligned to 16 bytes.
ANL_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char bytes[];
  return bytes;
}
template <class V> ANL_DEVICE V shared_load(const V* from) { return *from; }
template <class V> ANL_DEVICE void shared_store(V* to, V value) { *to = value; }

ANL_DEVICE void block_barrier() { __syncthreads(); }
ANL_DEVICE void warp_barrier() { __syncwarp(); }

// The value of the lane whose number differs by `mask`; all 32 lanes call it together. V is made
// of 4-byte words.
template <class V> ANL_DEVICE V shuffle_xor(V value, int mask) {
  static_assert(sizeof(V) % 4 == 0);
  uint32_t words[sizeof(V) / 4];
  memcpy(words, &value, sizeof(V));
#pragma unroll
  for (uint32_t& word : words)
    word = __shfl_xor_sync(0xffffffffu, word, mask);
  memcpy(&value, words, sizeof(V));
  return value;
}

// The largest and the smallest that a lane of the warp has, for all; none may be a NaN. Floats
// whose sign makes them small are ordered as whole numbers, which a warp reduces in one
// instruction.
ANL_DEVICE int ordered(int bits) { return bits ^ (bits >> 31 & 0x7fffffff); }
ANL_DEVICE float largest_of_warp(float x) {
  return __int_as_float(ordered(__reduce_max_sync(0xffffffffu, ordered(__float_as_int(x)))));
}
ANL_DEVICE float smallest_of_warp(float x) {
  return __int_as_float(ordered(__reduce_min_sync(0xffffffffu, ordered(__float_as_int(x)))));
}

// 16 bytes from global to shared memory, there once wait_for_copies returns, for this thread alone.
ANL_DEVICE void copy_async(Bytes16* shared_to, const Bytes16* from) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared_to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
ANL_DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

#if __CUDA_ARCH__ >= 900
ANL_DEVICE int cluster_rank() {
  int rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
ANL_DEVICE int cluster_size() {
  int size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
// All threads of all blocks of the cluster; what they stored before, also to peers, is then seen.
// A block must not end while peers may still store to it. Not .aligned: a warp may arrive in parts.
ANL_DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release;\n"
               "barrier.cluster.wait.acquire;" ::
                   : "memory");
}
// Stores to where `own`, an address of this block's shared memory, is in the block of that rank.
template <class V> ANL_DEVICE void store_to_peer(V* own, int rank, V value) {
  static_assert(sizeof(V) % 4 == 0);
  const auto here = static_cast<uint32_t>(__cvta_generic_to_shared(own));
  uint32_t there, words[sizeof(V) / 4];
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
  memcpy(words, &value, sizeof(V));
#pragma unroll
  for (int i = 0; i < int(sizeof(V) / 4); ++i)
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(there + 4 * i), "r"(words[i]) : "memory");
}
#else
ANL_DEVICE int cluster_rank() { return 0; }
ANL_DEVICE int cluster_size() { return 1; }
ANL_DEVICE void cluster_barrier() {}
template <class V> ANL_DEVICE void store_to_peer(V*, int, V) {}
#endif

// ---- memory ------------------------------------------------------------------------------------

// Global memory.
ANL_DEVICE Bytes16 load16(const void* from) {
  const uint4 v = *static_cast<const uint4*>(from);
  return {{v.x, v.y, v.z, v.w}};
}
ANL_DEVICE void store16(void* to, Bytes16 v) {
  *static_cast<uint4*>(to) = {v.words[0], v.words[1], v.words[2], v.words[3]};
}

// ---- numbers -----------------------------------------------------------------------------------

// Of a power of 2.
ANL_DEVICE int log2_of(int power) { return 31 - __clz(power); }

ANL_DEVICE float widen(BFloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
ANL_DEVICE float widen(Float16 x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}
ANL_DEVICE float widen(float x) { return x; }
ANL_DEVICE double widen(double x) { return x; }

// Rounds to nearest even; two numbers, the first in the lower half.
template <class T> ANL_DEVICE uint32_t narrow_pair(float low, float high);
template <> ANL_DEVICE uint32_t narrow_pair<BFloat16>(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
template <> ANL_DEVICE uint32_t narrow_pair<Float16>(float low, float high) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// The larger and the smaller of two numbers each, as narrow_pair packs them; a NaN loses.
template <class T> ANL_DEVICE uint32_t larger_pair(uint32_t a, uint32_t b);
template <class T> ANL_DEVICE uint32_t smaller_pair(uint32_t a, uint32_t b);
#define ANL_PAIR(name, T, instruction)                                                             \
  template <> ANL_DEVICE uint32_t name<T>(uint32_t a, uint32_t b) {                                \
    uint32_t both;                                                                                 \
    asm(instruction " %0, %1, %2;" : "=r"(both) : "r"(a), "r"(b));                                 \
    return both;                                                                                   \
  }
ANL_PAIR(larger_pair, BFloat16, "max.bf16x2")
ANL_PAIR(smaller_pair, BFloat16, "min.bf16x2")
ANL_PAIR(larger_pair, Float16, "max.f16x2")
ANL_PAIR(smaller_pair, Float16, "min.f16x2")
#undef ANL_PAIR

// 2^x to about 2 units in the last place; results below 2^-126 are 0.
ANL_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// a b + c, rounded once.
ANL_DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }

// A product that the compiler does not fuse with an addition.
ANL_DEVICE float product(float a, float b) { return __fmul_rn(a, b); }
ANL_DEVICE double product(double a, double b) { return __dmul_rn(a, b); }

// ---- the host's side ---------------------------------------------------------------------------

struct Device {
  int capability; // 10 * major + minor
  int processors;
  int64_t shared_bytes; // that one block may have
  int max_cluster;      // blocks; 1: no clusters
};

struct Grid {
  int64_t blocks_x;
  int blocks_y = 1;
  int threads;
  int64_t shared_bytes = 0;
  int cluster = 1; // neighbouring blocks in x
};

// A launch whose clusters the device does not place.
struct ClusterRefused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline std::string message_of(cudaError_t error, const char* what) {
  return std::string("anl_kernels: ") + what + ": " + cudaGetErrorString(error) +
         " (CUDA may say so of what ran before)";
}

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess)
    return;
  cudaGetLastError(); // or it would come up again in whatever is called next
  throw std::runtime_error(message_of(error, what));
}

inline Device describe_device(int index) {
  auto attribute = [index](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, index), "cudaDeviceGetAttribute");
    return value;
  };
  Device device;
  device.capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                      attribute(cudaDevAttrComputeCapabilityMinor);
  device.processors = attribute(cudaDevAttrMultiProcessorCount);
  device.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  device.max_cluster = attribute(cudaDevAttrClusterLaunch) ? 16 : 1;
  return device;
}

// Lets a kernel have as much shared memory as a block of the current device may. Always that much:
// the limit is the function's, for every thread that launches it.
inline cudaError_t allow_shared_memory(const void* entry) {
  int device = 0, bytes = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  return error;
}

// While this lives the thread may ask what is not allowed while a graph is captured, such as what
// loads a kernel.
class RelaxedCapture {
public:
  RelaxedCapture() { exchange(); }
  ~RelaxedCapture() { exchange(); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

private:
  void exchange() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// The most blocks that a cluster of this kernel can have on the current device, when each has that
// much shared memory: 16 on a whole H100, fewer where its multiprocessors are shared out (MIG).
// 0: the device does not say, perhaps for an error of what ran before.
template <class Param>
int largest_cluster(void (*kernel)(Param), int threads, int64_t shared_bytes) {
  const RelaxedCapture relaxed;
  const auto entry = reinterpret_cast<const void*>(kernel);
  cudaFuncAttributes attributes = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(16);
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared_bytes);
  int blocks = 0;
  bool known = cudaFuncGetAttributes(&attributes, entry) == cudaSuccess;
  if (known && attributes.ptxVersion < 90) // compiled at run time from code that knows no clusters
    return 1;
  known = known &&
          cudaFuncSetAttribute(entry, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) ==
              cudaSuccess &&
          allow_shared_memory(entry) == cudaSuccess &&
          cudaOccupancyMaxPotentialClusterSize(&blocks, entry, &config) == cudaSuccess;
  if (!known)
    cudaGetLastError(); // and forget it
  return known ? blocks : 0;
}

// Starts a kernel on a stream (a cudaStream_t) of the current device, or throws, ClusterRefused
// where it may do without clusters.
template <class Param>
void launch(void (*kernel)(Param), const char* name, const Grid& grid, void* stream,
            const Param& param) {
  if (grid.blocks_x > INT_MAX)
    throw std::runtime_error(std::string("anl_kernels: too many rows for ") + name);
  const RelaxedCapture relaxed; // the first launch loads the kernel
  const auto entry = reinterpret_cast<const void*>(kernel);
  if (grid.shared_bytes > 48 << 10)
    check(allow_shared_memory(entry), name);
  cudaLaunchAttribute cluster = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(grid.blocks_x), unsigned(grid.blocks_y));
  config.blockDim = dim3(unsigned(grid.threads));
  config.dynamicSmemBytes = size_t(grid.shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  if (grid.cluster > 1) {
    if (grid.cluster > 8)
      check(cudaFuncSetAttribute(entry, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), name);
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = unsigned(grid.cluster);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    config.attrs = &cluster;
    config.numAttrs = 1;
  }
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, Param(param));
  if (grid.cluster > 1 &&
      (error == cudaErrorInvalidClusterSize || error == cudaErrorLaunchOutOfResources)) {
    cudaGetLastError();
    throw ClusterRefused(message_of(error, name));
  }
  check(error, name);
}

} // namespace anl::cuda

#endif
