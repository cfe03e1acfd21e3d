// Memory that a kernel needs beside its inputs and outputs.
#pragma once

#include <stdint.h>
#include <stdlib.h>

#include <memory>
#include <new>
#include <vector>

namespace anl::cpu {

// Arrays out of blocks of memory, which it keeps. Forgotten together, never one by one.
class Workspace {
public:
  // That of the calling thread, kept from call to call, for one job at a time.
  static Workspace& of_thread() {
    thread_local Workspace space;
    space.forget();
    return space;
  }

  template <class X> X* take(int64_t count) {
    const int64_t bytes = (count * int64_t(sizeof(X)) + alignment - 1) / alignment * alignment;
    if (bytes > left_)
      find_block(bytes);
    char* const result = next_;
    next_ += bytes;
    left_ -= bytes;
    return reinterpret_cast<X*>(result);
  }

private:
  static constexpr int64_t alignment = 64, least_block = 1 << 16;
  struct Free {
    void operator()(char* block) const { free(block); }
  };
  struct Block {
    std::unique_ptr<char, Free> memory;
    int64_t size;
  };

  // The next block, which the job before took at this point too; a new one, if that is too small.
  void find_block(int64_t bytes) {
    if (taken_ == blocks_.size() || blocks_[taken_].size < bytes) {
      blocks_.resize(taken_);
      const int64_t size = bytes < least_block ? least_block : bytes;
      char* const memory = static_cast<char*>(aligned_alloc(alignment, size));
      if (!memory)
        throw std::bad_alloc();
      blocks_.push_back({std::unique_ptr<char, Free>(memory), size});
    }
    next_ = blocks_[taken_].memory.get();
    left_ = blocks_[taken_].size;
    ++taken_;
  }
  void forget() { taken_ = left_ = 0; }

  std::vector<Block> blocks_;
  size_t taken_ = 0; // blocks
  char* next_ = nullptr;
  int64_t left_ = 0; // bytes, of the last of those
};

} // namespace anl::cpu
