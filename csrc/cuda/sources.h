// Where the logits of a row come from, and where what has their shape goes.
//
// A source gives every thread of a team its share of the classes, `width` at a time, with -inf at
// the target and outside the row: visit(f) calls f(z, at), class at + i in z[i]. A thread meets the
// same classes in every visit, so that what it keeps, it keeps for itself: no barriers.
#pragma once

#include "interface.h"
#include "storage.h"

namespace anl::cuda {

// Row n of a view.
template <class T> ANL_DEVICE T* row_of(const Rows& rows, const Shape& shape, int64_t n) {
  if (shape.B == 1) // spares the division
    return static_cast<T*>(rows.data) + n * rows.pos;
  return static_cast<T*>(rows.data) + (n / shape.M) * rows.batch + (n % shape.M) * rows.pos;
}

// The vector from class `at` on that sticks out of its row, with -inf outside. Not inlined: it
// would cost the loops that call it once their registers.
template <class T> ANL_RARE_FN Bytes16 edge_vector(const T* row, int K, int at) {
  T stored[width<T>];
#pragma unroll
  for (int i = 0; i < width<T>; ++i)
    stored[i] = at + i >= 0 && at + i < K ? row[at + i] : minus_infinity<T>();
  Bytes16 packed;
  memcpy(&packed, stored, sizeof packed);
  return packed;
}

// The other way: what lies in the row, one by one.
template <class T>
ANL_RARE_FN void store_apart(T* row, int64_t stride, int K, int at, Bytes16 packed) {
  T stored[width<T>];
  memcpy(stored, &packed, sizeof packed);
#pragma unroll
  for (int i = 0; i < width<T>; ++i)
    if (at + i >= 0 && at + i < K)
      row[(at + i) * stride] = stored[i];
}

// Neighbouring classes, in vectors of 16 bytes; the first and the last may stick out of the row.
template <class T> class Vectors {
public:
  using A = Accumulator<T>;
  static constexpr int width = anl::cuda::width<T>;

  // Vectors [first, last) of a row, shared out over `size` threads, of which this is `rank`.
  ANL_DEVICE Vectors(const T* row, int K, int y, int first, int last, int rank, int size)
      : row_(row), K_(K), y_(y), head_(misaligned(row)), first_(first + rank), last_(last),
        size_(size) {}

  ANL_DEVICE static int count(const T* row, int K) {
    return int((int64_t(misaligned(row)) + K + width - 1) / width);
  }

  // Whether this thread meets the target.
  ANL_DEVICE bool owns_target() const {
    const int v = (y_ + head_) / width;
    return y_ >= 0 && v >= first_ && v < last_ && uint32_t(v - first_) % uint32_t(size_) == 0;
  }

protected:
  ANL_DEVICE int class_at(int v) const { return v * width - head_; }
  ANL_DEVICE bool whole(int at) const { return at >= 0 && at <= K_ - width; }
  ANL_DEVICE const void* address(int at) const { return row_ + at; }
  ANL_DEVICE bool has_target(int at) const { return unsigned(y_ - at) < unsigned(width); }

  const T* row_;
  int K_, y_, head_, first_, last_, size_;
};

// Vectors that are kept in shared memory: read from global memory once.
template <class T> class Resident : public Vectors<T> {
public:
  using typename Vectors<T>::A;
  using Vectors<T>::width;

  // `slots` has room for vectors [first, last).
  ANL_DEVICE Resident(const T* row, int K, int y, int first, int last, int rank, int size,
                      char* slots)
      : Vectors<T>(row, K, y, first, last, rank, size),
        slots_(reinterpret_cast<Bytes16*>(slots) + rank) {}

  // Starts the copies; finish() waits for them.
  ANL_DEVICE void start() {
    by_place(
        [&](Bytes16* slot, int at) {
          copy_async(slot, static_cast<const Bytes16*>(this->address(at)));
        },
        [&](Bytes16* slot, int at) { shared_store(slot, edge_vector(this->row_, this->K_, at)); });
  }
  ANL_DEVICE void finish() {
    wait_for_copies();
    owns_target_ = Vectors<T>::owns_target();
    if (!owns_target_)
      return;
    const int v = (this->y_ + this->head_) / width;
    Bytes16* slot = slots_ + (v - this->first_);
    shared_store(slot, without_class(shared_load(slot), this->y_ - this->class_at(v)));
  }

  ANL_DEVICE bool owns_target() const { return owns_target_; }

  template <class F> ANL_DEVICE void visit(const F& f) const {
    const Bytes16* slot = slots_;
    for (int v = this->first_; v < this->last_; v += this->size_, slot += this->size_) {
      A z[width];
      unpack<T>(shared_load(slot), z);
      f(z, this->class_at(v));
    }
  }

  // The same vectors as they are stored: f(packed).
  template <class F> ANL_DEVICE void visit_packed(const F& f) const {
    const Bytes16* slot = slots_;
#pragma unroll 2
    for (int v = this->first_; v < this->last_; v += this->size_, slot += this->size_)
      f(shared_load(slot));
  }
  // whole(packed, at) with those that lie in the row, edge(packed, at) with those that stick out.
  template <class Whole, class Edge>
  ANL_DEVICE void visit_by_place(const Whole& whole, const Edge& edge) const {
    by_place([&](Bytes16* slot, int at) { whole(shared_load(slot), at); },
             [&](Bytes16* slot, int at) { edge(shared_load(slot), at); });
  }
  ANL_DEVICE int vectors() const {
    const int rest = this->last_ - this->first_;
    return rest > 0 ? (rest + this->size_ - 1) / this->size_ : 0;
  }
  // By how many classes the row starts after a multiple of 16 bytes.
  ANL_DEVICE int head() const { return this->head_; }

private:
  // So that the loop has no branch: at either end of the row one vector may stick out.
  template <class Whole, class Edge>
  ANL_DEVICE void by_place(const Whole& whole, const Edge& edge) const {
    const int whole_end = (this->K_ + this->head_) / width;
    const int end = whole_end < this->last_ ? whole_end : this->last_;
    int v = this->first_;
    Bytes16* slot = slots_;
    if (v == 0 && this->head_ != 0 && v < this->last_) {
      edge(slot, this->class_at(v));
      v += this->size_, slot += this->size_;
    }
#pragma unroll 2
    for (; v < end; v += this->size_, slot += this->size_)
      whole(slot, this->class_at(v));
    if (v < this->last_)
      edge(slot, this->class_at(v));
  }
  ANL_DEVICE static Bytes16 without_class(Bytes16 packed, int place) {
    T stored[width];
    memcpy(stored, &packed, sizeof packed);
#pragma unroll
    for (int i = 0; i < width; ++i)
      stored[i] = i == place ? minus_infinity<T>() : stored[i];
    memcpy(&packed, stored, sizeof packed);
    return packed;
  }

  Bytes16* slots_; // this thread's first
  bool owns_target_ = false;
};

// Vectors that are read from global memory on every visit.
template <class T> class Streamed : public Vectors<T> {
public:
  using typename Vectors<T>::A;
  using Vectors<T>::width;
  using Vectors<T>::Vectors;

  // The next vector is under way while f works on one.
  template <class F> ANL_DEVICE void visit(const F& f) const {
    if (this->first_ >= this->last_)
      return;
    Bytes16 next = load(this->class_at(this->first_));
    for (int v = this->first_; v < this->last_; v += this->size_) {
      const Bytes16 packed = next;
      if (v < this->last_ - this->size_)
        next = load(this->class_at(v + this->size_));
      give(packed, this->class_at(v), f);
    }
  }

protected:
  ANL_DEVICE Bytes16 load(int at) const {
    return this->whole(at) ? load16(this->address(at)) : edge_vector(this->row_, this->K_, at);
  }
  template <class F> ANL_DEVICE void give(Bytes16 packed, int at, const F& f) const {
    A z[width];
    unpack<T>(packed, z);
    if (this->has_target(at))
#pragma unroll
      for (int i = 0; i < width; ++i)
        z[i] = at + i == this->y_ ? -A(INFINITY) : z[i];
    f(z, at);
  }
};

// The same with two vectors under way: for a sweep that leaves the registers, and does too little
// with a vector to hide the next behind it.
template <class T> class StreamedInPairs : public Streamed<T> {
public:
  using Streamed<T>::Streamed;

  template <class F> ANL_DEVICE void visit(const F& f) const {
    const int step = this->size_;
    Bytes16 even, odd;
    if (this->first_ < this->last_)
      even = load_at(this->first_);
    if (this->first_ < this->last_ - step)
      odd = load_at(this->first_ + step);
    for (int v = this->first_; v < this->last_; v += 2 * step) {
      even = given(even, v, f);
      if (v < this->last_ - step)
        odd = given(odd, v + step, f);
    }
  }

private:
  ANL_DEVICE Bytes16 load_at(int v) const { return this->load(this->class_at(v)); }
  // Gives vector v to f, and returns the next but one, which is then on its way.
  template <class F> ANL_DEVICE Bytes16 given(Bytes16 packed, int v, const F& f) const {
    Bytes16 next = packed;
    if (v < this->last_ - 2 * this->size_)
      next = load_at(v + 2 * this->size_);
    this->give(packed, this->class_at(v), f);
    return next;
  }
};

// Single classes at any stride, in shared or global memory.
template <class T, bool Shared> class Elements {
public:
  using A = Accumulator<T>;
  static constexpr int width = 1;

  ANL_DEVICE Elements(const T* row, int64_t stride, int K, int y, int rank, int size)
      : row_(row), stride_(stride), K_(K), y_(y), rank_(rank), size_(size) {}

  ANL_DEVICE bool owns_target() const { return y_ >= 0 && y_ % size_ == rank_; }

  template <class F> ANL_DEVICE void visit(const F& f) const {
#pragma unroll 4
    for (int k = rank_; k < K_; k += size_) {
      const T* from = row_ + k * stride_;
      const T stored = Shared ? shared_load(from) : *from;
      const A z[1] = {k == y_ ? -A(INFINITY) : A(widen(stored))};
      f(z, k);
    }
  }

private:
  const T* row_;
  int64_t stride_;
  int K_, y_, rank_, size_;
};

// A row of an output, in global memory; none where the pointer is null.
template <class T> class Sink {
public:
  using A = Accumulator<T>;
  ANL_DEVICE Sink(T* row, int64_t stride, int K)
      : row_(row), stride_(stride), K_(K), head_(stride == 1 ? misaligned(row) : -1) {}

  ANL_DEVICE explicit operator bool() const { return row_ != nullptr; }

  ANL_DEVICE void put(int k, A value) const { row_[k * stride_] = narrow<T>(value); }

  // Whether vectors of a row with that head can be stored whole.
  ANL_DEVICE bool starts_like(int head) const { return head_ == head; }
  ANL_DEVICE void store_whole(int at, const Bytes16& packed) const { store16(row_ + at, packed); }

  template <int W> ANL_DEVICE void store(int at, const A (&values)[W]) const {
    if constexpr (W == 1) {
      put(at, values[0]);
    } else {
      const Bytes16 packed = pack<T>(values);
      if (at >= 0 && at <= K_ - W && head_ >= 0 && (at + head_) % W == 0)
        store16(row_ + at, packed);
      else
        store_apart(row_, stride_, K_, at, packed);
    }
  }

private:
  T* row_;
  int64_t stride_;
  int K_, head_;
};

// A row of a tile in shared memory.
template <class T> class SharedSink {
public:
  using A = Accumulator<T>;
  ANL_DEVICE SharedSink(T* row, int64_t stride) : row_(row), stride_(stride) {}
  ANL_DEVICE explicit operator bool() const { return row_ != nullptr; }
  ANL_DEVICE void put(int k, A value) const { shared_store(row_ + k * stride_, narrow<T>(value)); }
  ANL_DEVICE void store(int at, const A (&values)[1]) const { put(at, values[0]); }

private:
  T* row_;
  int64_t stride_;
};

} // namespace anl::cuda
