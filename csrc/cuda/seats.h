// Rows of any strides that are swept twice for one sum: by some lanes of a warp, or a block.
#pragma once

#include "kernels.h"

namespace anl::cuda {

// The place of a thread among those that share a row; lanes = 0: the block.
struct Seat {
  int64_t n;
  int rank, size;
  ANL_DEVICE explicit Seat(int lanes) : size(lanes ? lanes : threads()) {
    n = block_x() * (threads() / size) + thread() / size;
    rank = thread() % size;
  }
  template <class V> ANL_DEVICE V reduce(V value) const {
    if (size != threads() || size <= warp_size)
      return Lanes(size).reduce(value);
    Cluster team(shared_memory());
    return team.reduce(value);
  }
};

// What a launch gives a row, and its grid.
struct Seats {
  int lanes;
  Grid grid;
  Seats(const Shape& shape, const Rows& rows, bool one_thread, int element_size) {
    const bool by_block = rows.cls == 1 && shape.K * int64_t(element_size) > limits().warp_bytes;
    lanes = by_block ? 0 : one_thread ? 1 : lanes_for(shape.K);
    const int64_t held = by_block ? 1 : row_threads / lanes;
    grid = {ceil_div(shape.rows(), held), 1, row_threads,
            by_block ? int64_t(Cluster::shared_bytes) : 0};
  }
};

// A row by class, or by vectors of classes.
template <class T> class StridedRow {
public:
  using A = Accumulator<T>;
  ANL_DEVICE StridedRow(const Rows& rows, const Shape& shape, int64_t n)
      : row_(row_of<T>(rows, shape, n)), step_(rows.cls) {}

  ANL_DEVICE bool in_vectors() const { return step_ == 1 && misaligned(row_) == 0; }
  ANL_DEVICE A operator[](int k) const { return widen(row_[k * step_]); }
  ANL_DEVICE void load(int k, A (&values)[width<T>]) const { unpack<T>(load16(row_ + k), values); }
  ANL_DEVICE void store(int k, const A (&values)[width<T>]) const {
    store16(row_ + k, pack<T>(values));
  }
  ANL_DEVICE void put(int k, A value) const { row_[k * step_] = narrow<T>(value); }

private:
  T* row_;
  int64_t step_;
};

} // namespace anl::cuda
