// Short rows, rows that are neighbours in memory (segmentation), and rows of any strides: a thread
// to a row, or some lanes of a warp.
#include "tile_moves.h"

namespace anl::cuda {
namespace {

// Where a tile's row is: in shared memory, or in global.
template <class T> struct TileRow {
  T* data;
  int64_t step;
};

template <class T>
ANL_DEVICE TileRow<T> row_in_tile(T* tile, const PlaceInTile& place, bool rows_first) {
  if (rows_first)
    return {tile + place.held, place.box.held};
  return {tile + int64_t(place.held) * place.box.K, 1};
}

template <class T>
ANL_KERNEL(tile_threads, sizeof(T) == 8 ? 3 : 4)
tile_kernel(ANL_PARAM RowLossParam<Accumulator<T>> p) {
  using A = Accumulator<T>;
  const RowLossArgs& args = p.args;
  const int lanes = p.plan.lanes, K = int(args.shape.K);
  const PlaceInTile place = place_in_tile(args.shape, lanes);
  const int slots_each = RowSlots<A>::size(p.terms.num_dense);
  A* const slots = reinterpret_cast<A*>(shared_memory());
  T* const tile =
      reinterpret_cast<T*>(shared_memory() + tile_slot_bytes<A>(slots_each, place.box.held));

  move_tile<true>(tile, args.logits, place.box, p.plan.rows_first);
  wait_for_copies();
  block_barrier();
  const T* z = place.exists ? row_of<T>(args.logits, args.shape, place.n) : nullptr;
  const Label<A> label = label_of<T>(args, place.n, z, place.exists);
  const TileRow<T> row = row_in_tile(tile, place, p.plan.rows_first);
  Lanes team(lanes);
  const Elements<T, true> source(row.data, row.step, place.exists ? K : 0, label.y, team.rank(),
                                 lanes);
  finish_row<T>(p, place.n, place.exists, label, source, team,
                RowSlots<A>(slots + place.held * slots_each, p.terms.num_dense),
                SharedSink<T>(args.grad.data ? row.data : nullptr, row.step),
                sink_of<T>(args.probs, args.shape, place.exists ? place.n : 0));
  if (!args.grad.data)
    return;
  block_barrier();
  move_tile<false>(tile, args.grad, place.box, p.plan.rows_first);
}

template <class T>
ANL_KERNEL(tile_threads, sizeof(T) == 8 ? 3 : 4)
elements_kernel(ANL_PARAM RowLossParam<Accumulator<T>> p) {
  using A = Accumulator<T>;
  const RowLossArgs& args = p.args;
  const int lanes = p.plan.lanes, K = int(args.shape.K);
  const PlaceInTile place = place_in_tile(args.shape, lanes);
  const int slots_each = RowSlots<A>::size(p.terms.num_dense);
  A* const slots = reinterpret_cast<A*>(shared_memory());
  const int64_t n = place.exists ? place.n : 0;
  const T* z = row_of<T>(args.logits, args.shape, n);
  const Label<A> label = label_of<T>(args, n, z, place.exists);
  const bool read = label.counted || p.all_rows;
  Lanes team(lanes);
  // An ignored row is swept only for the zeros of its gradient.
  const bool swept = place.exists && (read || args.grad.data);
  const Elements<T, false> source(z, args.logits.cls, swept ? K : 0, label.y, team.rank(), lanes);
  finish_row<T>(p, n, place.exists, label, source, team,
                RowSlots<A>(slots + place.held * slots_each, p.terms.num_dense),
                sink_of<T>(args.grad, args.shape, n), sink_of<T>(args.probs, args.shape, n));
}

template <class T>
ANL_KERNEL(tile_threads, sizeof(T) == 8 ? 3 : 4)
grad_tile_kernel(ANL_PARAM RowGradParam<Accumulator<T>> p) {
  using A = Accumulator<T>;
  const RowGradArgs& args = p.args;
  const int lanes = p.plan.lanes;
  const PlaceInTile place = place_in_tile(args.shape, lanes);
  T* const tile = reinterpret_cast<T*>(shared_memory());
  move_tile<true>(tile, args.logits, place.box, p.plan.rows_first);
  wait_for_copies();
  block_barrier();
  if (place.exists) {
    const T* z = row_of<T>(args.logits, args.shape, place.n);
    const Label<A> label = label_of<T>(args, place.n, z, true);
    const TileRow<T> row = row_in_tile(tile, place, p.plan.rows_first);
    const Elements<T, true> source(row.data, row.step, int(args.shape.K), label.y, thread() % lanes,
                                   lanes);
    write_saved<T>(p, place.n, label, source, SharedSink<T>(row.data, row.step));
  }
  block_barrier();
  move_tile<false>(tile, args.grad, place.box, p.plan.rows_first);
}

template <class T>
ANL_KERNEL(tile_threads, sizeof(T) == 8 ? 3 : 4)
grad_elements_kernel(ANL_PARAM RowGradParam<Accumulator<T>> p) {
  using A = Accumulator<T>;
  const RowGradArgs& args = p.args;
  const int lanes = p.plan.lanes;
  const PlaceInTile place = place_in_tile(args.shape, lanes);
  if (!place.exists)
    return;
  const T* z = row_of<T>(args.logits, args.shape, place.n);
  const Label<A> label = label_of<T>(args, place.n, z, true);
  const Elements<T, false> source(z, args.logits.cls, int(args.shape.K), label.y, thread() % lanes,
                                  lanes);
  write_saved<T>(p, place.n, label, source, sink_of<T>(args.grad, args.shape, place.n));
}

} // namespace

void launch_tiles(const RowLossArgs& args, const Plan& plan, void* stream) {
  with_type(args.type, [&](auto storage) {
    using T = decltype(storage);
    const auto p = param_of<Accumulator<T>>(args, plan);
    const bool tile = plan.kind == Kind::Tile;
    launch(tile ? tile_kernel<T> : elements_kernel<T>, tile ? "tile" : "elements",
           grid_of(plan, args.shape, sizeof(T)), stream, p);
  });
}

void launch_grad_tiles(const RowGradArgs& args, const Plan& plan, void* stream) {
  with_type(args.type, [&](auto storage) {
    using T = decltype(storage);
    const RowGradParam<Accumulator<T>> p = {args, {}, plan, terms_of<Accumulator<T>>(args)};
    const bool tile = plan.kind == Kind::Tile;
    launch(tile ? grad_tile_kernel<T> : grad_elements_kernel<T>,
           tile ? "grad_tile" : "grad_elements", grid_of(plan, args.shape, sizeof(T)), stream, p);
  });
}

} // namespace anl::cuda
