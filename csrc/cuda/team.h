// Teams of threads that work on a row together: some lanes of a warp, or the blocks of a cluster
// (one block too). A reduction gives every thread of the team the same bits: its merges commute,
// and their order depends on nothing but the team's size.
#pragma once

#include "math.h"

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

// As merge, but for one exp to a lane.
template <class A> ANL_DEVICE Partials<A> merge_lanes(Partials<A> s, int lanes) {
  A m = s.m;
  for (int mask = lanes / 2; mask > 0; mask /= 2)
    m = larger(m, shuffle_xor(m, mask));
  s = with_maximum(s, m);
  for (int mask = lanes / 2; mask > 0; mask /= 2)
    s = add(s, shuffle_xor(s, mask));
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

private:
  int size_;
};

// All threads of the blocks of a cluster.
class Cluster {
public:
  static constexpr int max_warps = 8, max_blocks = 16, value_bytes = 40;
  // Two sets of slots take turns: between a reduction's reads and the writes of the next but one
  // lies the barrier of the next.
  static constexpr int set_bytes = (max_warps + max_blocks) * value_bytes;
  static constexpr int shared_bytes = 2 * set_bytes;

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

  template <class V> ANL_DEVICE V reduce(V value) {
    static_assert(sizeof(V) <= value_bytes);
    V* of_warps = reinterpret_cast<V*>(slots_ + turn_ * set_bytes);
    turn_ ^= 1;
    value = merge_lanes(value, warp_size);
    const int warps = threads() / warp_size;
    if (lane() == 0)
      shared_store(of_warps + thread() / warp_size, value);
    block_barrier();
    value = merge_lanes(lane() < warps ? shared_load(of_warps + lane()) : V::nothing(), warp_size);
    if (blocks_ == 1)
      return value;
    V* of_blocks = of_warps + max_warps;
    if (thread() < blocks_)
      store_to_peer(of_blocks + block_, thread(), value);
    cluster_barrier();
    return merge_lanes(lane() < blocks_ ? shared_load(of_blocks + lane()) : V::nothing(),
                       warp_size);
  }

private:
  char* slots_;
  int block_, blocks_, turn_ = 0;
};

} // namespace anl::cuda
