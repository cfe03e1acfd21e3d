#include "fibre.h"

#include <new>
#include <sys/mman.h>

namespace anl::cuda::emulation {

// ---- fibres ------------------------------------------------------------------------------------

#ifdef ANL_EMULATION_UCONTEXT

void Fibre::prepare(char* top, size_t bytes, void (*body)()) {
  getcontext(&context_);
  context_.uc_stack.ss_sp = top - bytes;
  context_.uc_stack.ss_size = bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, body, 0);
}

void Fibre::switch_to(Fibre& to) { swapcontext(&context_, &to.context_); }

#else

// What the System V ABI has a callee keep, onto the old stack and from the new one. The modes of
// floating point are the same in every fibre.
[[gnu::naked, gnu::noinline]] static void switch_stacks(void** /*from: rdi*/, void* /*to: rsi*/) {
  asm("pushq %rbp\n\t"
      "pushq %rbx\n\t"
      "pushq %r12\n\t"
      "pushq %r13\n\t"
      "pushq %r14\n\t"
      "pushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq %rsi, %rsp\n\t"
      "popq %r15\n\t"
      "popq %r14\n\t"
      "popq %r13\n\t"
      "popq %r12\n\t"
      "popq %rbx\n\t"
      "popq %rbp\n\t"
      "ret");
}

void Fibre::prepare(char* top, size_t, void (*body)()) {
  constexpr int kept = 6;
  void** stack = reinterpret_cast<void**>(top);
  *--stack = nullptr; // the body's return address: the end, to whoever walks the stack
  *--stack = reinterpret_cast<void*>(body);
  for (int i = 0; i < kept; ++i)
    *--stack = nullptr;
  stack_ = stack;
}

void Fibre::switch_to(Fibre& to) { switch_stacks(&stack_, to.stack_); }

#endif

// ---- stacks ------------------------------------------------------------------------------------

constexpr size_t page = 4096, per_chunk = 256;
// The tops of stacks lie at different places in a page: else they would share few lines of a cache.
constexpr size_t slot_bytes = page + Stacks::bytes + page, shift = 5 * 64;

void Stacks::add_chunk() {
  void* chunk = mmap(nullptr, per_chunk * slot_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (chunk == MAP_FAILED)
    throw std::bad_alloc();
  chunks_.push_back(static_cast<char*>(chunk));
  for (size_t i = 0; i < per_chunk; ++i)
    mprotect(chunks_.back() + i * slot_bytes, page, PROT_NONE);
}

char* Stacks::top(size_t i) {
  while (chunks_.size() <= i / per_chunk)
    add_chunk();
  char* slot = chunks_[i / per_chunk] + i % per_chunk * slot_bytes;
  return slot + slot_bytes - i * shift % page;
}

} // namespace anl::cuda::emulation
