#include "buffers.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace anl::cpu {

#if defined(__linux__)
namespace {

// Smaller ones the C library reuses by itself.
constexpr int64_t smallest_cached = int64_t(1) << 22;
constexpr int64_t huge_page = int64_t(1) << 21;

struct Block {
  void* data;
  int64_t bytes;
};

class Cache {
public:
  Cache() : limit_(int64_t(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE) / 8) {}

  Block take(int64_t wanted) {
    const int64_t bytes = (wanted + huge_page - 1) / huge_page * huge_page;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      auto best = free_.end();
      for (auto block = free_.begin(); block != free_.end(); ++block)
        if (fits(*block, bytes) && (best == free_.end() || block->bytes < best->bytes))
          best = block;
      if (best != free_.end()) {
        const Block block = *best;
        free_.erase(best);
        held_ -= block.bytes;
        return block;
      }
    }
    return map(bytes);
  }

  void give(Block block) {
    madvise(block.data, block.bytes, MADV_FREE);
    std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(block);
    held_ += block.bytes;
    shrink(limit_);
  }

  CacheFacts facts() {
    std::lock_guard<std::mutex> lock(mutex_);
    return {held_, limit_};
  }
  void set_limit(int64_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    limit_ = bytes > 0 ? bytes : 0;
    shrink(limit_);
  }
  void empty() {
    std::lock_guard<std::mutex> lock(mutex_);
    shrink(0);
  }

private:
  // A block a quarter too large is not worth new pages.
  static bool fits(const Block& block, int64_t bytes) {
    return block.bytes >= bytes && block.bytes <= bytes + bytes / 4;
  }

  // Huge pages begin at their multiples: map one more, and give back what sticks out.
  static Block map(int64_t bytes) {
    void* raw = mmap(nullptr, bytes + huge_page, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED)
      throw std::bad_alloc();
    char* begin = static_cast<char*>(raw);
    char* data = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(begin) + huge_page - 1) /
                                         huge_page * huge_page);
    if (data > begin)
      munmap(begin, data - begin);
    if (data < begin + huge_page)
      munmap(data + bytes, begin + huge_page - data);
    madvise(data, bytes, MADV_HUGEPAGE);
    return {data, bytes};
  }

  // Gives the oldest blocks back to the system until no more than `bytes` are held.
  void shrink(int64_t bytes) {
    while (held_ > bytes) {
      munmap(free_.front().data, free_.front().bytes);
      held_ -= free_.front().bytes;
      free_.erase(free_.begin());
    }
  }

  std::mutex mutex_;
  std::vector<Block> free_; // oldest first
  int64_t held_ = 0, limit_;
};

Cache& cache() {
  static Cache* the_cache = new Cache; // never destroyed: tensors may outlive static objects
  return *the_cache;
}

void release(void* context) {
  Block* block = static_cast<Block*>(context);
  c10::profiledCPUMemoryReporter().Delete(block->data); // as PyTorch's own allocator does
  cache().give(*block);
  delete block;
}

class CachingAllocator : public c10::Allocator {
public:
  c10::DataPtr allocate(size_t bytes) override {
    if (int64_t(bytes) < smallest_cached || cache().facts().limit_bytes == 0)
      return c10::GetCPUAllocator()->allocate(bytes);
    Block* block = new Block(cache().take(int64_t(bytes)));
    c10::profiledCPUMemoryReporter().New(block->data, bytes);
    return {block->data, block, &release, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

} // namespace

at::Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides,
                         const at::TensorOptions& options) {
  static CachingAllocator allocator;
  int64_t bytes = int64_t(options.dtype().itemsize());
  for (const int64_t size : sizes)
    bytes *= size;
  if (bytes < smallest_cached || cache().facts().limit_bytes == 0)
    return at::empty_strided(sizes, strides, options);
  return at::detail::empty_strided_generic(sizes, strides, &allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::CPU),
                                           c10::typeMetaToScalarType(options.dtype()));
}

CacheFacts cache_facts() { return cache().facts(); }
void set_cache_limit(int64_t bytes) { cache().set_limit(bytes); }
void empty_cache() { cache().empty(); }

#else // elsewhere the C library decides

at::Tensor empty_strided(at::IntArrayRef sizes, at::IntArrayRef strides,
                         const at::TensorOptions& options) {
  return at::empty_strided(sizes, strides, options);
}
CacheFacts cache_facts() { return {0, 0}; }
void set_cache_limit(int64_t) {}
void empty_cache() {}

#endif

} // namespace anl::cpu
