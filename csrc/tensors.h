// From tensors to the arguments of kernels: what the operators of the CPU and of the CUDA kernels
// share. Where memory comes from is theirs to say (Allocate).
#pragma once

#include "call.h"
#include "row.h"
#include "terms.h"

#include <ATen/ExpandUtils.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/strides.h>

#include <optional>
#include <tuple>
#include <vector>

namespace anl {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int scalars_of_term = 3;

// Makes an uninitialised tensor of the logits' size.
using Allocate = Tensor(at::IntArrayRef sizes, at::IntArrayRef strides, const at::TensorOptions&);

inline Type type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
  case at::kDouble:
    return Type::Float64;
  case at::kFloat:
    return Type::Float32;
  case at::kBFloat16:
    return Type::BFloat16;
  case at::kHalf:
    return Type::Float16;
  default:
    TORCH_CHECK(false, "logits must be float64, float32, bfloat16 or float16, got ",
                tensor.scalar_type());
  }
}

inline at::ScalarType accumulator_of(const Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// (B, K, M) of a tensor of rows; dimensions after the classes must have one stride.
struct View {
  Shape shape;
  Rows rows;
};

inline View view_of(const Tensor& tensor) {
  if (tensor.dim() == 1)
    return {{1, tensor.size(0), 1}, {tensor.data_ptr(), 0, tensor.stride(0), 0}};
  const int64_t batch = tensor.stride(0), cls = tensor.stride(1);
  int64_t M = 1, pos = 0;
  for (int64_t d = tensor.dim() - 1; d >= 2; --d) {
    if (tensor.size(d) == 1)
      continue;
    if (M == 1)
      pos = tensor.stride(d);
    TORCH_CHECK(tensor.stride(d) == pos * M, "the dimensions after the classes have no one stride");
    M *= tensor.size(d);
  }
  return {{tensor.size(0), tensor.size(1), M}, {tensor.data_ptr(), batch, cls, pos}};
}

inline Rows rows_of(const Tensor& tensor) {
  return tensor.defined() ? view_of(tensor).rows : Rows{};
}

inline void* data_of(const Tensor& tensor) {
  return tensor.defined() ? tensor.data_ptr() : nullptr;
}

inline bool one_stride(const Tensor& tensor) {
  int64_t expected = -1; // none yet
  for (int64_t d = tensor.dim() - 1; d >= 2; --d) {
    if (tensor.size(d) == 1)
      continue;
    if (expected >= 0 && tensor.stride(d) != expected)
      return false;
    expected = tensor.stride(d) * tensor.size(d);
  }
  return true;
}

// Logits that rows can be read from; a copy only where d1, d2, ... have no one stride.
inline Tensor readable(const Tensor& logits) {
  return one_stride(logits) ? logits : logits.contiguous();
}

// An output like the logits, with their strides if rows can be written through them.
inline Tensor empty_like_rows(const Tensor& logits, Allocate* allocate) {
  if (!one_stride(logits))
    return allocate(logits.sizes(), c10::contiguous_strides(logits.sizes()), logits.options());
  if (logits.is_non_overlapping_and_dense())
    return allocate(logits.sizes(), logits.strides(), logits.options());
  return allocate(logits.sizes(), at::infer_dense_strides(logits.sizes(), logits.strides()),
                  logits.options());
}

// A sum of terms as the Python side encodes it: places in the list of functors, and for each term
// its weight and scalars.
struct TermList {
  at::IntArrayRef functors;
  at::ArrayRef<double> numbers;
  int num_functors; // that the kernels have

  int64_t size() const { return int64_t(functors.size()); }

  std::vector<TermSpec> specs() const {
    TORCH_CHECK(numbers.size() == functors.size() * (1 + scalars_of_term));
    std::vector<TermSpec> terms;
    for (size_t t = 0; t < functors.size(); ++t) {
      TORCH_CHECK(functors[t] >= 0 && functors[t] < num_functors, "no functor ", functors[t]);
      const double* n = numbers.data() + t * (1 + scalars_of_term);
      terms.push_back({int(functors[t]), n[0], {n[1], n[2], n[3]}});
    }
    return terms;
  }

  int64_t num_dense() const {
#define ANL_IS_DENSE(name, F) F<double>::sum == Sum::Dense,
    constexpr bool is_dense[] = {ANL_FOR_EACH_FUNCTOR(ANL_IS_DENSE)};
#undef ANL_IS_DENSE
    int64_t count = 0;
    for (const TermSpec& term : specs())
      count += is_dense[term.functor];
    return count;
  }
};

// What every row call is given, as kernels read it: the tensors live as long as their arguments.
struct RowInputs {
  Tensor logits, labels, scale;
  std::vector<TermSpec> terms;

  RowInputs(const Tensor& logits, const Tensor& target) // whose results no row scales
      : logits(readable(logits)), labels(target.contiguous()) {}
  RowInputs(const Tensor& logits, const Tensor& target, const Tensor& row_scale)
      : RowInputs(logits, target) {
    scale = row_scale.contiguous();
  }
  RowInputs(const RowInputs&) = delete; // arguments point into it

  bool empty() const { return logits.numel() == 0; }

  void fill_in(RowArgs& args, const TermList& list, int64_t ignore_index) {
    const auto acc = accumulator_of(logits);
    TORCH_CHECK(!scale.defined() || scale.scalar_type() == acc, "row_scale must be ", acc);
    TORCH_CHECK(labels.scalar_type() == at::kLong || labels.scalar_type() == at::kInt,
                "target must be int64 or int32");
    const View view = view_of(logits);
    TORCH_CHECK(labels.numel() == view.shape.rows(), "target must have a label for each row");
    terms = list.specs();
    args.type = type_of(logits);
    args.shape = view.shape;
    args.logits = view.rows;
    args.target = labels.data_ptr();
    args.target_is_int32 = labels.scalar_type() == at::kInt;
    args.ignore_index = ignore_index;
    args.row_scale = data_of(scale);
    args.scale_stride = !scale.defined() || scale.numel() == 1 ? 0 : 1;
    args.terms = terms.data();
    args.num_terms = int(terms.size());
  }
};

// Which outputs row_loss has beside the losses of rows: RowRequest in
// anl_kernels/interface.py.
struct Wanted {
  bool grad, inplace, saved, aux, probs;
};

// RowOutputs there, in that order; undefined, None in Python, where it is not wanted.
using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// A call of row_loss: its arguments, and all of its outputs but the first, which is a matter of
// the losses of rows (the second).
struct RowLossCall : RowInputs {
  Tensor weights;
  Outputs outputs;
  RowLossArgs args = {}; // filled in unless there are no rows

  RowLossCall(const Tensor& given, const Tensor& target, const Tensor& row_scale,
              const OptionalTensor& term_weights, const TermList& list, int64_t ignore_index,
              const Wanted& wanted, Allocate* allocate)
      : RowInputs(given, target, row_scale),
        weights(term_weights ? term_weights->contiguous() : Tensor()),
        outputs(outputs_for(given, target.numel(), list.size(), wanted, allocate)) {
    if (empty())
      return;
    fill_in(args, list, ignore_index);
    args.term_weights = data_of(weights);
    args.grad = rows_of(wanted.grad && wanted.inplace ? given : std::get<2>(outputs));
    args.row_losses = data_of(std::get<1>(outputs));
    args.saved = data_of(std::get<3>(outputs));
    args.term_losses = data_of(std::get<4>(outputs));
    args.lse = data_of(std::get<5>(outputs));
    args.p_y = data_of(std::get<6>(outputs));
    args.argmax = static_cast<int64_t*>(data_of(std::get<7>(outputs)));
    args.probs = rows_of(std::get<8>(outputs));
  }

private:
  Outputs outputs_for(const Tensor& given, int64_t N, int64_t T, const Wanted& wanted,
                      Allocate* allocate) const {
    const auto options = logits.options();
    auto rows = [&](bool is_wanted, at::IntArrayRef shape) {
      return is_wanted ? at::empty(shape, options.dtype(scale.scalar_type())) : Tensor();
    };
    auto like_logits = [&](bool is_wanted) {
      return is_wanted ? empty_like_rows(given, allocate) : Tensor();
    };
    return {Tensor(),
            rows(true, {N}),
            like_logits(wanted.grad && !wanted.inplace),
            rows(wanted.saved, {N, num_saved + T}),
            rows(wanted.aux, {N, T}),
            rows(wanted.aux, {N}),
            rows(wanted.aux, {N}),
            wanted.aux ? at::empty({N}, options.dtype(at::kLong)) : Tensor(),
            like_logits(wanted.probs)};
  }
};

// A call of row_grad, which writes to `grad`.
struct RowGradCall : RowInputs {
  Tensor saved;
  RowGradArgs args = {};

  RowGradCall(const Tensor& grad, const Tensor& given, const Tensor& target,
              const Tensor& row_scale, const Tensor& given_saved, const TermList& list,
              int64_t ignore_index)
      : RowInputs(given, target, row_scale), saved(given_saved.contiguous()) {
    fill_in(args, list, ignore_index);
    args.grad = rows_of(grad);
    args.saved = saved.data_ptr();
  }
};

// A call for shards, which may have results for every row.
struct ShardCall : RowInputs {
  int64_t N;
  ShardArgs args = {}; // filled in unless there are no rows

  ShardCall(const Tensor& given, const Tensor& target, const TermList& list, int64_t ignore_index,
            bool aux)
      : RowInputs(given, target), N(target.numel()) {
    if (empty())
      return;
    fill_in(args, list, ignore_index);
    args.aux = aux;
  }

  Tensor rows(at::IntArrayRef shape) const {
    return at::empty(shape, logits.options().dtype(accumulator_of(logits)));
  }
  // What another call made, as kernels read it.
  Tensor made(const Tensor& given, int64_t columns) const {
    TORCH_CHECK(given.dim() == 2 && given.size(0) == N && given.size(1) == columns &&
                    given.scalar_type() == accumulator_of(logits),
                "expected (", N, ", ", columns, ") of ", accumulator_of(logits), ", got ",
                given.sizes(), " of ", given.scalar_type());
    return given.contiguous();
  }
};

struct ShardPartialsCall : ShardCall {
  Tensor partials, best;

  ShardPartialsCall(const Tensor& given, const Tensor& target, int64_t ignore_index, bool aux)
      : ShardCall(given, target, {}, ignore_index, aux), partials(rows({N, num_partials})),
        best(at::empty({aux ? N : 0}, logits.options().dtype(at::kLong))) {
    args.partials = partials.data_ptr();
    args.argmax = aux ? best.data_ptr<int64_t>() : nullptr;
  }
};

struct ShardSumsCall : ShardCall {
  Tensor partials, sums;

  ShardSumsCall(const Tensor& given, const Tensor& target, const Tensor& merged,
                const TermList& list, int64_t ignore_index, bool aux)
      : ShardCall(given, target, list, ignore_index, aux), partials(made(merged, num_partials)),
        sums(rows({N, 2 * list.num_dense()})) {
    args.partials = partials.data_ptr();
    args.sums = sums.data_ptr();
  }
  bool empty() const { return ShardCall::empty() || sums.numel() == 0; }
};

// Row losses, saved, term losses, lse, p_y.
using ShardOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

// The partials are the rows that are read.
struct ShardFinishCall : ShardCall {
  Tensor sums, weights;
  ShardOutputs outputs;

  ShardFinishCall(const Tensor& merged, const Tensor& summed, const Tensor& target,
                  const OptionalTensor& term_weights, const TermList& list, int64_t ignore_index,
                  bool write_saved, bool aux)
      : ShardCall(merged.contiguous(), target, list, ignore_index, aux),
        sums(made(summed, 2 * list.num_dense())),
        weights(term_weights ? term_weights->contiguous() : Tensor()),
        outputs{rows({N}), write_saved ? rows({N, num_saved + list.size()}) : Tensor(),
                aux ? rows({N, list.size()}) : Tensor(), aux ? rows({N}) : Tensor(),
                aux ? rows({N}) : Tensor()} {
    args.partials = made(logits, num_partials).data_ptr();
    args.sums = sums.data_ptr();
    args.term_weights = data_of(weights);
    args.row_losses = data_of(std::get<0>(outputs));
    args.saved = data_of(std::get<1>(outputs));
    args.term_losses = data_of(std::get<2>(outputs));
    args.lse = data_of(std::get<3>(outputs));
    args.p_y = data_of(std::get<4>(outputs));
  }
};

// The softmax is a row_loss without targets; of readable logits.
inline RowLossArgs softmax_args(const Tensor& logits, const Tensor& probs) {
  const View view = view_of(logits);
  RowLossArgs args = {};
  args.type = type_of(logits);
  args.shape = view.shape;
  args.logits = view.rows;
  args.probs = rows_of(probs);
  return args;
}

// Of readable tensors of one shape.
inline SoftmaxBackwardArgs softmax_backward_args(const Tensor& upstream, const Tensor& probs,
                                                 const Tensor& grad) {
  const View view = view_of(probs);
  SoftmaxBackwardArgs args = {};
  args.type = type_of(probs);
  args.shape = view.shape;
  args.upstream = rows_of(upstream);
  args.probs = view.rows;
  args.grad = rows_of(grad);
  return args;
}

// What calls about columns are given, as kernels read it: the tensors live as long as the
// arguments.
struct ColumnInputs {
  Tensor logits, counted;

  ColumnInputs(const Tensor& given, const OptionalTensor& given_counted)
      : logits(readable(given)), counted(given_counted ? given_counted->contiguous() : Tensor()) {
    TORCH_CHECK(!counted.defined() || counted.scalar_type() == at::kBool, "counted must be bool");
  }
  ColumnInputs(const ColumnInputs&) = delete; // arguments point into it

  bool empty() const { return logits.numel() == 0; }
  Tensor numbers(at::IntArrayRef shape) const {
    return at::empty(shape, logits.options().dtype(accumulator_of(logits)));
  }

  void fill_in(ColumnArgs& args, double low, double high) const {
    const View view = view_of(logits);
    TORCH_CHECK(!counted.defined() || counted.numel() == view.shape.rows(),
                "counted must have a value for each row");
    args.type = type_of(logits);
    args.shape = view.shape;
    args.logits = view.rows;
    args.counted = counted.defined() ? counted.const_data_ptr<bool>() : nullptr;
    args.low = low;
    args.high = high;
  }
};

struct ColumnSumsCall : ColumnInputs {
  Tensor sums, lse_parts;
  ColumnSumsArgs args = {};

  ColumnSumsCall(const Tensor& given, const OptionalTensor& counted, double low, double high)
      : ColumnInputs(given, counted) {
    fill_in(args, low, high);
    sums = numbers({args.shape.K});
    lse_parts = numbers({args.shape.rows(), num_lse_parts});
    if (empty())
      sums.zero_();
    args.sums = sums.data_ptr();
    args.lse_parts = lse_parts.data_ptr();
  }
};

// `grad` has one stride.
struct ColumnGradCall : ColumnInputs {
  Tensor lse_parts, slopes, scale;
  ColumnGradArgs args = {};

  ColumnGradCall(const Tensor& grad, const Tensor& given, const OptionalTensor& counted,
                 const Tensor& lse_parts, const Tensor& slopes, const Tensor& scale, double low,
                 double high, bool accumulate)
      : ColumnInputs(given, counted), lse_parts(of_kernels(lse_parts)), slopes(of_kernels(slopes)),
        scale(of_kernels(scale)) {
    fill_in(args, low, high);
    args.grad = rows_of(grad);
    args.lse_parts = this->lse_parts.data_ptr();
    args.slopes = this->slopes.data_ptr();
    args.scale = this->scale.data_ptr();
    args.accumulate = accumulate;
  }

private:
  Tensor of_kernels(const Tensor& given) const {
    TORCH_CHECK(given.scalar_type() == accumulator_of(logits), "expected numbers of ",
                accumulator_of(logits), ", got ", given.scalar_type());
    return given.contiguous();
  }
};

} // namespace anl
