// Rows that have some of their classes here and the others on other devices: what each device finds
// before and after they have merged their partials, and the loss heads. row_grad writes the
// gradient.
#include "tile_moves.h"

namespace anl::cuda {
namespace {

struct ShardParam {
  ShardArgs args;
  Plan plan;
};

template <class A> struct ShardSumsParam : ShardParam {
  Terms<A> terms;
};

template <class A> struct ShardFinishParam {
  RowLossParam<A> row;
  const A* partials;
  const Sums<A>* sums;
};

// A label that is no class here is in another shard.
template <class T>
ANL_DEVICE Label<Accumulator<T>> label_in_shard(const RowArgs& args, int64_t n, const T* row,
                                                bool exists) {
  using A = Accumulator<T>;
  Label<A> label = label_of<T>(args, n, row, exists);
  label.z_y = label.y < 0 ? -A(INFINITY) : label.z_y;
  return label;
}

// What shards exchange of a row: Kernels.shard_partials.
template <class A> ANL_DEVICE void store_partials(A* columns, const Partials<A>& s, A z_y) {
  columns[0] = s.count > 0 ? s.m : -A(INFINITY);
  columns[1] = s.mass;
  columns[2] = s.total;
  columns[3] = s.count;
  columns[4] = z_y;
}

// What is known of a row when all shards' partials have merged.
template <class A> ANL_DEVICE RowSums<A> whole_row(const void* partials, int64_t n) {
  const A* columns = static_cast<const A*>(partials) + n * num_partials;
  // The lowest class would tell the terms that are a line on this row: shards sum them all.
  const Partials<A> s = {columns[0], columns[1], -A(INFINITY), columns[2], columns[3]};
  return row_sums(s, columns[4]);
}

// ---- who reads a row ---------------------------------------------------------------------------
// action(n, z_y, source, team, reports): the source has no class of a row that is not read, whose
// results are then those of nothing.

// Neighbouring classes, by a cluster; one block too.
template <class T, class Source, class Action>
ANL_DEVICE void by_cluster(const ShardParam& p, const Action& action) {
  const ShardArgs& args = p.args;
  const int blocks = cluster_size(), K = int(args.shape.K);
  const int64_t n = block_x() / blocks;
  const T* z = row_of<T>(args.logits, args.shape, n);
  const Label<Accumulator<T>> label = label_in_shard<T>(args, n, z, true);
  const int vectors = label.counted || args.aux ? Vectors<T>::count(z, K) : 0;
  const int each = (vectors + blocks - 1) / blocks, first = cluster_rank() * each;
  const Source source(z, K, label.y, first, smaller_of(first + each, vectors), thread(), threads());
  Cluster team(shared_memory());
  action(n, label.z_y, source, team, team.reports());
}

// Classes of any stride, by some lanes of a warp.
template <class T, class Action>
ANL_DEVICE void by_lanes(const ShardParam& p, const Action& action) {
  const ShardArgs& args = p.args;
  const PlaceInTile place = place_in_tile(args.shape, p.plan.lanes);
  const int64_t n = place.exists ? place.n : 0;
  const T* z = row_of<T>(args.logits, args.shape, n);
  const Label<Accumulator<T>> label = label_in_shard<T>(args, n, z, place.exists);
  const bool read = place.exists && (label.counted || args.aux);
  Lanes team(p.plan.lanes);
  const Elements<T, false> source(z, args.logits.cls, read ? int(args.shape.K) : 0, label.y,
                                  team.rank(), team.size());
  action(n, label.z_y, source, team, team.reports() && place.exists);
}

// ---- what is done to it ------------------------------------------------------------------------

template <class A> struct WritePartials {
  const ShardArgs& args;

  template <class Source, class Team>
  ANL_DEVICE void operator()(int64_t n, A z_y, const Source& source, Team& team,
                             bool reports) const {
    const Partials<A> s = team.reduce(partials_of(source, true));
    if (reports)
      store_partials(static_cast<A*>(args.partials) + n * num_partials, s, z_y);
    if (!args.argmax)
      return;
    const Best<A> best = team.reduce(best_of(source));
    if (reports)
      args.argmax[n] = best.z > -A(INFINITY) ? best.index : 0;
  }
};

template <class A> struct WriteSums {
  const ShardSumsParam<A>& p;

  template <class Source, class Team>
  ANL_DEVICE void operator()(int64_t n, A, const Source& source, Team& team, bool reports) const {
    const Scale<A> scale = scale_of(whole_row<A>(p.args.partials, n));
    Sums<A>* of_row = static_cast<Sums<A>*>(p.args.sums) + n * p.terms.num_dense;
    for (int i = 0; i < p.terms.num_dense; ++i) {
      const Sums<A> sums = team.reduce(sums_of_term(p.terms.term[p.terms.dense[i]], source, scale));
      if (reports)
        of_row[i] = sums;
    }
  }
};

template <class T>
ANL_KERNEL(row_threads, sizeof(T) == 8 ? 2 : reading_blocks)
shard_partials_kernel(ANL_PARAM ShardParam p) {
  by_cluster<T, StreamedInPairs<T>>(p, WritePartials<Accumulator<T>>{p.args});
}

template <class T>
ANL_KERNEL(tile_threads, sizeof(T) == 8 ? 4 : 8)
shard_partials_elements_kernel(ANL_PARAM ShardParam p) {
  by_lanes<T>(p, WritePartials<Accumulator<T>>{p.args});
}

template <class T>
ANL_KERNEL(row_threads, sizeof(T) == 8 ? 1 : 3)
shard_sums_kernel(ANL_PARAM ShardSumsParam<Accumulator<T>> p) {
  by_cluster<T, Streamed<T>>(p, WriteSums<Accumulator<T>>{p});
}

template <class T>
ANL_KERNEL(tile_threads, sizeof(T) == 8 ? 4 : 8)
shard_sums_elements_kernel(ANL_PARAM ShardSumsParam<Accumulator<T>> p) {
  by_lanes<T>(p, WriteSums<Accumulator<T>>{p});
}

// A thread to a row.
template <class A> ANL_KERNEL(warp_size, 1) shard_finish_kernel(ANL_PARAM ShardFinishParam<A> p) {
  const RowLossArgs& args = p.row.args;
  const int64_t n = block_x() * warp_size + thread();
  if (n >= args.shape.B * args.shape.M)
    return;
  const int num_dense = p.row.terms.num_dense;
  A* const shared = reinterpret_cast<A*>(shared_memory());
  const RowSlots<A> slots(shared + thread() * RowSlots<A>::size(num_dense), num_dense);
  for (int i = 0; i < num_dense; ++i)
    slots.put_sums(i, p.sums[n * num_dense + i]);
  const Label<A> label = {-1, label_number(args, n) != args.ignore_index, 0};
  finish_heads(p.row, n, label, whole_row<A>(p.partials, n), slots, false, true, A(0));
}

template <class A> void launch_finish(const ShardArgs& args, void* stream) {
  const ShardFinishParam<A> p = {{args, {}, args.aux, terms_of<A>(args)},
                                 static_cast<const A*>(args.partials),
                                 static_cast<const Sums<A>*>(args.sums)};
  const int64_t slots = RowSlots<A>::size(p.row.terms.num_dense) * sizeof(A);
  launch(shard_finish_kernel<A>, "shard_finish",
         {ceil_div(args.shape.rows(), warp_size), 1, warp_size, warp_size * slots}, stream, p);
}

} // namespace

void launch_shard_partials(const ShardArgs& args, const Plan& plan, void* stream) {
  with_type(args.type, [&](auto storage) {
    using T = decltype(storage);
    const bool vectors = plan.kind == Kind::Stream;
    launch(vectors ? shard_partials_kernel<T> : shard_partials_elements_kernel<T>,
           vectors ? "shard_partials" : "shard_partials_elements",
           grid_of(plan, args.shape, sizeof(T)), stream, ShardParam{args, plan});
  });
}

void launch_shard_sums(const ShardArgs& args, const Plan& plan, void* stream) {
  with_type(args.type, [&](auto storage) {
    using T = decltype(storage);
    using A = Accumulator<T>;
    const bool vectors = plan.kind == Kind::Stream;
    launch(vectors ? shard_sums_kernel<T> : shard_sums_elements_kernel<T>,
           vectors ? "shard_sums" : "shard_sums_elements", grid_of(plan, args.shape, sizeof(T)),
           stream, ShardSumsParam<A>{{args, plan}, terms_of<A>(args)});
  });
}

// The partials' type is that of the arithmetic.
void shard_finish(const ShardArgs& args, const Place& place) {
  if (args.type == Type::Float64)
    launch_finish<double>(args, place.stream);
  else
    launch_finish<float>(args, place.stream);
}

} // namespace anl::cuda
