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
      add_block(bytes);
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

  void add_block(int64_t bytes) {
    left_ = bytes < least_block ? least_block : bytes;
    size_ += left_;
    next_ = static_cast<char*>(aligned_alloc(alignment, left_));
    if (!next_)
      throw std::bad_alloc();
    blocks_.emplace_back(next_);
  }
  // What took several blocks finds one the next time.
  void forget() {
    const int64_t size = size_;
    if (blocks_.size() > 1) {
      blocks_.clear();
      size_ = left_ = 0;
      add_block(size);
    } else if (!blocks_.empty()) {
      next_ = blocks_[0].get();
      left_ = size;
    }
  }

  std::vector<std::unique_ptr<char, Free>> blocks_;
  char* next_ = nullptr;
  int64_t left_ = 0, size_ = 0; // bytes: of the last block, of all
};

} // namespace anl::cpu
