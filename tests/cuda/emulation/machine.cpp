#include "machine.h"

#include "shared.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string.h>
#include <utility>

namespace anl::cuda::emulation {

using std::to_string;

// ---- settings ----------------------------------------------------------------------------------

constexpr Device h200 = {90, 132, 232448, max_blocks};

struct Schedule {
  Order order = Order::Forward;
  uint64_t seed = 0, state = 1;

  // The same for every launch, so that one can be run again alone.
  void restart() { state = seed * 0x9e3779b97f4a7c15u + 1; }
  // A number below `limit`; xorshift.
  uint64_t random(uint64_t limit) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (state >> 16) % limit;
  }
};

// ---- what only this file knows of a launch -----------------------------------------------------

struct Launch {
  Device device = h200;
  Schedule schedule;
  Stacks stacks;
  Fibre main; // of the caller
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Block blocks[max_blocks];
  std::vector<Thread*> ready;
  int cluster_threads = 0; // the first so many of `threads` are those of the cluster that runs
  int at_cluster_barrier = 0, ended = 0;
  void (*call)(const void*) = nullptr;
  const void* argument = nullptr;
  std::exception_ptr error;
};
static Launch all;
static std::mutex one_at_a_time;

void set_schedule(Order order, uint64_t seed) {
  std::lock_guard lock(one_at_a_time);
  all.schedule = {order, seed};
}
void set_device(const Device& device) {
  std::lock_guard lock(one_at_a_time);
  all.device = device;
}
const Device& device() { return all.device; }

Block& block_of_rank(int rank) { return all.blocks[rank]; }

// ---- errors ------------------------------------------------------------------------------------

static std::string kernel_name() { return std::string("emulated kernel ") + machine.kernel; }

static std::runtime_error error_in(const Thread& thread, const std::string& what) {
  return std::runtime_error(kernel_name() + ", block (" + to_string(thread.block->x) + ", " +
                            to_string(thread.block->y) + "), thread " + to_string(thread.index) +
                            ": " + what);
}

void fail(const std::string& what) { throw error_in(*machine.thread, what); }

static const char* text_of(State state) {
  switch (state) {
  case State::BlockBarrier:
    return "in block_barrier";
  case State::ClusterBarrier:
    return "in cluster_barrier";
  case State::WarpBarrier:
    return "in warp_barrier";
  case State::Shuffle:
    return "in shuffle_xor";
  case State::Ended:
    return "ended";
  default:
    return "ready";
  }
}

// Such as "block (0, 0): threads 0-31 in block_barrier, 32-63 ended".
static std::string whereabouts(const Thread* threads, int count) {
  const Block& block = *threads->block;
  std::string text = "block (" + to_string(block.x) + ", " + to_string(block.y) + "): threads ";
  for (int first = 0, end = 0; first < count; first = end) {
    while (end < count && threads[end].state == threads[first].state)
      ++end;
    text += (first ? ", " : "") + to_string(first);
    text += end - first > 1 ? "-" + to_string(end - 1) : "";
    text += std::string(" ") + text_of(threads[first].state);
  }
  return text;
}

static std::runtime_error deadlock() {
  const Thread* waiting = all.threads.data();
  while (waiting->state == State::Ended)
    ++waiting;
  std::string text = "waits " + std::string(text_of(waiting->state)) + " for ever";
  for (int first = 0; first < all.cluster_threads; first += machine.grid.threads)
    text += "; " + whereabouts(&all.threads[first], machine.grid.threads);
  return error_in(*waiting, text);
}

// ---- the choice of the thread that goes on -----------------------------------------------------

// Neighbouring threads that have met. The last that is put in goes on first, so that a warp runs as
// far as it can.
static void make_ready(Thread* threads, int count) {
  const bool forward = all.schedule.order == Order::Forward;
  for (int i = 0; i < count; ++i) {
    Thread& thread = threads[forward ? count - 1 - i : i];
    thread.state = State::Ready;
    all.ready.push_back(&thread);
  }
}

static Thread* take_ready() {
  if (all.schedule.order == Order::Shuffled)
    std::swap(all.ready.back(), all.ready[all.schedule.random(all.ready.size())]);
  Thread* thread = all.ready.back();
  all.ready.pop_back();
  return thread;
}

static void leave_to_main(Thread& me) { me.fibre.switch_to(all.main); }

// Lets others run until `me` is ready again.
static void run_others(Thread& me) {
  if (all.ready.empty()) {
    if (all.ended < all.cluster_threads)
      all.error = std::make_exception_ptr(deadlock());
    leave_to_main(me);
  }
  Thread* next = take_ready();
  machine.thread = next;
  if (next != &me)
    me.fibre.switch_to(next->fibre);
}

// ---- barriers ----------------------------------------------------------------------------------

static Warp* warps_of(const Block& block) {
  return &all.warps[size_t(block.rank) * machine.grid.threads / warp_size];
}

static void pass_barrier(Block& block) {
  block.barrier = machine.now;
  for (int i = 0; i < machine.grid.threads / warp_size; ++i)
    warps_of(block)[i].barrier = machine.now;
}

void block_barrier() {
  Thread& me = *machine.thread;
  Block& block = *me.block;
  me.state = State::BlockBarrier;
  if (++block.at_barrier == machine.grid.threads) {
    block.at_barrier = 0;
    ++machine.now;
    pass_barrier(block);
    make_ready(&me - me.index, machine.grid.threads);
  }
  run_others(me);
}

void cluster_barrier() {
  Thread& me = *machine.thread;
  me.state = State::ClusterBarrier;
  if (++all.at_cluster_barrier == all.cluster_threads) {
    all.at_cluster_barrier = 0;
    machine.cluster_barrier = ++machine.now;
    ++machine.cluster_barriers;
    for (int rank = 0; rank < machine.grid.cluster; ++rank)
      pass_barrier(all.blocks[rank]);
    make_ready(all.threads.data(), all.cluster_threads);
  }
  run_others(me);
}

void warp_barrier() {
  Thread& me = *machine.thread;
  me.state = State::WarpBarrier;
  if (++me.warp->at_barrier == warp_size) {
    me.warp->at_barrier = 0;
    me.warp->barrier = ++machine.now;
    make_ready(&me - me.index % warp_size, warp_size);
  }
  run_others(me);
}

static void exchange_words(Thread* lanes) {
  for (int i = 0; i < warp_size; ++i) {
    const Exchange& mine = lanes[i].exchange;
    const Exchange& other = lanes[i ^ mine.mask].exchange;
    if (mine.bytes != other.bytes)
      fail("shuffle_xor of " + to_string(mine.bytes) + " bytes in lane " + to_string(i) + ", of " +
           to_string(other.bytes) + " in lane " + to_string(i ^ mine.mask));
    memcpy(mine.received, other.offered, size_t(mine.bytes));
  }
}

// Registers only: orders no accesses to memory, as on a GPU.
void shuffle(const Exchange& mine) {
  Thread& me = *machine.thread;
  if (mine.mask < 0 || mine.mask >= warp_size)
    fail("shuffle_xor with the mask " + to_string(mine.mask));
  me.exchange = mine;
  me.state = State::Shuffle;
  if (++me.warp->at_shuffle == warp_size) {
    me.warp->at_shuffle = 0;
    Thread* lanes = &me - me.index % warp_size;
    exchange_words(lanes);
    make_ready(lanes, warp_size);
  }
  run_others(me);
}

// ---- clusters ----------------------------------------------------------------------------------

static void end_thread(Thread& me) {
  if (!me.copies.empty())
    fail("ends while " + to_string(me.copies.size()) + " copies are under way: no wait_for_copies");
  me.state = State::Ended;
  ++all.ended;
  if (++me.block->ended == machine.grid.threads)
    end_block(*me.block);
}

static void thread_body() {
  Thread& me = *machine.thread;
  try {
    all.call(all.argument);
    end_thread(me);
  } catch (...) {
    all.error = std::current_exception();
  }
  if (all.error)
    leave_to_main(me);
  run_others(me);
}

static void place_block(Block& block, int rank, int64_t cluster) {
  const int64_t clusters_x = machine.grid.blocks_x / machine.grid.cluster;
  block.rank = rank;
  block.x = cluster % clusters_x * machine.grid.cluster + rank;
  block.y = int(cluster / clusters_x);
  block.at_barrier = block.ended = 0;
  block.stored_by_peer = 0;
  pass_barrier(block);
  start_block(block);
}

static void place_thread(Thread& thread, int rank, int index) {
  thread.block = &all.blocks[rank];
  thread.warp = warps_of(*thread.block) + index / warp_size;
  thread.index = index;
  thread.id = rank * max_threads + index;
  thread.copies.clear();
  const size_t place = size_t(&thread - all.threads.data());
  thread.fibre.prepare(all.stacks.top(place), Stacks::bytes, thread_body);
}

static void place_cluster(int64_t cluster) {
  machine.cluster_barrier = ++machine.now;
  machine.cluster_barriers = 0;
  all.at_cluster_barrier = all.ended = 0;
  std::fill(all.warps.begin(), all.warps.end(), Warp{});
  for (int rank = 0; rank < machine.grid.cluster; ++rank) {
    place_block(all.blocks[rank], rank, cluster);
    for (int i = 0; i < machine.grid.threads; ++i)
      place_thread(all.threads[size_t(rank) * machine.grid.threads + i], rank, i);
  }
  all.ready.clear();
  make_ready(all.threads.data(), all.cluster_threads);
}

// Fibres that an error leaves in the middle are dropped: kernels hold nothing that a destructor
// would free.
static void run_cluster(int64_t cluster) {
  place_cluster(cluster);
  machine.thread = take_ready();
  all.main.switch_to(machine.thread->fibre);
  machine.thread = nullptr;
  if (!all.error)
    return;
  for (Block& block : all.blocks)
    forget_accesses(block);
  std::rethrow_exception(std::exchange(all.error, nullptr));
}

// ---- launches ----------------------------------------------------------------------------------

static void require(bool holds, const std::string& what) {
  if (!holds)
    throw std::runtime_error(kernel_name() + ": " + what);
}

static void check(const Grid& grid) {
  require(grid.threads > 0 && grid.threads % warp_size == 0 && grid.threads <= max_threads,
          to_string(grid.threads) + " threads in a block, not a multiple of 32 up to 1024");
  require(grid.blocks_x > 0 && grid.blocks_x < int64_t(1) << 31,
          to_string(grid.blocks_x) + " blocks in x, not from 1 to 2^31 - 1");
  require(grid.blocks_y > 0 && grid.blocks_y <= 65535,
          to_string(grid.blocks_y) + " blocks in y, not from 1 to 65535");
  require(grid.shared_bytes >= 0 && grid.shared_bytes <= all.device.shared_bytes,
          to_string(grid.shared_bytes) + " bytes of shared memory, of which a block may have " +
              to_string(all.device.shared_bytes));
  require(grid.cluster > 0 && grid.cluster <= std::min(max_blocks, all.device.max_cluster),
          "a cluster of " + to_string(grid.cluster) + " blocks, of at most " +
              to_string(all.device.max_cluster));
  require(grid.blocks_x % grid.cluster == 0, to_string(grid.blocks_x) +
                                                 " blocks in x, not a multiple of the cluster's " +
                                                 to_string(grid.cluster));
}

static void reserve_threads(const Grid& grid) {
  all.cluster_threads = grid.cluster * grid.threads;
  all.warps.resize(size_t(all.cluster_threads) / warp_size);
  if (all.threads.size() < size_t(all.cluster_threads))
    all.threads.resize(size_t(all.cluster_threads));
}

static void run_shuffled(int64_t clusters) {
  std::vector<int64_t> order(static_cast<size_t>(clusters));
  for (size_t i = 0; i < order.size(); ++i) {
    const size_t j = all.schedule.random(i + 1);
    order[i] = order[j];
    order[j] = int64_t(i);
  }
  for (const int64_t cluster : order)
    run_cluster(cluster);
}

void launch(const char* kernel, const Grid& grid, void (*call)(const void*), const void* argument) {
  std::lock_guard lock(one_at_a_time);
  machine.kernel = kernel;
  machine.grid = grid;
  check(grid);
  all.call = call;
  all.argument = argument;
  all.schedule.restart();
  reserve_threads(grid);
  const int64_t clusters = grid.blocks_x / grid.cluster * grid.blocks_y;
  if (all.schedule.order == Order::Shuffled)
    return run_shuffled(clusters);
  const bool forward = all.schedule.order == Order::Forward;
  for (int64_t i = 0; i < clusters; ++i)
    run_cluster(forward ? i : clusters - 1 - i);
}

} // namespace anl::cuda::emulation
