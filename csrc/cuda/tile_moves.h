// Tiles of rows between global and shared memory, by all threads of a block, in whole lines.
#pragma once

#include "kernels.h"

namespace anl::cuda {

// Rows [first, first + rows) of batch b, in a tile that has room for `held`: the classes of a row
// side by side, or, rows_first, the rows of a class.
struct TileBox {
  int64_t b, first;
  int rows, held, K;
};

// The place of a team's row in a tile.
struct PlaceInTile {
  TileBox box;
  int held; // row in the tile
  bool exists;
  int64_t n;
};

ANL_DEVICE PlaceInTile place_in_tile(const Shape& shape, int lanes) {
  const int held = threads() / lanes;
  const int64_t tiles = (shape.M + held - 1) / held, b = block_x() / tiles;
  const int64_t first = (block_x() - b * tiles) * held;
  const int rows = int(shape.M - first < held ? shape.M - first : held);
  const int r = thread() / lanes;
  return {{b, first, rows, held, int(shape.K)}, r, r < rows, b * shape.M + first + r};
}

template <class A> ANL_FN int tile_slot_bytes(int slots_each, int held) {
  return (slots_each * held * int(sizeof(A)) + 15) / 16 * 16;
}

template <bool In, class T> ANL_DEVICE void move_element(T* tile, T* global) {
  if (In)
    shared_store(tile, *global);
  else
    *global = shared_load(tile);
}

template <bool In, class T> ANL_DEVICE void move_vector(T* tile, T* global) {
  Bytes16* const slot = reinterpret_cast<Bytes16*>(tile);
  if (In)
    copy_async(slot, reinterpret_cast<const Bytes16*>(global));
  else
    store16(global, shared_load(slot));
}

template <class T> ANL_DEVICE bool aligned_for_vectors(const T* global, int64_t step) {
  return misaligned(global) == 0 && step % width<T> == 0;
}

// Elements [0, count) that lie side by side in both.
template <bool In, class T> ANL_DEVICE void move_run(T* tile, T* global, int count) {
  const int vectors = misaligned(global) == 0 ? count / width<T> : 0;
  for (int v = thread(); v < vectors; v += threads())
    move_vector<In>(tile + v * width<T>, global + v * width<T>);
  for (int i = vectors * width<T> + thread(); i < count; i += threads())
    move_element<In>(tile + i, global + i);
}

// Lines of `held` positions, one for each class.
template <bool In, class T>
ANL_DEVICE void move_lines(T* tile, T* global, const Rows& rows, const TileBox& box) {
  if (rows.pos == 1 && box.rows == box.held && aligned_for_vectors(global, rows.cls)) {
    const int vectors = box.held / width<T>;
    for (int i = thread(); i < vectors * box.K; i += threads()) {
      const int k = i / vectors, at = i % vectors * width<T>;
      move_vector<In>(tile + k * box.held + at, global + k * rows.cls + at);
    }
    return;
  }
  const int r = thread() % box.held;
  for (int k = thread() / box.held; k < box.K && r < box.rows; k += threads() / box.held)
    move_element<In>(tile + k * box.held + r, global + k * rows.cls + r * rows.pos);
}

// Into the tile or out of it. Reads of other threads must come after a barrier, and after
// wait_for_copies.
template <bool In, class T>
ANL_DEVICE void move_tile(T* tile, const Rows& rows, const TileBox& box, bool rows_first) {
  T* const global = static_cast<T*>(rows.data) + box.b * rows.batch + box.first * rows.pos;
  if (rows_first)
    return move_lines<In>(tile, global, rows, box);
  if (rows.cls == 1 && rows.pos == box.K)
    return move_run<In>(tile, global, box.rows * box.K);
  for (int r = thread() / warp_size; r < box.rows; r += threads() / warp_size)
    for (int k = lane(); k < box.K; k += warp_size)
      move_element<In>(tile + int64_t(r) * box.K + k, global + r * rows.pos + k * rows.cls);
}

} // namespace anl::cuda
