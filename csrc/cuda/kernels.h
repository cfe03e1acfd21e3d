// What the files of kernels share: their parameters out of a call's, and one launcher each.
#pragma once

#include "finish.h"

namespace anl::cuda {

// Calls action(T()) for the storage type.
template <class Action> void with_type(Type type, const Action& action) {
  switch (type) {
  case Type::Float64:
    return action(double());
  case Type::Float32:
    return action(float());
  case Type::BFloat16:
    return action(BFloat16());
  case Type::Float16:
    return action(Float16());
  }
}

ANL_FN int smaller_of(int a, int b) { return a < b ? a : b; }

// Bytes of the numbers that a row keeps in shared memory.
template <class A> ANL_FN int slot_bytes(int num_dense) {
  return (RowSlots<A>::size(num_dense) * int(sizeof(A)) + 15) / 16 * 16;
}

template <class A> RowLossParam<A> param_of(const RowLossArgs& args, const Plan& plan) {
  return {args, plan, reads_ignored_rows(args), terms_of<A>(args)};
}

template <class A> struct RowGradParam {
  RowGradArgs args;
  Rows probs; // where the softmax is wanted too
  Plan plan;
  Terms<A> terms;
};

// What row_loss left of a row, for its gradient.
template <class T> class SavedRow {
public:
  using A = Accumulator<T>;
  ANL_DEVICE SavedRow(const RowGradParam<A>& p, int64_t n, const Label<A>& label)
      : terms_(p.terms),
        saved_(static_cast<const A*>(p.args.saved) + n * (num_saved + p.terms.count)),
        factor_(label.counted ? scale_of_row<A>(p.args, n) : A(0)), zero_(!label.counted) {}

  ANL_DEVICE Scale<A> scale() const { return Scale<A>(saved_[0], saved_[1]); }
  ANL_DEVICE A slope(int i) const { return saved_[num_saved + terms_.dense[i]] * factor_; }
  ANL_DEVICE RowGradient<A> gradient() const {
    A base = 0;
    for (int t = 0; t < terms_.count; ++t)
      if (terms_.term[t].sum == Sum::Affine)
        base += saved_[num_saved + t];
    return {saved_[2] * factor_, saved_[3] * factor_, base * factor_, 0, true, zero_};
  }

private:
  const Terms<A>& terms_;
  const A* saved_;
  A factor_;
  bool zero_;
};

template <class T> ANL_DEVICE Sink<T> sink_of(const Rows& rows, const Shape& shape, int64_t n) {
  return {rows.data ? row_of<T>(rows, shape, n) : nullptr, rows.cls, int(shape.K)};
}

// The gradient of a row from what was saved of it.
template <class T, class Source, class GradSink>
ANL_DEVICE void write_saved(const RowGradParam<Accumulator<T>>& p, int64_t n,
                            const Label<Accumulator<T>>& label, const Source& source,
                            const GradSink& grad) {
  using A = Accumulator<T>;
  const SavedRow<T> saved(p, n, label);
  write_row(
      p.terms, source, saved.scale(), saved.gradient(), [&](int i) { return saved.slope(i); },
      label, saved.scale().p(label.z_y), grad, sink_of<T>(p.probs, p.args.shape, n));
}

// The most blocks of a cluster of rows, when each takes all the shared memory that it may.
int largest_row_cluster(int device, int64_t shared_bytes);

// Launchers, each in the file of its kernels. Rows are canonical (plan.h).
void launch_rows(const RowLossArgs&, const Plan&, void* stream);
// Of a cluster, if there are kernels for its sum of terms; whether there are.
bool launch_common_rows(const RowLossArgs&, const Plan&, void* stream);
void launch_tiles(const RowLossArgs&, const Plan&, void* stream);
void launch_grad_tiles(const RowGradArgs&, const Plan&, void* stream);
void launch_grad_rows(const RowGradArgs&, const Rows& probs, const Plan&, void* stream);
// The split kind leaves its gradient, and the softmax, to launch_grad_rows: args.saved is written.
int64_t split_workspace(const RowLossArgs&, const Plan&);
void launch_split(const RowLossArgs&, const Plan&, void* workspace, void* stream);
void launch_shard_partials(const ShardArgs&, const Plan&, void* stream);
void launch_shard_sums(const ShardArgs&, const Plan&, void* stream);

} // namespace anl::cuda
