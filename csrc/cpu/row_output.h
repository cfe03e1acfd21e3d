// Where the pieces of a row go, and the gradient that goes there.
#pragma once

#include "sweeps.h"
#include "terms_of_call.h"
#include "workspace.h"

namespace anl::cpu {

// A piece's worth of what is not where it can be used: logits and outputs in storage, e, numbers.
template <class T> struct Buffers {
  using A = Accumulator<T>;
  static constexpr int64_t size = piece_size<A> + block<A>;
  T *z, *out;
  A *e, *numbers;
  explicit Buffers(Workspace& space)
      : z(space.take<T>(size)), out(space.take<T>(size)), e(space.take<A>(size)),
        numbers(space.take<A>(size)) {}
  static int64_t bytes() { return 2 * aligned(size * sizeof(T)) + 2 * aligned(size * sizeof(A)); }
};

// Output of a row's piece: written where it belongs, or into a buffer if its stride is not 1.
template <class T> class Outlet {
public:
  Outlet(T* to, int64_t stride, T* buffer, bool stream)
      : data(stride == 1 ? to : buffer), past_cache(stream && stride == 1 && streamable(to)),
        to_(to), stride_(stride) {}
  void close(int n) const {
    if (stride_ != 1)
      scatter(data, n, to_, stride_);
  }
  T* const data;
  const bool past_cache;

private:
  T* to_;
  int64_t stride_;
};

// The scaled gradient of a row: gy at the target, else affine + sum_t G_t phi_t'(l) over the terms
// that are swept, and 0 at holes.
template <class A> struct RowGradient {
  Affine<A> affine; // its q is for p
  A gy;
  const A* G;
  const bool* sweep;
  bool holes;
};

template <class T, class A = Accumulator<T>>
void write_gradient(const Terms<T>& terms, const RowGradient<A>& row, const Piece<T>& piece,
                    A* numbers, const Outlet<T>& out) {
  const Affine<A> affine = {row.affine.base, row.affine.q * piece.to_p};
  int swept = 0, last = 0;
  for (int t = 0; t < terms.count(); ++t)
    if (row.sweep[t]) {
      ++swept;
      last = t;
    }
  if (swept == 0) {
    affine_along(piece, affine, out.data, out.past_cache);
  } else if (swept == 1) {
    terms[last].table->gradient(terms[last].functor, piece, affine, row.G[last], out.data,
                                out.past_cache);
  } else {
    affine_along(piece, affine, numbers, false);
    for (int t = 0; t < terms.count(); ++t)
      if (row.sweep[t])
        terms[t].table->add_slopes(terms[t].functor, piece, row.G[t], numbers);
    narrow_all(numbers, piece.n, out.data, out.past_cache);
  }
  if (row.holes)
    mend_holes(piece.z, piece.n, out.data);
  if (piece.y >= 0)
    out.data[piece.y] = narrow<T>(row.gy);
  out.close(piece.n);
}

} // namespace anl::cpu
