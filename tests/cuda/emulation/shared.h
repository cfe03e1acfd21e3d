// Accesses to shared memory, and a search for races among them: two accesses to the same bytes by
// two threads, at least one a write, need a barrier that both threads meet in between. Whether they
// have one does not depend on the order in which threads happen to run.
#pragma once

#include "machine.h"

namespace anl::cuda::emulation {

// ---- errors, out of the way of the loops -------------------------------------------------------

[[noreturn, gnu::cold]] void fail_outside(const Block&, const void* at, int bytes);
[[noreturn, gnu::cold]] void fail_misaligned(const char* what, const void* at, int alignment);
[[noreturn, gnu::cold]] void fail_race(const Block&, const Shadow*, Access earlier,
                                       bool earlier_writes, bool writes);

// ---- the order of two accesses -----------------------------------------------------------------

inline Time time_of(Access access) { return access >> thread_bits; }
inline int thread_of(Access access) { return int(access & ((1 << thread_bits) - 1)); }
inline Access access_now(int thread) { return machine.now << thread_bits | Access(thread); }

// Whether no barrier lies between an access and what `me` does now.
inline bool too_early(Access access, const Thread& me) {
  const Time time = time_of(access);
  if (time < machine.cluster_barrier)
    return false;
  if (time == copying)
    return true;
  const int other = thread_of(access);
  if (other == me.id)
    return false;
  if (other / warp_size == me.id / warp_size)
    return time >= me.warp->barrier;
  if (other / max_threads == me.id / max_threads)
    return time >= me.block->barrier;
  return true;
}

inline void note_read(const Block& block, Shadow* shadow, const Thread& me) {
  if (too_early(shadow->write, me))
    fail_race(block, shadow, shadow->write, true, false);
  const Access last = shadow->read;
  if (thread_of(last) != me.id) {
    shadow->other_thread = last;
    if (thread_of(last) / warp_size != me.id / warp_size)
      shadow->other_warp = last;
  }
  shadow->read = access_now(me.id);
}

inline void note_write(const Block& block, Shadow* shadow, const Thread& me, Access access) {
  if (too_early(shadow->write, me))
    fail_race(block, shadow, shadow->write, true, true);
  for (const Access read : {shadow->read, shadow->other_thread, shadow->other_warp})
    if (too_early(read, me))
      fail_race(block, shadow, read, false, true);
  shadow->write = access;
}

// ---- accesses ----------------------------------------------------------------------------------

struct Shadows {
  Shadow *first, *last;
  Shadow* begin() const { return first; }
  Shadow* end() const { return last; }
};

// Of the bytes at `at` in the shared memory of a block, which must be there.
inline Shadows shadows(Block& block, const void* at, int bytes, int alignment, const char* what) {
  const uint64_t size = uint64_t(machine.grid.shared_bytes);
  const uint64_t offset = uint64_t(static_cast<const char*>(at) - block.shared);
  if (offset % alignment != 0)
    fail_misaligned(what, at, alignment);
  if (offset > size || uint64_t(bytes) > size - offset)
    fail_outside(block, at, bytes);
  Shadow* first = block.shadow.data() + offset / shadow_bytes;
  return {first, block.shadow.data() + (offset + bytes - 1) / shadow_bytes + 1};
}

inline void before_read(const void* from, int bytes, int alignment) {
  const Thread& me = *machine.thread;
  for (Shadow& shadow : shadows(*me.block, from, bytes, alignment, "shared_load"))
    note_read(*me.block, &shadow, me);
}

inline void before_write(const void* to, int bytes, int alignment) {
  const Thread& me = *machine.thread;
  for (Shadow& shadow : shadows(*me.block, to, bytes, alignment, "shared_store"))
    note_write(*me.block, &shadow, me, access_now(me.id));
}

// ---- the rarer words ---------------------------------------------------------------------------

// The address in a peer's memory, for a store of words.
void* before_store_to_peer(const void* own, int rank, int bytes);
void start_copy(void* to, const void* from);
void finish_copies();

// Before a block's threads start, and once all of them have ended.
void start_block(Block&);
void end_block(Block&);
// Forgets accesses, after an error left copies under way.
void forget_accesses(Block&);

} // namespace anl::cuda::emulation
