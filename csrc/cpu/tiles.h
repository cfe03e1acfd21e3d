// Rows side by side: where a tile of them is, what is known of each, and the passes over it.
//
// A tile is P rows in (K, P) arrays of numbers, as many classes at a time as fit in the cache.
#pragma once

#include "inputs.h"
#include "sweeps.h"
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

// The tiles of a call as units.
template <class T> class Tiles {
public:
  using A = Accumulator<T>;
  // A 2-D tensor's rows are the positions of one batch.
  explicit Tiles(const Shape& shape)
      : tile(TileShape::of(shape.K, shape.M == 1 ? shape.B : shape.M, sizeof(T))),
        whole_(shape.M == 1), batches_(whole_ ? 1 : shape.B),
        positions_(whole_ ? shape.B : shape.M), per_batch_((positions_ + tile.P - 1) / tile.P),
        K_(shape.K) {}

  int64_t count() const { return batches_ * per_batch_; }
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
  // f(k) for the first of the classes at once.
  template <class F> void for_classes(F f) const {
    for (int64_t k = 0; k < K_; k += tile.K)
      f(k);
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

  const TileShape tile;

private:
  const bool whole_;
  const int64_t batches_, positions_, per_batch_, K_;
};

// out = p of a tile whose softmax is known; 0 at the targets, where z is -inf.
template <class A> void tile_probabilities(const TilePiece<A>& t, A* p) {
  for (int j = 0; j < t.P; j += lanes<A>) {
    const V<A> m = load(t.m + j), log_s = load(t.log_s + j);
    for (int64_t i = j, k = 0; k < t.K; ++k, i += t.P)
      store(p + i, exp_nonpositive<A>((load(t.z + i) - m) - log_s));
  }
}

// What is beside the logits of `count` rows from n; rows from there to P are ignored ones.
template <class A>
void open_rows(const RowArgs& given, int64_t n, int count, int P, TileRows<A>& rows) {
  const RowArgs args = given; // which nothing that is stored here can change
  for (int j = 0; j < count; ++j) {
    const Label label = label_of(args, n + j);
    rows.y[j] = Int<A>(label.y);
    rows.counted[j] = label.counted ? -1 : 0;
  }
  for (int j = 0; j < count; ++j)
    rows.scale[j] = args.grad.data ? scale_of<A>(args, n + j) : A(0);
  for (int j = count; j < P; ++j) {
    rows.y[j] = -1;
    rows.counted[j] = 0;
    rows.scale[j] = 0;
  }
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

// (K, P) arrays of a tile.
template <class A> struct TileArrays {
  A *z, *e, *out, *spare;
  TileArrays(Workspace& space, const TileShape& tile) {
    for (A** array : {&z, &e, &out, &spare})
      *array = space.take<A>(tile.elements());
  }
};

// A job whose units are tiles.
template <class T, class Args> class TileJob : public Job {
public:
  using A = Accumulator<T>;
  explicit TileJob(const Args& args, int num_terms = 0)
      : args_(args), tiles_(args.shape), P_(tiles_.tile.P), num_terms_(num_terms) {}

  int64_t units(int) const override { return tiles_.count(); }
  int64_t elements_of_unit(int) const override { return P_ * args_.shape.K; }

  void run(int, int64_t begin, int64_t end) override {
    Workspace& space = Workspace::of_thread();
    TileRows<A> rows(space, P_, num_terms_);
    TileArrays<A> arrays(space, tiles_.tile);
    for (int64_t unit = begin; unit < end; ++unit)
      run_tile(tiles_.place(unit), rows, arrays);
    finish_streaming();
  }

protected:
  virtual void run_tile(const TilePlace&, TileRows<A>&, TileArrays<A>&) const = 0;

  const Args args_;
  const Tiles<T> tiles_;
  const int P_;

private:
  const int num_terms_;
};

} // namespace anl::cpu
