// Where the rows of a call are, and what stands beside them.
#pragma once

#include "interface.h"
#include "sweeps.h"

namespace anl::cpu {

struct Label {
  bool counted; // not ignored
  int64_t y;    // -1: not a class
};

template <class T> T* row_of(const Rows& rows, const Shape& shape, int64_t n) {
  return static_cast<T*>(rows.data) + n / shape.M * rows.batch + n % shape.M * rows.pos;
}

template <class T> class Reader {
public:
  using A = typename AccumulatorOf<T>::A;
  explicit Reader(const RowArgs& args) : args_(args) {}

  T* row(const Rows& rows, int64_t n) const { return row_of<T>(rows, args_.shape, n); }
  Label label(int64_t n) const {
    if (!args_.target)
      return {false, -1};
    const int64_t y = args_.target_is_int32 ? static_cast<const int32_t*>(args_.target)[n]
                                            : static_cast<const int64_t*>(args_.target)[n];
    if (y == args_.ignore_index)
      return {false, -1};
    return {true, y >= 0 && y < args_.shape.K ? y : -1};
  }
  // The target's logit: none for an ignored row, `nowhere` for a label that is not a class.
  A target_logit(const Label& label, int64_t n, A nowhere) const {
    if (!label.counted)
      return -INFINITY;
    return label.y < 0 ? nowhere : A(widen(row(args_.logits, n)[label.y * args_.logits.cls]));
  }
  A scale(int64_t n) const {
    const A scale = static_cast<const A*>(args_.row_scale)[n * args_.scale_stride];
    return scale == scale ? scale : A(NAN); // without a payload: see narrow_vector
  }

private:
  const RowArgs& args_;
};

// A number for row n, if it is wanted.
template <class A> void put(void* to, int64_t n, A value) {
  if (to)
    static_cast<A*>(to)[n] = value;
}

// The pieces that a row's classes are cut into.
template <class A> class Cut {
public:
  explicit Cut(int64_t K) : K_(K) {}
  int64_t count() const { return (K_ - 1) / piece_size<A> + 1; }
  int64_t start(int64_t piece) const { return piece * piece_size<A>; }
  int size(int64_t piece) const {
    const int64_t left = K_ - start(piece);
    return int(left < piece_size<A> ? left : piece_size<A>);
  }
  // The target's place in a piece, or -1.
  int place(int64_t y, int64_t piece) const {
    const int64_t at = y - start(piece);
    return y >= 0 && at >= 0 && at < piece_size<A> ? int(at) : -1;
  }

private:
  int64_t K_;
};

} // namespace anl::cpu
