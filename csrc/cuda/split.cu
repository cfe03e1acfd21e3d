// Few very long rows that no cluster holds: each is split over many blocks, whose sums merge.
//
// Three launches: partials of every part; sums of the dense terms of every part, once all parts'
// partials give the row's lse; the heads. The gradient is then grads.cu's. No atomics: a block
// merges the parts in their order, the same bits every time.
#include "kernels.h"

namespace anl::cuda {
namespace {

// The workspace, by row and part.
template <class A> struct PartSums {
  Partials<A>* partials;
  Best<A>* best;
  Sums<A>* sums; // num_dense for each
  int parts;
};

template <class A> struct SplitParam {
  RowLossParam<A> row;
  PartSums<A> out;
};

template <class V, class Team>
ANL_DEVICE V merged(const V* of_parts, int parts, int step, Team& team) {
  V value = V::nothing();
  for (int i = team.rank(); i < parts; i += team.size())
    value = merge(value, of_parts[int64_t(i) * step]);
  return team.reduce(value);
}

template <class T> struct SplitRow {
  using A = Accumulator<T>;
  int64_t n;
  int K, part;
  const T* z;
  Label<A> label;
  ANL_DEVICE explicit SplitRow(const SplitParam<A>& p)
      : n(block_x()), K(int(p.row.args.shape.K)), part(block_y()),
        z(row_of<T>(p.row.args.logits, p.row.args.shape, n)),
        label(label_of<T>(p.row.args, n, z, true)) {}
  ANL_DEVICE Streamed<T> source(const SplitParam<A>& p) const {
    const int each = int(p.row.plan.part_bytes / 16), first = part * each;
    const int last = smaller_of(first + each, Vectors<T>::count(z, K));
    return {z, K, label.y, first, last, thread(), threads()};
  }
};

template <class T>
ANL_KERNEL(row_threads, sizeof(T) == 8 ? 1 : 3)
split_partials_kernel(ANL_PARAM SplitParam<Accumulator<T>> p) {
  using A = Accumulator<T>;
  const SplitRow<T> row(p);
  const Streamed<T> source = row.source(p);
  Cluster team(shared_memory());
  const int64_t at = row.n * p.out.parts + row.part;
  const Partials<A> s = team.reduce(partials_of(source, p.row.terms.linear));
  if (team.leads())
    p.out.partials[at] = s;
  if (!p.row.args.argmax)
    return;
  const Best<A> best = team.reduce(best_of(source));
  if (team.leads())
    p.out.best[at] = best;
}

template <class T>
ANL_KERNEL(row_threads, sizeof(T) == 8 ? 1 : 3)
split_sums_kernel(ANL_PARAM SplitParam<Accumulator<T>> p) {
  using A = Accumulator<T>;
  const SplitRow<T> row(p);
  const Streamed<T> source = row.source(p);
  Cluster team(shared_memory());
  const Partials<A> s = merged(p.out.partials + row.n * p.out.parts, p.out.parts, 1, team);
  const RowSums<A> sums_of_row = row_sums(s, row.label.z_y);
  const Terms<A>& terms = p.row.terms;
  for (int i = 0; i < terms.num_dense; ++i) {
    const Term<A>& term = terms.term[terms.dense[i]];
    const Line<A> line = line_of(term, sums_of_row, s);
    Sums<A> sums = Sums<A>::nothing();
    if (!line.holds) {
      sums = team.reduce(sums_of_term(term, source, scale_of(sums_of_row)));
    } else if (row.part == 0) {
      // The first part has the sums of the row. Who merges them need not decide the same again,
      // where a rounding might make it decide otherwise.
      sums = sums_on_line(line, sums_of_row);
    }
    if (team.leads())
      p.out.sums[(row.n * p.out.parts + row.part) * terms.num_dense + i] = sums;
  }
}

template <class T>
ANL_KERNEL(warp_size, 1)
split_finish_kernel(ANL_PARAM SplitParam<Accumulator<T>> p) {
  using A = Accumulator<T>;
  const SplitRow<T> row(p);
  const Terms<A>& terms = p.row.terms;
  const int parts = p.out.parts;
  Lanes team(warp_size);
  const Partials<A> s = merged(p.out.partials + row.n * parts, parts, 1, team);
  const RowSums<A> sums_of_row = row_sums(s, row.label.z_y);
  const RowSlots<A> slots(reinterpret_cast<A*>(shared_memory()), terms.num_dense);
  for (int i = 0; i < terms.num_dense; ++i) {
    const Sums<A>* of_parts = p.out.sums + row.n * parts * terms.num_dense + i;
    const Sums<A> sums = merged(of_parts, parts, terms.num_dense, team);
    if (team.leads())
      slots.put_sums(i, sums);
  }
  if (p.row.args.argmax) {
    const Best<A> best = merged(p.out.best + row.n * parts, parts, 1, team);
    if (team.leads())
      store_argmax(p.row.args, row.n, best, row.label);
  }
  warp_barrier();
  finish_heads(p.row, row.n, row.label, sums_of_row, slots, team.leads(), team.leads(), A(1));
}

template <class A> int64_t bytes_of_part(int num_dense) {
  return sizeof(Partials<A>) + sizeof(Best<A>) + num_dense * sizeof(Sums<A>);
}

template <class A> PartSums<A> part_sums(char* workspace, int64_t rows, int parts) {
  PartSums<A> out;
  out.parts = parts;
  out.partials = reinterpret_cast<Partials<A>*>(workspace);
  workspace += rows * parts * sizeof(Partials<A>);
  out.best = reinterpret_cast<Best<A>*>(workspace);
  out.sums = reinterpret_cast<Sums<A>*>(workspace + rows * parts * sizeof(Best<A>));
  return out;
}

} // namespace

int64_t split_workspace(const RowLossArgs& args, const Plan& plan) {
  int64_t bytes = 0;
  with_type(args.type, [&](auto storage) {
    using T = decltype(storage);
    using A = Accumulator<T>;
    bytes = args.shape.rows() * parts_of_row(plan, args.shape, sizeof(T)) *
            bytes_of_part<A>(terms_of<A>(args).num_dense);
  });
  return bytes;
}

void launch_split(const RowLossArgs& args, const Plan& plan, void* workspace, void* stream) {
  with_type(args.type, [&](auto storage) {
    using T = decltype(storage);
    using A = Accumulator<T>;
    const Grid by_part = grid_of(plan, args.shape, sizeof(T));
    const SplitParam<A> p = {
        param_of<A>(args, plan),
        part_sums<A>(static_cast<char*>(workspace), args.shape.rows(), by_part.blocks_y)};
    launch(split_partials_kernel<T>, "split_partials", by_part, stream, p);
    if (p.row.terms.num_dense)
      launch(split_sums_kernel<T>, "split_sums", by_part, stream, p);
    const Grid by_row = {args.shape.rows(), 1, warp_size, slot_bytes<A>(p.row.terms.num_dense)};
    launch(split_finish_kernel<T>, "split_finish", by_row, stream, p);
  });
}

} // namespace anl::cuda
