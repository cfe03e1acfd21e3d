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

#include <algorithm>
#include <optional>
#include <string_view>
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

// What an operator writes to, PyTorch is told: who saved it for backward would be wrong.
inline void bump_version(const Tensor& tensor) {
  if (!tensor.is_inference())
    tensor.unsafeGetTensorImpl()->bump_version();
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

// The outputs of row_loss, each a bit of a request: RowOutputs in anl_kernels/interface.py.
#define ANL_FOR_EACH_OUTPUT(X)                                                                     \
  X(void, loss, ) X(void, grad, ) X(void, probs, ) ANL_FOR_EACH_ROW_NUMBER(X)
enum class Output : int {
#define ANL_PLACE(type, name, columns) name,
  ANL_FOR_EACH_OUTPUT(ANL_PLACE)
#undef ANL_PLACE
};

// See RowRequest there.
struct Request {
  std::vector<TermSpec> terms;
  int64_t ignore_index, outputs;
  bool reduce, inplace;

  Request(std::string_view functors, at::ArrayRef<double> given, const OptionalTensor& moving,
          int64_t ignore_index, int64_t outputs, bool reduce, bool inplace)
      : ignore_index(ignore_index), outputs(outputs), reduce(reduce), inplace(inplace) {
    const auto numbers =
        moving ? at::ArrayRef<double>(moving->const_data_ptr<double>(), moving->numel()) : given;
    for (size_t begin = 0; begin <= functors.size();) {
      const size_t end = std::min(functors.find(',', begin), functors.size());
      add(functors.substr(begin, end - begin), numbers);
      begin = end + 1;
    }
  }

  bool wants(Output output) const { return outputs >> int(output) & 1; }
  bool overwrites() const { return wants(Output::grad) && inplace; }
  bool makes_grad() const { return wants(Output::grad) && !inplace; }
  bool reads_ignored_rows() const {
    return wants(Output::lse) || wants(Output::argmax) || wants(Output::probs);
  }
  int64_t num_terms() const { return int64_t(terms.size()); }

  int64_t num_dense() const {
#define ANL_IS_DENSE(name, F) F<double>::sum == Sum::Dense,
    constexpr bool is_dense[] = {ANL_FOR_EACH_FUNCTOR(ANL_IS_DENSE)};
#undef ANL_IS_DENSE
    return std::count_if(terms.begin(), terms.end(),
                         [&](const TermSpec& term) { return is_dense[term.functor]; });
  }

private:
  // A term such as NCE:nce, or NCE:nce@row, whose slopes its row's denominator multiplies.
  void add(std::string_view term, at::ArrayRef<double> numbers) {
#define ANL_NAME(name, F) name,
    static constexpr std::string_view names[] = {ANL_FOR_EACH_FUNCTOR(ANL_NAME)};
#undef ANL_NAME
    constexpr std::string_view by_row = "@row";
    std::string_view functor = term.substr(term.find(':') + 1);
    const bool balanced =
        functor.size() > by_row.size() && functor.substr(functor.size() - by_row.size()) == by_row;
    functor.remove_suffix(balanced ? by_row.size() : 0);
    const auto place = std::find(std::begin(names), std::end(names), functor) - std::begin(names);
    TORCH_CHECK(place < std::end(names) - std::begin(names), "no functor ", functor);
    const size_t at = terms.size() * (1 + scalars_of_term);
    TORCH_CHECK(numbers.size() >= at + 1 + scalars_of_term, "no numbers for ", term);
    const double* n = numbers.data() + at;
    terms.push_back({int(place), balanced, n[0], {n[1], n[2], n[3]}});
  }
};

// What every row call is given, as kernels read it: the tensors live as long as their arguments.
struct RowInputs {
  const Request& request;
  Tensor logits, labels, scale;

  RowInputs(const Tensor& logits, const Tensor& target, const Request& request)
      : request(request), logits(readable(logits)), labels(target.contiguous()) {}
  RowInputs(const Tensor& logits, const Tensor& target, const Tensor& row_scale,
            const Request& request)
      : RowInputs(logits, target, request) {
    scale = row_scale.contiguous();
  }
  RowInputs(const RowInputs&) = delete; // arguments point into it

  bool empty() const { return logits.numel() == 0; }

  void fill_in(RowArgs& args) {
    const auto acc = accumulator_of(logits);
    TORCH_CHECK(!scale.defined() || scale.scalar_type() == acc, "row_scale must be ", acc);
    TORCH_CHECK(labels.scalar_type() == at::kLong || labels.scalar_type() == at::kInt,
                "target must be int64 or int32");
    const View view = view_of(logits);
    TORCH_CHECK(labels.numel() == view.shape.rows(), "target must have a label for each row");
    args.type = type_of(logits);
    args.shape = view.shape;
    args.logits = view.rows;
    args.target = labels.data_ptr();
    args.target_is_int32 = labels.scalar_type() == at::kInt;
    args.ignore_index = request.ignore_index;
    args.row_scale = data_of(scale);
    args.scale_stride = !scale.defined() || scale.numel() == 1 ? 0 : 1;
    args.terms = request.terms.data();
    args.num_terms = int(request.num_terms());
  }
};

// Numbers of rows: undefined unless they are wanted.
struct RowNumbers {
#define ANL_TENSOR(type, name, columns) Tensor name;
  ANL_FOR_EACH_ROW_NUMBER(ANL_TENSOR)
#undef ANL_TENSOR

  RowNumbers(int64_t N, const Request& request, const at::TensorOptions& options) {
    const int64_t T = request.num_terms();
    (void)T;
#define ANL_ALLOCATE(type, name, columns)                                                          \
  if (request.wants(Output::name))                                                                 \
    name = allocate<type>({N, columns}, options);
    ANL_FOR_EACH_ROW_NUMBER(ANL_ALLOCATE)
#undef ANL_ALLOCATE
  }

  void fill_in(RowLossArgs& args) const {
#define ANL_FILL_IN(type, name, columns) args.name = static_cast<type*>(data_of(name));
    ANL_FOR_EACH_ROW_NUMBER(ANL_FILL_IN)
#undef ANL_FILL_IN
  }

  void append_to(std::vector<Tensor>& results) const {
#define ANL_APPEND(type, name, columns)                                                            \
  if (name.defined())                                                                              \
    results.push_back(name);
    ANL_FOR_EACH_ROW_NUMBER(ANL_APPEND)
#undef ANL_APPEND
  }

private:
  template <class number>
  static Tensor allocate(std::initializer_list<int64_t> shape, const at::TensorOptions& options) {
    return at::empty(shape, std::is_void_v<number> ? options : options.dtype(at::kLong));
  }
};

// A call of row_loss: its arguments, and its outputs. The loss is a matter of the losses of rows,
// for which there is memory always.
struct RowLossCall : RowInputs {
  Tensor weights, loss, grad, probs;
  RowNumbers numbers;
  Tensor row_losses;
  RowLossArgs args = {}; // filled in unless there are no rows

  RowLossCall(const Tensor& given, const Tensor& target, const Tensor& row_scale,
              const OptionalTensor& term_weights, const Request& request, Allocate* allocate)
      : RowInputs(given, target, row_scale, request),
        weights(term_weights ? term_weights->contiguous() : Tensor()),
        numbers(target.numel(), request, scale.options()), row_losses(numbers.row_losses) {
    if (request.makes_grad())
      grad = anl::empty_like_rows(given, allocate);
    if (request.wants(Output::probs))
      probs = anl::empty_like_rows(given, allocate);
    if (!row_losses.defined())
      row_losses = at::empty({target.numel()}, scale.options());
    if (empty())
      return;
    fill_in(args);
    numbers.fill_in(args);
    args.row_losses = data_of(row_losses);
    args.term_weights = data_of(weights);
    args.grad = rows_of(request.overwrites() ? given : grad);
    args.probs = rows_of(probs);
  }

  // In the order of RowOutputs.
  std::vector<Tensor> results() const {
    std::vector<Tensor> results;
    for (const Tensor& tensor : {loss, grad, probs})
      if (tensor.defined())
        results.push_back(tensor);
    numbers.append_to(results);
    return results;
  }
};

// A call of row_grad, which writes to `grad`.
struct RowGradCall : RowInputs {
  Tensor saved;
  RowGradArgs args = {};

  RowGradCall(const Tensor& grad, const Tensor& given, const Tensor& target,
              const Tensor& row_scale, const Tensor& given_saved, const Request& request)
      : RowInputs(given, target, row_scale, request), saved(given_saved.contiguous()) {
    fill_in(args);
    args.grad = rows_of(grad);
    args.saved = saved.data_ptr();
  }
};

// A call for shards, which may have results for every row.
struct ShardCall : RowInputs {
  int64_t N;
  ShardArgs args = {}; // filled in unless there are no rows

  ShardCall(const Tensor& given, const Tensor& target, const Request& request)
      : RowInputs(given, target, request), N(target.numel()) {
    if (empty())
      return;
    fill_in(args);
    args.aux = request.reads_ignored_rows();
  }

  at::TensorOptions options() const { return logits.options().dtype(accumulator_of(logits)); }
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

  ShardPartialsCall(const Tensor& given, const Tensor& target, const Request& request)
      : ShardCall(given, target, request), partials(at::empty({N, num_partials}, options())),
        best(
            at::empty({request.wants(Output::argmax) ? N : 0}, logits.options().dtype(at::kLong))) {
    args.partials = partials.data_ptr();
    args.argmax = request.wants(Output::argmax) ? best.data_ptr<int64_t>() : nullptr;
  }
};

struct ShardSumsCall : ShardCall {
  Tensor partials, sums;

  ShardSumsCall(const Tensor& given, const Tensor& target, const Tensor& merged,
                const Request& request)
      : ShardCall(given, target, request), partials(made(merged, num_partials)),
        sums(at::empty({N, 2 * request.num_dense()}, options())) {
    args.partials = partials.data_ptr();
    args.sums = sums.data_ptr();
  }
  bool empty() const { return ShardCall::empty() || sums.numel() == 0; }
};

// The partials are the rows that are read.
struct ShardFinishCall : ShardCall {
  Tensor sums, weights;
  RowNumbers numbers;

  ShardFinishCall(const Tensor& merged, const Tensor& summed, const Tensor& target,
                  const OptionalTensor& term_weights, const Request& request)
      : ShardCall(merged.contiguous(), target, request),
        sums(made(summed, 2 * request.num_dense())),
        weights(term_weights ? term_weights->contiguous() : Tensor()),
        numbers(N, request, options()) {
    numbers.fill_in(args);
    args.partials = made(logits, num_partials).data_ptr();
    args.sums = sums.data_ptr();
    args.term_weights = data_of(weights);
  }

  std::vector<Tensor> results() const {
    std::vector<Tensor> results;
    numbers.append_to(results);
    return results;
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
