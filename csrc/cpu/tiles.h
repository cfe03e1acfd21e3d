// Rows side by side: where a tile of them is, what is known of each, and the passes over it.
//
// A tile is P rows in (K, P) arrays of numbers, as many classes at a time as fit in the cache.
#pragma once

#include "../row.h"
#include "reader.h"
#include "terms_of_call.h"
#include "transpose.h"
#include "workspace.h"

#include <initializer_list>

namespace anl::cpu {

// P and the classes held at once.
struct TileShape {
  int P, K;

  static TileShape of(int64_t num_classes, int64_t positions, int element_bytes) {
    // Whole cache lines of positions: as many as leave the arrays in the first-level cache, but
    // several, since neighbouring lines come faster, unless that leaves the second level too.
    const int line = 64 / element_bytes, least = line > 16 ? line : 16;
    int64_t P = 16384 / num_classes;
    P = P > 64 ? 64 : P;
    P = 4096 / num_classes > P ? 4096 / num_classes : P;
    P = (P > 256 ? 256 : P) / least * least;
    const int64_t all = (positions + 15) / 16 * 16;
    P = P > all ? all : P;
    P = P < least ? least : P;
    const int64_t most = 65536 / P;
    return {int(P), int(num_classes < most ? num_classes : most)};
  }
  int64_t elements() const { return int64_t(P) * K; }
};

// Numbers for every row of a tile.
template <class A> struct TileRows {
  A *z_y, *m, *mass, *total, *count, *best_z; // of the others, so far
  A *log_s, *l_y, *p_y, *rest, *to_p;         // p = e * to_p
  A *scale, *base, *q, *gy; // gradient: gy, else base + sum G phi' - q p, times the scale
  A* loss;
  A *values, *slopes, *G; // (terms, P)
  Int<A>*y, *counted;     // -1: no target; all bits set, or none
  Int<A>* best;

  static int64_t bytes(int P, int terms) {
    return 16 * aligned(P * sizeof(A)) + 3 * aligned(int64_t(P) * terms * sizeof(A)) +
           3 * aligned(P * sizeof(Int<A>));
  }
  TileRows(Workspace& space, int P, int terms) {
    for (A** array : {&z_y, &m, &mass, &total, &count, &best_z, &log_s, &l_y, &p_y, &rest, &to_p,
                      &scale, &base, &q, &gy, &loss})
      *array = space.take<A>(P);
    for (A** array : {&values, &slopes, &G})
      *array = space.take<A>(int64_t(P) * terms);
    for (Int<A>** array : {&y, &counted, &best})
      *array = space.take<Int<A>>(P);
  }
};

// Where the rows of a tile are: `count` (at most P) neighbours from position `first` of a batch.
struct TilePlace {
  int64_t batch, first;
  int count;
};

// (K, P) numbers from storage and back. `spare` is room for as many; `past_cache` as in
// store_narrow.
template <class T, class A = Accumulator<T>>
void bring_tile_in(const T* from, const Rows& rows, int K, int count, int P, A* spare, A* tile) {
  if (rows.pos == 1) {
    for (int k = 0; k < K; ++k) {
      const T* z = from + k * rows.cls;
      widen_all(z, count, tile + int64_t(k) * P);
      // The next tile, or what is of no use, comes while this one is computed.
      for (int j = 0; j < count; j += 64 / sizeof(T))
        __builtin_prefetch(z + P + j, 0, 2);
    }
  } else if (rows.cls == 1) {
    const bool dense = rows.pos == K;
    for (int j = 0; j < (dense ? 1 : count); ++j)
      widen_all(from + j * rows.pos, dense ? count * K : K, spare + int64_t(j) * K);
    transpose(spare, count, K, K, tile, P);
  } else {
    for (int j = 0; j < count; ++j)
      for (int k = 0; k < K; ++k)
        tile[int64_t(k) * P + j] = widen(from[j * rows.pos + k * rows.cls]);
  }
  for (int j = count; j < P; ++j) // rows that are not there: any numbers
    for (int k = 0; k < K; ++k)
      tile[int64_t(k) * P + j] = 0;
}

template <class T, class A = Accumulator<T>>
void bring_tile_out(const A* tile, const Rows& rows, T* to, int K, int count, int P, A* spare,
                    bool past_cache) {
  auto write = [&](const A* numbers, int n, T* out) {
    narrow_all(numbers, n, out, past_cache && streamable(out));
  };
  if (rows.pos == 1) {
    for (int k = 0; k < K; ++k)
      write(tile + int64_t(k) * P, count, to + k * rows.cls);
  } else if (rows.cls == 1) {
    transpose(tile, K, count, P, spare, K);
    const bool dense = rows.pos == K;
    for (int j = 0; j < (dense ? 1 : count); ++j)
      write(spare + int64_t(j) * K, dense ? count * K : K, to + j * rows.pos);
  } else {
    for (int j = 0; j < count; ++j)
      for (int k = 0; k < K; ++k)
        to[j * rows.pos + k * rows.cls] = narrow<T>(tile[int64_t(k) * P + j]);
  }
}

// The tiles of a call as units: shared by the jobs below.
template <class T> class Tiles {
public:
  using A = typename AccumulatorOf<T>::A;
  // A 2-D tensor's rows are the positions of one batch.
  Tiles(const Shape& shape)
      : whole_(shape.M == 1), batches_(whole_ ? 1 : shape.B),
        positions_(whole_ ? shape.B : shape.M), K_(shape.K),
        tile(TileShape::of(shape.K, positions_, sizeof(T))),
        per_batch_((positions_ + tile.P - 1) / tile.P) {}

  int64_t count() const { return batches_ * per_batch_; }
  int64_t num_classes() const { return K_; }
  bool at_once() const { return tile.K == K_; }
  TilePlace place(int64_t unit) const {
    const int64_t first = unit % per_batch_ * tile.P, left = positions_ - first;
    return {unit / per_batch_, first, int(left < tile.P ? left : tile.P)};
  }
  int64_t first_row(const TilePlace& place) const { return place.batch * positions_ + place.first; }
  Rows view(const Rows& rows) const {
    return whole_ ? Rows{rows.data, 0, rows.cls, rows.batch} : rows;
  }
  T* at(const Rows& rows, const TilePlace& place, int64_t k) const {
    const Rows r = view(rows);
    return static_cast<T*>(r.data) + place.batch * r.batch + place.first * r.pos + k * r.cls;
  }
  int classes_from(int64_t k) const { return int(K_ - k < tile.K ? K_ - k : tile.K); }
  void in(const Rows& rows, const TilePlace& place, int64_t k, A* spare, A* to) const {
    bring_tile_in(at(rows, place, k), view(rows), classes_from(k), place.count, tile.P, spare, to);
  }
  void out(const A* from, const Rows& rows, const TilePlace& place, int64_t k, A* spare,
           bool past_cache) const {
    bring_tile_out(from, view(rows), at(rows, place, k), classes_from(k), place.count, tile.P,
                   spare, past_cache);
  }

private:
  bool whole_;
  int64_t batches_, positions_, K_;

public:
  const TileShape tile;

private:
  int64_t per_batch_;
};

// out = p of a tile whose softmax is known; 0 at the targets, where z is -inf.
template <class A> void tile_probabilities(const TilePiece<A>& t, A* p) {
  for (int j = 0; j < t.P; j += lanes<A>) {
    const V<A> m = load(t.m + j), log_s = load(t.log_s + j);
    for (int64_t i = j, k = 0; k < t.K; ++k, i += t.P)
      store(p + i, exp_nonpositive<A>((load(t.z + i) - m) - log_s));
  }
}

// The labels of `count` rows; Y is their type, or a lack of them.
template <class Y, class A>
void open_labels(const Y* labels, const RowArgs& args, int count, TileRows<A>& rows) {
  const int64_t K = args.shape.K, ignored = args.ignore_index;
  for (int j = 0; j < count; ++j) {
    const int64_t y = labels[j];
    rows.counted[j] = y == ignored ? 0 : -1;
    rows.y[j] = Int<A>(y == ignored || y < 0 || y >= K ? -1 : y);
  }
}

// What is beside the logits of `count` rows from n; rows from there to P are ignored ones.
template <class A>
void open_rows(const RowArgs& args, int64_t n, int count, int P, TileRows<A>& rows) {
  for (int j = 0; j < P; ++j) {
    rows.y[j] = -1;
    rows.counted[j] = 0;
    rows.scale[j] = 0;
  }
  if (args.target && args.target_is_int32)
    open_labels(static_cast<const int32_t*>(args.target) + n, args, count, rows);
  else if (args.target)
    open_labels(static_cast<const int64_t*>(args.target) + n, args, count, rows);
  const A* scale = static_cast<const A*>(args.row_scale);
  for (int j = 0; args.grad.data && j < count; ++j)
    rows.scale[j] = scale[(n + j) * args.scale_stride];
  for (int j = 0; j < P; ++j)
    rows.scale[j] = rows.scale[j] == rows.scale[j] ? rows.scale[j] : A(NAN);
}

// f(row, its target's place) for the rows whose targets are among `K` classes from `first`.
template <class A, class F>
void for_targets(const TileRows<A>& rows, int count, int64_t first, int K, int P, F f) {
  for (int j = 0; j < count; ++j) {
    const int64_t k = rows.y[j] - first;
    if (k >= 0 && k < K)
      f(j, k * P + j);
  }
}

// out = the gradient of the rows, but for the targets'.
template <class T, class A = Accumulator<T>>
void tile_gradient(const Terms<T>& terms, const TilePiece<A>& piece, const TileRows<A>& rows,
                   A* out) {
  const TileAffine<A> affine = {rows.base, rows.q, rows.scale, rows.counted};
  const int dense = terms.num_dense();
  const Functor<A> no_term;
  if (dense == 0)
    gradient_across_tile<A, Functor<A>>(&no_term, piece, affine, nullptr, true, true, out);
  for (int t = 0, seen = 0; seen < dense; ++t)
    if (terms[t].table->sum == Sum::Dense) {
      ++seen;
      terms[t].table->tile_gradient(terms[t].functor, piece, affine, rows.G + t * piece.P,
                                    seen == 1, seen == dense, out);
    }
}

// (K, P) arrays of a tile.
template <class A> struct TileArrays {
  A *z, *e, *out, *spare;
};

// The thread's memory for tiles.
template <class A> struct TileMemory {
  Workspace space;
  TileRows<A> rows;
  TileArrays<A> arrays;
  TileMemory(const TileShape& tile, int terms)
      : space(Memory::of_thread(),
              TileRows<A>::bytes(tile.P, terms) + 4 * aligned(tile.elements() * sizeof(A))),
        rows(space, tile.P, terms),
        arrays{space.take<A>(tile.elements()), space.take<A>(tile.elements()),
               space.take<A>(tile.elements()), space.take<A>(tile.elements())} {}
};

} // namespace anl::cpu
