#include "shared.h"

#include <algorithm>
#include <string.h>

namespace anl::cuda::emulation {

using std::to_string;

// ---- errors ------------------------------------------------------------------------------------

static std::string name_of(int id) {
  std::string name = "thread " + to_string(id % max_threads);
  if (machine.grid.cluster > 1)
    name += " of the block with rank " + to_string(id / max_threads);
  return name;
}

void fail_outside(const Block& block, const void* at, int bytes) {
  fail(to_string(bytes) + " bytes at offset " +
       to_string(static_cast<const char*>(at) - block.shared) + " of shared memory, which has " +
       to_string(machine.grid.shared_bytes));
}

void fail_misaligned(const char* what, const void* at, int alignment) {
  fail(std::string(what) + ": the address ends in " +
       to_string(reinterpret_cast<uintptr_t>(at) % alignment) + ", not in a multiple of " +
       to_string(alignment));
}

void fail_race(const Block& block, const Shadow* shadow, Access earlier, bool earlier_writes,
               bool writes) {
  const auto byte = (shadow - block.shadow.data()) * shadow_bytes;
  std::string where =
      "word " + to_string(byte / 4) + " (byte " + to_string(byte) + ") of shared memory";
  if (&block != machine.thread->block)
    where += " of the block with rank " + to_string(block.rank);
  const char* verb = writes ? " writes " : " reads ";
  const std::string me = name_of(machine.thread->id), other = name_of(thread_of(earlier));
  if (time_of(earlier) == copying)
    fail(me + verb + where + " while a copy by " + other + " is under way: no wait_for_copies");
  fail("race: " + me + verb + where + ", which " + other + (earlier_writes ? " wrote" : " read") +
       ", with no barrier between");
}

// ---- peers -------------------------------------------------------------------------------------

void* before_store_to_peer(const void* own, int rank, int bytes) {
  Thread& me = *machine.thread;
  if (rank < 0 || rank >= machine.grid.cluster)
    fail("store_to_peer: rank " + to_string(rank) + " of a cluster of " +
         to_string(machine.grid.cluster));
  Block& peer = block_of_rank(rank);
  if (&peer != me.block && machine.cluster_barriers == 0)
    fail("store_to_peer before the first cluster_barrier: rank " + to_string(rank) +
         " may not have started");
  if (peer.ended == machine.grid.threads)
    fail("store_to_peer to rank " + to_string(rank) + ", which has ended");
  void* there = peer.shared + (static_cast<const char*>(own) - me.block->shared);
  for (Shadow& shadow : shadows(peer, there, bytes, 4, "store_to_peer"))
    note_write(peer, &shadow, me, access_now(me.id));
  if (&peer != me.block)
    peer.stored_by_peer = machine.now;
  return there;
}

// ---- copies ------------------------------------------------------------------------------------

void start_copy(void* to, const void* from) {
  Thread& me = *machine.thread;
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0)
    fail_misaligned("copy_async from", from, 16);
  const Access under_way = copying << thread_bits | Access(me.id);
  for (Shadow& shadow : shadows(*me.block, to, 16, 16, "copy_async to"))
    note_write(*me.block, &shadow, me, under_way);
  Copy copy = {static_cast<char*>(to), static_cast<const char*>(from), {}};
  memcpy(copy.bytes, from, 16);
  me.copies.push_back(copy);
}

// The source may be read at any time until here.
void finish_copies() {
  Thread& me = *machine.thread;
  for (const Copy& copy : me.copies) {
    if (memcmp(copy.bytes, copy.from, 16) != 0)
      fail("copy_async: what is copied changed before wait_for_copies");
    memcpy(copy.to, copy.bytes, 16);
    for (Shadow& shadow : shadows(*me.block, copy.to, 16, 16, "copy_async to"))
      shadow.write = access_now(me.id);
  }
  me.copies.clear();
}

// ---- blocks ------------------------------------------------------------------------------------

constexpr size_t alignment = 128, border_bytes = 64;
constexpr char garbage = char(0xff), border = char(0xa5); // garbage is NaN in every type

void start_block(Block& block) {
  const size_t size = size_t(machine.grid.shared_bytes);
  if (block.memory.size() < size + alignment + border_bytes) {
    block.memory.resize(size + alignment + border_bytes);
    block.shadow.resize(size / shadow_bytes + 1);
    const auto at = reinterpret_cast<uintptr_t>(block.memory.data());
    block.shared = block.memory.data() + (alignment - at % alignment) % alignment;
  }
  memset(block.shared, garbage, size);
  memset(block.shared + size, border, border_bytes);
}

void end_block(Block& block) {
  if (block.stored_by_peer >= machine.cluster_barrier)
    fail("the block with rank " + to_string(block.rank) +
         " ended, and no cluster_barrier lies between a peer's store_to_peer and its end");
  const char* end = block.shared + machine.grid.shared_bytes;
  if (!std::all_of(end, end + border_bytes, [](char byte) { return byte == border; }))
    fail("something wrote past the end of shared memory, not by shared_store");
}

void forget_accesses(Block& block) {
  std::fill(block.shadow.begin(), block.shadow.end(), Shadow{});
}

} // namespace anl::cuda::emulation
