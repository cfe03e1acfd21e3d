// Small kernels in the words of csrc/cuda/device.h, right ones and such with a bug planted in them:
// what tests/cuda/test_emulation.py runs.
#include "../../../csrc/cuda/device.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace py = pybind11;

namespace {

using namespace anl::cuda;

// ---- bugs --------------------------------------------------------------------------------------

#define FOR_EACH_BUG(X)                                                                            \
  X(none)                                                                                          \
  X(no_barrier_after_write)                                                                        \
  X(no_barrier_before_reuse)                                                                       \
  X(thread_skips_barrier)                                                                          \
  X(thread_leaves_before_barrier)                                                                  \
  X(barriers_of_two_kinds)                                                                         \
  X(no_warp_barrier)                                                                               \
  X(shuffle_for_warp_barrier)                                                                      \
  X(divergent_shuffle)                                                                             \
  X(shuffles_of_two_sizes)                                                                         \
  X(shuffle_outside_warp)                                                                          \
  X(no_wait_for_copies)                                                                            \
  X(barrier_for_wait_for_copies)                                                                   \
  X(copies_at_end)                                                                                 \
  X(changed_source)                                                                                \
  X(misaligned_copy)                                                                               \
  X(misaligned_copy_to)                                                                            \
  X(no_first_cluster_barrier)                                                                      \
  X(early_exit)                                                                                    \
  X(block_barrier_for_cluster_barrier)                                                             \
  X(no_such_peer)                                                                                  \
  X(misaligned_load)                                                                               \
  X(misaligned_store)                                                                              \
  X(misaligned_shared_load)                                                                        \
  X(store_past_end)                                                                                \
  X(store_before_start)                                                                            \
  X(load_across_end)                                                                               \
  X(copy_past_end)                                                                                 \
  X(peer_store_past_end)                                                                           \
  X(plain_write_past_end)                                                                          \
  X(exception)

enum class Bug {
#define ENUMERATOR(name) name,
  FOR_EACH_BUG(ENUMERATOR)
#undef ENUMERATOR
};

std::map<std::string, Bug> bugs() {
#define ENTRY(name) {#name, Bug::name},
  return {FOR_EACH_BUG(ENTRY)};
#undef ENTRY
}

// ---- kernels -----------------------------------------------------------------------------------

// Input and output: a number for each thread of the grid, or for each and each step.
struct Args {
  float *in, *out;
  int64_t numbers;
  Bug bug;
};

int64_t position() { return (block_y() * blocks_x() + block_x()) * threads() + thread(); }
float* floats() { return reinterpret_cast<float*>(shared_memory()); }

// Every thread's number through its slot to all threads.
float sum_of_slots(const float* slots, int count) {
  float sum = 0;
  for (int i = 0; i < count; ++i)
    sum += shared_load(slots + i);
  return sum;
}

// The sum of the block, and that of the squares.
ANL_KERNEL(1024, 1) sum_of_block(ANL_PARAM Args args) {
  const float x = args.in[position()];
  float* slots = floats();
  shared_store(slots + thread(), x);
  if (args.bug == Bug::thread_leaves_before_barrier && thread() == 33)
    return;
  if (args.bug == Bug::barriers_of_two_kinds && thread() < 32)
    warp_barrier();
  else if (args.bug != Bug::no_barrier_after_write &&
           !(args.bug == Bug::thread_skips_barrier && thread() == 33))
    block_barrier();
  if (args.bug == Bug::thread_skips_barrier || args.bug == Bug::barriers_of_two_kinds)
    return;
  const float sum = sum_of_slots(slots, threads());
  if (args.bug != Bug::no_barrier_before_reuse)
    block_barrier();
  shared_store(slots + thread(), x * x);
  block_barrier();
  args.out[position()] = sum + 1000 * sum_of_slots(slots, threads());
}

struct Two {
  float first, second;
};

float sum_of_lanes(float x, Bug bug) {
  const int lane = thread() % warp_size;
  if (bug == Bug::divergent_shuffle && lane >= 16)
    return x;
  if (bug == Bug::shuffles_of_two_sizes && lane == 7)
    return shuffle_xor(Two{x, x}, 1).second;
  if (bug == Bug::shuffle_outside_warp)
    return shuffle_xor(x, warp_size);
  for (int mask = 16; mask > 0; mask /= 2)
    x += shuffle_xor(x, mask);
  return x;
}

// The sum of the warp, and a neighbour's number through shared memory.
ANL_KERNEL(1024, 1) sum_of_warp(ANL_PARAM Args args) {
  const float x = args.in[position()];
  const float sum = sum_of_lanes(x, args.bug);
  shared_store(floats() + thread(), x);
  if (args.bug == Bug::shuffle_for_warp_barrier)
    shuffle_xor(x, 1);
  else if (args.bug != Bug::no_warp_barrier)
    warp_barrier();
  args.out[position()] = sum + 1000 * shared_load(floats() + (thread() ^ 5));
}

// The sum over blocks of the cluster of the thread's number and that of all their first threads.
// A block has a slot for each thread of each block.
ANL_KERNEL(1024, 1) sum_of_cluster(ANL_PARAM Args args) {
  if (args.bug != Bug::no_first_cluster_barrier)
    cluster_barrier();
  const int blocks = cluster_size();
  const bool leaves = args.bug == Bug::early_exit;
  if (leaves && cluster_rank() == 1)
    return;
  float* slot = floats() + cluster_rank() * threads() + thread();
  for (int rank = leaves ? 1 : 0; rank < (leaves ? 2 : blocks); ++rank)
    store_to_peer(slot, args.bug == Bug::no_such_peer ? rank + 1 : rank, args.in[position()]);
  if (leaves)
    return;
  if (args.bug == Bug::block_barrier_for_cluster_barrier)
    block_barrier();
  else
    cluster_barrier();
  float sum = 0;
  for (int rank = 0; rank < blocks; ++rank)
    sum += shared_load(floats() + rank * threads() + thread()) +
           1000 * shared_load(floats() + rank * threads());
  args.out[position()] = sum;
}

// The numbers of the block in reverse; each thread of every fourth copies four of them.
ANL_KERNEL(1024, 1) reverse(ANL_PARAM Args args) {
  const bool copies = thread() % 4 == 0;
  float* in = args.in + position();
  const int shift = args.bug == Bug::misaligned_copy,
            shift_to = args.bug == Bug::misaligned_copy_to;
  if (copies)
    copy_async(reinterpret_cast<Bytes16*>(floats() + thread() + shift_to),
               reinterpret_cast<const Bytes16*>(in + shift));
  if (args.bug == Bug::copies_at_end)
    return;
  if (args.bug == Bug::changed_source && copies)
    *in += 1;
  const bool barrier_first = args.bug == Bug::barrier_for_wait_for_copies;
  if (args.bug != Bug::no_wait_for_copies && !barrier_first)
    wait_for_copies();
  block_barrier();
  args.out[position()] = shared_load(floats() + threads() - 1 - thread());
  wait_for_copies();
}

struct Three {
  float numbers[3];
};

// Places that are none. Shared memory has a float for each thread.
ANL_KERNEL(1024, 1) places(ANL_PARAM Args args) {
  float *in = args.in + position() - thread(), *end = floats() + threads();
  const bool first = thread() == 0;
  if (args.bug == Bug::misaligned_load)
    load16(in + 1);
  if (args.bug == Bug::misaligned_store)
    store16(in + 2, {});
  if (args.bug == Bug::misaligned_shared_load)
    shared_load(reinterpret_cast<const double*>(floats() + 1));
  if (args.bug == Bug::store_past_end && first)
    shared_store(end, 1.0f);
  if (args.bug == Bug::store_before_start && first)
    shared_store(floats() - 1, 1.0f);
  if (args.bug == Bug::load_across_end && first)
    shared_load(reinterpret_cast<const Three*>(end - 2));
  if (args.bug == Bug::copy_past_end && first)
    copy_async(reinterpret_cast<Bytes16*>(end), reinterpret_cast<const Bytes16*>(in));
  if (args.bug == Bug::peer_store_past_end && first)
    store_to_peer(end, 0, 1.0f);
  if (args.bug == Bug::plain_write_past_end && first)
    *end = 1;
  if (args.bug == Bug::exception && first)
    throw std::out_of_range("thrown by a kernel");
  if (thread() % 4 == 0)
    store16(args.out + position(), load16(in + thread()));
}

// Each half of a word by another thread.
ANL_KERNEL(1024, 1) halves(ANL_PARAM Args args) {
  auto* slots = reinterpret_cast<BFloat16*>(shared_memory());
  const float x = args.in[position()];
  shared_store(slots + thread(), BFloat16{uint16_t(narrow_pair<BFloat16>(x, x))});
  block_barrier();
  args.out[position()] = widen(shared_load(slots + (thread() ^ 1)));
}

// Shared memory that nobody has written.
ANL_KERNEL(1024, 1) unwritten(ANL_PARAM Args args) {
  args.out[position()] = shared_load(floats() + thread());
}

// What test_races_are_found_and_no_others writes down: for each step and each thread of the cluster
// what the thread does, and on which word.
enum class Step { Nothing, Load, Store, StoreToPeer, WarpBarrier, BlockBarrier, ClusterBarrier };
constexpr int script_words = 8;

void do_step(Step step, float* word) {
  switch (step) {
  case Step::Nothing:
    return;
  case Step::Load:
    return void(shared_load(word));
  case Step::Store:
    return shared_store(word, 1.0f);
  case Step::StoreToPeer:
    return store_to_peer(word, cluster_rank() ^ 1, 1.0f);
  case Step::WarpBarrier:
    return warp_barrier();
  case Step::BlockBarrier:
    return block_barrier();
  case Step::ClusterBarrier:
    return cluster_barrier();
  }
}

ANL_KERNEL(1024, 1) script(ANL_PARAM Args args) {
  for (int64_t at = position(); at < args.numbers; at += blocks_x() * threads())
    do_step(Step(int(args.in[at]) / script_words), floats() + int(args.in[at]) % script_words);
}

// For measurements: 20 barriers and 40 shuffles.
ANL_KERNEL(1024, 1) much_waiting(ANL_PARAM Args args) {
  float x = args.in[position()];
  for (int i = 0; i < 20; ++i) {
    x += shuffle_xor(x, 1) - shuffle_xor(x, 2);
    block_barrier();
  }
  args.out[position()] = x;
}

// ---- for Python --------------------------------------------------------------------------------

using Kernel = void (*)(Args);
const std::map<std::string, Kernel> kernels = {
    {"sum_of_block", sum_of_block},
    {"sum_of_warp", sum_of_warp},
    {"sum_of_cluster", sum_of_cluster},
    {"reverse", reverse},
    {"places", places},
    {"halves", halves},
    {"unwritten", unwritten},
    {"much_waiting", much_waiting},
    {"script", script},
};

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Halves = py::array_t<uint16_t, py::array::c_style | py::array::forcecast>;

py::array_t<float> run(const std::string& name, const std::string& bug, const Floats& in,
                       int64_t blocks_x, int blocks_y, int threads, int64_t shared_bytes,
                       int cluster) {
  const size_t count = size_t(in.size());
  std::vector<Bytes16> input(count / 4 + 1), output(count / 4 + 1);
  memcpy(input.data(), in.data(), count * sizeof(float));
  const Args args = {reinterpret_cast<float*>(input.data()),
                     reinterpret_cast<float*>(output.data()), int64_t(count), bugs().at(bug)};
  launch(kernels.at(name), name.c_str(), {blocks_x, blocks_y, threads, shared_bytes, cluster},
         nullptr, args);
  return py::array_t<float>(py::ssize_t(count), args.out);
}

template <class T> py::array_t<float> widen_all(const Halves& bits) {
  py::array_t<float> wide(bits.size());
  for (py::ssize_t i = 0; i < bits.size(); ++i)
    wide.mutable_at(i) = widen(T{bits.at(i)});
  return wide;
}

template <class T> py::array_t<uint32_t> narrow_all(const Floats& low, const Floats& high) {
  py::array_t<uint32_t> pairs(low.size());
  for (py::ssize_t i = 0; i < low.size(); ++i)
    pairs.mutable_at(i) = narrow_pair<T>(low.at(i), high.at(i));
  return pairs;
}

py::array_t<float> exp2_all(const Floats& x) {
  py::array_t<float> y(x.size());
  for (py::ssize_t i = 0; i < x.size(); ++i)
    y.mutable_at(i) = exp2_fast(x.at(i));
  return y;
}

} // namespace

PYBIND11_MODULE(emulation_selftest, module) {
  module.def("run", run);
  module.def("widen_bfloat16", widen_all<BFloat16>);
  module.def("widen_float16", widen_all<Float16>);
  module.def("narrow_bfloat16", narrow_all<BFloat16>);
  module.def("narrow_float16", narrow_all<Float16>);
  module.def("exp2_fast", exp2_all);
  module.def("describe_device", [] {
    const Device device = describe_device(0);
    return py::make_tuple(device.capability, device.processors, device.shared_bytes,
                          device.max_cluster);
  });
}
