// The kernel of long rows with neighbouring classes, which several files compile for their sums.
#pragma once

#include "kernels.h"

namespace anl::cuda {

// The zeros of an ignored row, which need not be read.
template <class T>
ANL_DEVICE void ignore_row(const RowLossArgs& args, int64_t n, int first, int step, bool reports) {
  using A = Accumulator<T>;
  if (reports) {
    const int64_t T_ = args.num_terms;
    store_to(args.row_losses, n, A(0));
    store_to(args.p_y, n, A(0));
    for (int64_t i = n * T_; i < (n + 1) * T_; ++i) {
      store_to(args.term_losses, i, A(0));
      store_to(args.denominators, i, A(0));
      store_to(args.term_slopes, 2 * i, A(0));
      store_to(args.term_slopes, 2 * i + 1, A(0));
    }
  }
  if (!args.grad.data)
    return;
  T* row = row_of<T>(args.grad, args.shape, n);
  const int K = int(args.shape.K);
  const Sink<T> grad(row, args.grad.cls, K);
  const A zeros[width<T>] = {};
  const int vectors = Vectors<T>::count(row, K), head = misaligned(row);
  for (int v = first; v < vectors; v += step)
    grad.store(v * width<T> - head, zeros);
}

// In a block, and blocks of a multiprocessor at least: more would leave too few registers for the
// sweeps, which may not spill.
template <class T, bool kept>
constexpr int most_threads = kept && sizeof(T) < 8 ? kept_threads : row_threads;
template <class T, bool kept> constexpr int least_blocks = kept || sizeof(T) == 8 ? 1 : 2;

// A cluster to a row; one block too. Kept in its shared memory, or read again for every sweep. D
// says what dense terms there are, where few sums are worth code of their own.
template <class T, bool kept, Dense D>
ANL_KERNEL((most_threads<T, kept>), (least_blocks<T, kept>))
cluster_row_kernel(ANL_PARAM RowLossParam<Accumulator<T>> p) {
  using A = Accumulator<T>;
  const int blocks = cluster_size(), block = cluster_rank();
  const int shift = log2_of(blocks); // spares divisions
  const int64_t n = block_x() >> shift;
  const int K = int(p.args.shape.K);
  const T* z = row_of<T>(p.args.logits, p.args.shape, n);
  Label<A> label = label_without_logit<A>(p.args, n, true);
  if (!label.counted && !p.all_rows) {
    ignore_row<T>(p.args, n, block * threads() + thread(), blocks * threads(),
                  block == 0 && thread() == 0);
    return;
  }
  const int vectors = Vectors<T>::count(z, K), each = (vectors + blocks - 1) >> shift;
  const int first = block * each, last = smaller_of(first + each, vectors);
  char* shared = shared_memory();
  const RowSlots<A> slots(reinterpret_cast<A*>(shared + Cluster::shared_bytes), p.terms.num_dense);
  const Sink<T> grad = sink_of<T>(p.args.grad, p.args.shape, n);
  const Sink<T> probs = sink_of<T>(p.args.probs, p.args.shape, n);
  if constexpr (kept) {
    Resident<T> source(z, K, label.y, first, last, thread(), threads(),
                       shared + Cluster::shared_bytes + slot_bytes<A>(p.terms.num_dense));
    source.start();
    read_logit(p.args, z, label);
    Cluster team(shared);
    source.finish();
    finish_row<T, D>(p, n, true, label, source, team, slots, grad, probs);
  } else {
    read_logit(p.args, z, label);
    const Streamed<T> source(z, K, label.y, first, last, thread(), threads());
    Cluster team(shared);
    finish_row<T, D>(p, n, true, label, source, team, slots, grad, probs);
  }
}

} // namespace anl::cuda
