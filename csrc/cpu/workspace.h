// Memory that a kernel needs beside its inputs and outputs.
#pragma once

#include <stdint.h>
#include <stdlib.h>

#include <new>

namespace anl::cpu {

constexpr int64_t memory_alignment = 64;

inline int64_t aligned(int64_t bytes) {
  return (bytes + memory_alignment - 1) / memory_alignment * memory_alignment;
}

// A block that grows, and forgets what it held when it does.
class Memory {
public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { free(data_); }

  char* at_least(int64_t bytes) {
    if (bytes > size_) {
      free(data_);
      size_ = 0;
      data_ = static_cast<char*>(aligned_alloc(memory_alignment, aligned(bytes)));
      if (!data_)
        throw std::bad_alloc();
      size_ = bytes;
    }
    return data_;
  }
  // Kept by the calling thread from call to call; for one Workspace at a time.
  static Memory& of_thread() {
    thread_local Memory memory;
    return memory;
  }

private:
  char* data_ = nullptr;
  int64_t size_ = 0;
};

// Arrays out of a block of memory, one after the other.
class Workspace {
public:
  Workspace(Memory& memory, int64_t bytes)
      : next_(memory.at_least(bytes)), end_(next_ + aligned(bytes)) {}

  template <class X> X* take(int64_t count) {
    X* result = reinterpret_cast<X*>(next_);
    next_ += aligned(count * int64_t(sizeof(X)));
    if (next_ > end_)
      abort(); // whoever computed the bytes forgot this array
    return result;
  }

private:
  char *next_, *end_;
};

} // namespace anl::cpu
