// Rows side by side: where a tile of them is, what is known of each, and the passes over it.
//
// A tile is P rows in (K, P) arrays of numbers, as many classes at a time as fit in the cache.
#pragma once

#include "../row.h"
#include "reader.h"
#include "terms_of_call.h"
#include "workspace.h"

#include <initializer_list>

namespace anl::cpu {

// P and the classes held at once.
struct TileShape {
  int P, K;

  static TileShape of(int64_t num_classes, int64_t positions, int element_bytes) {
    // Whole cache lines of positions; more of them when rows are short, to spread what is done
    // once for a tile.
    const int line = 64 / element_bytes, least = line > 16 ? line : 16;
    int64_t P = 8192 / num_classes / least * least;
    P = P > 256 ? 256 : P;
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
  int64_t* best;
  Label* labels;

  static int64_t bytes(int P, int terms) {
    return 16 * aligned(P * sizeof(A)) + 3 * aligned(int64_t(P) * terms * sizeof(A)) +
           aligned(P * sizeof(int64_t)) + aligned(P * sizeof(Label));
  }
  TileRows(Workspace& space, int P, int terms) {
    for (A** array : {&z_y, &m, &mass, &total, &count, &best_z, &log_s, &l_y, &p_y, &rest, &to_p,
                      &scale, &base, &q, &gy, &loss})
      *array = space.take<A>(P);
    for (A** array : {&values, &slopes, &G})
      *array = space.take<A>(int64_t(P) * terms);
    best = space.take<int64_t>(P);
    labels = space.take<Label>(P);
  }
};

// Where the rows of a tile are: `count` (at most P) neighbours from position `first` of a batch.
struct TilePlace {
  int64_t batch, first;
  int count;
};

// (K, P) numbers from storage and back.
template <class T, class A = typename AccumulatorOf<T>::A>
void bring_tile_in(const T* from, const Rows& rows, int K, int count, int P, A* tile) {
  if (rows.pos == 1) {
    for (int k = 0; k < K; ++k)
      widen_all(from + k * rows.cls, count, tile + int64_t(k) * P);
  } else {
    for (int j = 0; j < count; ++j)
      for (int k = 0; k < K; ++k)
        tile[int64_t(k) * P + j] = widen(from[j * rows.pos + k * rows.cls]);
  }
  for (int j = count; j < P; ++j) // rows that are not there: any numbers
    for (int k = 0; k < K; ++k)
      tile[int64_t(k) * P + j] = 0;
}

template <class T, class A = typename AccumulatorOf<T>::A>
void bring_tile_out(const A* tile, const Rows& rows, T* to, int K, int count, int P) {
  if (rows.pos == 1) {
    for (int k = 0; k < K; ++k)
      narrow_all(tile + int64_t(k) * P, count, to + k * rows.cls);
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
  int64_t row(const TilePlace& place, int j) const {
    return place.batch * positions_ + place.first + j;
  }
  Rows view(const Rows& rows) const {
    return whole_ ? Rows{rows.data, 0, rows.cls, rows.batch} : rows;
  }
  T* at(const Rows& rows, const TilePlace& place, int64_t k) const {
    const Rows r = view(rows);
    return static_cast<T*>(r.data) + place.batch * r.batch + place.first * r.pos + k * r.cls;
  }
  int classes_from(int64_t k) const { return int(K_ - k < tile.K ? K_ - k : tile.K); }
  void in(const Rows& rows, const TilePlace& place, int64_t k, A* to) const {
    bring_tile_in(at(rows, place, k), view(rows), classes_from(k), place.count, tile.P, to);
  }
  void out(const A* from, const Rows& rows, const TilePlace& place, int64_t k) const {
    bring_tile_out(from, view(rows), at(rows, place, k), classes_from(k), place.count, tile.P);
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

// out = base - q e, before the slopes are added.
template <class A>
void affine_across_tile(const TilePiece<A>& t, const A* base, const A* q, A* out) {
  for (int j = 0; j < t.P; j += lanes<A>) {
    const V<A> base_j = load(base + j), q_j = load(q + j) * load(t.to_p + j);
    for (int64_t i = j, k = 0; k < t.K; ++k, i += t.P)
      store(out + i, base_j - q_j * load(t.e + i));
  }
}

// out = out * scale, and 0 at absent classes.
template <class A> void scale_tile(const TilePiece<A>& t, const A* scale, A* out) {
  for (int j = 0; j < t.P; j += lanes<A>) {
    const V<A> scale_j = load(scale + j);
    for (int64_t i = j, k = 0; k < t.K; ++k, i += t.P) {
      const I<A> there = load(t.z + i) != A(-INFINITY);
      store(out + i, there ? load(out + i) * scale_j : fill(A(0)));
    }
  }
}

// Puts -inf where the targets of the rows are among `K` classes from `first`.
template <class A>
void take_targets_out(const Label* labels, const TilePlace& place, int64_t first, int K, int P,
                      A* z) {
  for (int j = 0; j < place.count; ++j) {
    const int64_t k = labels[j].y - first;
    if (labels[j].y >= 0 && k >= 0 && k < K)
      z[k * P + j] = -INFINITY;
  }
}

// Writes what belongs at the targets; ignored rows are zeros.
template <class A>
void mend_tile(const Label* labels, const TilePlace& place, int64_t first, int K, int P,
               const A* at_target, bool zero_ignored, A* out) {
  for (int j = 0; j < place.count; ++j) {
    const int64_t k = labels[j].y - first;
    if (labels[j].y >= 0 && k >= 0 && k < K)
      out[k * P + j] = at_target[j];
    if (zero_ignored && !labels[j].counted)
      for (int c = 0; c < K; ++c)
        out[int64_t(c) * P + j] = 0;
  }
}

// out = the gradient of the rows, but for the targets' and the ignored.
template <class T, class A = Accumulator<T>>
void tile_gradient(const Terms<T>& terms, const TilePiece<A>& piece, const TileRows<A>& rows,
                   A* out) {
  affine_across_tile(piece, rows.base, rows.q, out);
  for (int t = 0; t < terms.count(); ++t)
    if (terms[t].table->sum == Sum::Dense)
      terms[t].table->tile_slopes(terms[t].functor, piece, rows.G + t * piece.P, out);
  scale_tile(piece, rows.scale, out);
}

// (K, P) arrays of a tile.
template <class A> struct TileArrays {
  A *z, *e, *out;
};

// The thread's memory for tiles.
template <class A> struct TileMemory {
  Workspace space;
  TileRows<A> rows;
  TileArrays<A> arrays;
  TileMemory(const TileShape& tile, int terms)
      : space(Memory::of_thread(),
              TileRows<A>::bytes(tile.P, terms) + 3 * aligned(tile.elements() * sizeof(A))),
        rows(space, tile.P, terms),
        arrays{space.take<A>(tile.elements()), space.take<A>(tile.elements()),
               space.take<A>(tile.elements())} {}
};

} // namespace anl::cpu
