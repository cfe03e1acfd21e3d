// Teams of threads that work on a row together: some lanes of a warp, or the blocks of a cluster
// (one block too). A reduction gives every thread of the team the same bits: its merges commute,
// and their order depends on nothing but the team's size.
#pragma once

#include "math.h"

#include <type_traits>

namespace anl::cuda {

ANL_DEVICE int lane() { return thread() % warp_size; }

// What merges: merge(a, b), merge_lanes(value, lanes), and a value that changes nothing.
template <class A> struct Sums {
  A value, slope; // over classes, of phi and its derivative
  ANL_DEVICE static Sums nothing() { return {0, 0}; }
};

template <class A> ANL_DEVICE Sums<A> merge(const Sums<A>& a, const Sums<A>& b) {
  return {a.value + b.value, a.slope + b.slope};
}

template <class A> ANL_DEVICE Sums<A> merge_lanes(Sums<A> s, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2)
    s = merge(s, shuffle_xor(s, mask));
  return s;
}

// Of classes other than the target: the maximum, the sum of exp(z - m), the least that is not -inf,
// the sum of z - m over those and their number.
template <class A> struct Partials {
  A m, mass, lowest, total, count;
  // From the lowest number on, which -inf may be compared with and subtracted from.
  ANL_DEVICE static Partials nothing() { return {lowest_number<A>, 0, A(INFINITY), 0, 0}; }
};

template <class A> ANL_DEVICE Partials<A> with_maximum(Partials<A> s, A m) {
  // Not to be fused with the addition that follows: lanes that merge in other orders must round
  // alike.
  s.mass = product(s.mass, Math<A>::exp(s.m - m));
  s.total += s.count > 0 ? product(s.m - m, s.count) : A(0);
  s.m = m;
  return s;
}

template <class A> ANL_DEVICE Partials<A> add(const Partials<A>& a, const Partials<A>& b) {
  return {a.m, a.mass + b.mass, smaller(a.lowest, b.lowest), a.total + b.total, a.count + b.count};
}

template <class A> ANL_DEVICE Partials<A> merge(const Partials<A>& a, const Partials<A>& b) {
  const A m = larger(a.m, b.m);
  return add(with_maximum(a, m), with_maximum(b, m));
}

template <class A> ANL_DEVICE A largest_of_lanes(A a, int lanes) {
  if constexpr (std::is_same_v<A, float>)
    if (lanes == warp_size)
      return largest_of_warp(a);
  for (int mask = lanes / 2; mask > 0; mask /= 2)
    a = larger(a, shuffle_xor(a, mask));
  return a;
}
template <class A> ANL_DEVICE A smallest_of_lanes(A a, int lanes) {
  if constexpr (std::is_same_v<A, float>)
    if (lanes == warp_size)
      return smallest_of_warp(a);
  for (int mask = lanes / 2; mask > 0; mask /= 2)
    a = smaller(a, shuffle_xor(a, mask));
  return a;
}

// As merge, but for one exp to a lane.
template <class A> ANL_DEVICE Partials<A> merge_lanes(Partials<A> s, int lanes) {
  s = with_maximum(s, largest_of_lanes(s.m, lanes));
  s.lowest = smallest_of_lanes(s.lowest, lanes);
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
    s.mass += shuffle_xor(s.mass, mask);
    s.total += shuffle_xor(s.total, mask);
    s.count += shuffle_xor(s.count, mask);
  }
  return s;
}

// The largest logit and its class, the first of equals.
template <class A> struct Best {
  A z;
  int index;
  ANL_DEVICE static Best nothing() { return {-A(INFINITY), INT_MAX}; }
};

template <class A> ANL_DEVICE Best<A> merge(const Best<A>& a, const Best<A>& b) {
  return b.z > a.z || (b.z == a.z && b.index < a.index) ? b : a;
}

template <class A> ANL_DEVICE Best<A> merge_lanes(Best<A> best, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) {
    Best<A> other;
    other.z = shuffle_xor(best.z, mask);
    other.index = shuffle_xor(best.index, mask);
    best = merge(best, other);
  }
  return best;
}

// A power of two of neighbouring lanes. All lanes of the warp reduce and synchronise together.
class Lanes {
public:
  ANL_DEVICE explicit Lanes(int size) : size_(size) {}
  ANL_DEVICE int rank() const { return lane() & (size_ - 1); }
  ANL_DEVICE int size() const { return size_; }
  ANL_DEVICE bool runs_heads() const { return true; }
  ANL_DEVICE bool leads() const { return rank() == 0; }
  ANL_DEVICE bool reports() const { return leads(); }
  ANL_DEVICE void synchronise() const { warp_barrier(); }
  template <class V> ANL_DEVICE V reduce(V value) { return merge_lanes(value, size_); }
  // As those of Cluster. Rows of a warp differ, and its lanes must reduce together.
  static constexpr bool row_of_its_own = false;
  template <class V> ANL_DEVICE V gather(V value) { return reduce(value); }
  template <class V, class Make> ANL_DEVICE V once(const Make& make) { return make(); }

private:
  int size_;
};

// All threads of the blocks of a cluster.
class Cluster {
public:
  static constexpr int max_warps = 24, max_blocks = 16, value_bytes = 40;
  // Two sets of slots take turns: between a reduction's reads and the writes of the next but one
  // lies the barrier of the next.
  static constexpr int set_bytes = (max_warps + max_blocks) * value_bytes;
  static constexpr int board_bytes = 80; // for what one warp works out
  static constexpr int shared_bytes = 2 * set_bytes + board_bytes;
  static constexpr bool row_of_its_own = true;

  // Peers may be stored to once this is done.
  ANL_DEVICE explicit Cluster(char* slots)
      : slots_(slots), block_(cluster_rank()), blocks_(cluster_size()) {
    if (blocks_ > 1)
      cluster_barrier();
  }
  ANL_DEVICE int rank() const { return thread(); } // in the block
  ANL_DEVICE int size() const { return threads(); }
  ANL_DEVICE int block() const { return block_; }
  ANL_DEVICE int blocks() const { return blocks_; }
  ANL_DEVICE bool runs_heads() const { return thread() < warp_size; }
  ANL_DEVICE bool leads() const { return thread() == 0; }
  ANL_DEVICE bool reports() const { return leads() && block_ == 0; }
  ANL_DEVICE void synchronise() const { block_barrier(); }

  template <class V> ANL_DEVICE V reduce(V value) { return merged(value, true); }
  // As reduce, for the warp that runs the heads alone.
  template <class V> ANL_DEVICE V gather(V value) { return merged(value, runs_heads()); }
  // What make() gives that warp, for all. Once in a kernel: nothing keeps a second from overwriting
  // what others have yet to read.
  template <class V, class Make> ANL_DEVICE V once(const Make& make) {
    static_assert(sizeof(V) <= board_bytes);
    V* const board = reinterpret_cast<V*>(slots_ + 2 * set_bytes);
    if (runs_heads()) {
      const V value = make();
      if (leads())
        shared_store(board, value);
    }
    block_barrier();
    return shared_load(board);
  }

private:
  // Of all threads; right where it is wanted.
  template <class V> ANL_DEVICE V merged(V value, bool wanted) {
    static_assert(sizeof(V) <= value_bytes);
    V* of_warps = reinterpret_cast<V*>(slots_ + turn_ * set_bytes);
    turn_ ^= 1;
    value = merge_lanes(value, warp_size);
    if (lane() == 0)
      shared_store(of_warps + thread() / warp_size, value);
    block_barrier();
    if (wanted)
      value = merge_slots<warp_size>(of_warps, threads() / warp_size);
    if (blocks_ == 1)
      return value;
    V* of_blocks = of_warps + max_warps;
    if (thread() < blocks_)
      store_to_peer(of_blocks + block_, thread(), value);
    cluster_barrier();
    return wanted ? merge_slots<max_blocks>(of_blocks, blocks_) : value;
  }
  // By as many lanes as there may be slots, over and over.
  template <int most, class V> ANL_DEVICE static V merge_slots(const V* slots, int count) {
    const int i = lane() % most;
    return merge_lanes(i < count ? shared_load(slots + i) : V::nothing(), most);
  }

  char* slots_;
  int block_, blocks_, turn_ = 0;
};

} // namespace anl::cuda
