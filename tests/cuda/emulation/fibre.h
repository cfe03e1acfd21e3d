// Fibres: functions that stop in the middle and go on later, each on a stack of its own.
#pragma once

#include <stddef.h>
#include <vector>

#if !defined(__x86_64__) && !defined(ANL_EMULATION_UCONTEXT)
#define ANL_EMULATION_UCONTEXT
#endif

#ifdef ANL_EMULATION_UCONTEXT
#include <ucontext.h>
#endif

namespace anl::cuda::emulation {

class Fibre {
public:
  // From its start, on a stack that ends at `top`; `body` never returns.
  void prepare(char* top, size_t bytes, void (*body)());
  // Stops `this`, which runs, and runs `to`.
  void switch_to(Fibre& to);

private:
#ifdef ANL_EMULATION_UCONTEXT
  ucontext_t context_;
#else
  void* stack_ = nullptr; // where it goes on
#endif
};

// Stacks, mapped once and used again by every launch. Below each lies a page that may not be
// touched, so that a stack that overflows crashes where it does.
class Stacks {
public:
  static constexpr size_t bytes = 64 << 10;
  // The end of stack i.
  char* top(size_t i);

private:
  void add_chunk();
  std::vector<char*> chunks_;
};

} // namespace anl::cuda::emulation
