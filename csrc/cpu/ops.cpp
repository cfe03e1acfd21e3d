// The operators torch.ops.anl_kernels_cpu.*: tensors in, work shared over PyTorch's threads,
// tensors out. anl_kernels/backends/cpu/launch.py calls them.
#include "ops.h"

#include "../row.h"
#include "buffers.h"
#include "interface.h"

#include <ATen/ExpandUtils.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/strides.h>
#include <torch/library.h>

#include <memory>
#include <tuple>
#include <vector>

namespace anl::cpu {
namespace {

const Kernels* kernels = nullptr;

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int scalars_of_term = 3;
// Elements that are worth waking a thread for.
constexpr int64_t grain_elements = 1 << 14;
// Outputs from here on pass the cache by, which saves fetching what is overwritten: where they are
// large, and rows are long enough that the incomplete lines at their ends do not matter.
constexpr int64_t stream_bytes = int64_t(1) << 23, stream_row_bytes = int64_t(1) << 14;

bool streams(const Tensor& logits) {
  const int64_t classes = logits.size(logits.dim() == 1 ? 0 : 1);
  return int64_t(logits.nbytes()) >= stream_bytes &&
         classes * int64_t(logits.element_size()) >= stream_row_bytes;
}

Type type_of(const Tensor& tensor) {
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

// (B, K, M) of a tensor of rows; dimensions after the classes must have one stride.
struct View {
  Shape shape;
  Rows rows;
};

View view_of(const Tensor& tensor) {
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

Rows rows_of(const Tensor& tensor) { return tensor.defined() ? view_of(tensor).rows : Rows{}; }

void* data_of(const Tensor& tensor) { return tensor.defined() ? tensor.data_ptr() : nullptr; }

std::vector<TermSpec> terms_of(at::IntArrayRef functors, at::ArrayRef<double> numbers) {
  TORCH_CHECK(numbers.size() == functors.size() * (1 + scalars_of_term));
  std::vector<TermSpec> terms;
  for (size_t t = 0; t < functors.size(); ++t) {
    TORCH_CHECK(functors[t] >= 0 && functors[t] < kernels->num_functors, "no functor ",
                functors[t]);
    const double* n = numbers.data() + t * (1 + scalars_of_term);
    terms.push_back({int(functors[t]), n[0], {n[1], n[2], n[3]}});
  }
  return terms;
}

void run(Job* made) {
  const std::unique_ptr<Job> job(made);
  for (int phase = 0; phase < job->phases(); ++phase) {
    const int64_t of_unit = std::max<int64_t>(1, job->elements_of_unit(phase));
    const int64_t grain = std::max<int64_t>(1, grain_elements / of_unit);
    at::parallel_for(0, job->units(phase), grain,
                     [&](int64_t begin, int64_t end) { job->run(phase, begin, end); });
  }
}

bool one_stride(const Tensor& tensor) {
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
Tensor readable(const Tensor& logits) { return one_stride(logits) ? logits : logits.contiguous(); }

// An output like the logits, with their strides if rows can be written through them.
Tensor empty_like_rows(const Tensor& logits) {
  if (!one_stride(logits))
    return empty_strided(logits.sizes(), c10::contiguous_strides(logits.sizes()), logits.options());
  if (logits.is_non_overlapping_and_dense())
    return empty_strided(logits.sizes(), logits.strides(), logits.options());
  return empty_strided(logits.sizes(), at::infer_dense_strides(logits.sizes(), logits.strides()),
                       logits.options());
}

// What every row call is given. The tensors must outlive it.
void fill_in(RowArgs& args, const Tensor& logits, const Tensor& target, const Tensor& row_scale,
             const std::vector<TermSpec>& terms, int64_t ignore_index) {
  const auto acc = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK(row_scale.scalar_type() == acc, "row_scale must be ", acc);
  TORCH_CHECK(target.scalar_type() == at::kLong || target.scalar_type() == at::kInt,
              "target must be int64 or int32");
  const View view = view_of(logits);
  TORCH_CHECK(target.numel() == view.shape.rows(), "target must have a label for each row");
  args.type = type_of(logits);
  args.shape = view.shape;
  args.logits = view.rows;
  args.target = target.data_ptr();
  args.target_is_int32 = target.scalar_type() == at::kInt;
  args.ignore_index = ignore_index;
  args.row_scale = row_scale.data_ptr();
  args.scale_stride = row_scale.numel() == 1 ? 0 : 1;
  args.terms = terms.data();
  args.num_terms = int(terms.size());
  args.stream = streams(logits);
}

// The losses of rows times their scale, or the sum of that, in double precision and in order.
template <class A>
Tensor scaled_loss(const Tensor& row_losses, const Tensor& scale, at::IntArrayRef shape,
                   bool reduce) {
  const A *losses = row_losses.const_data_ptr<A>(), *scales = scale.const_data_ptr<A>();
  const int64_t N = row_losses.numel(), stride = scale.numel() == 1 ? 0 : 1;
  Tensor result = at::empty(reduce ? at::IntArrayRef() : shape, row_losses.options());
  A* out = result.mutable_data_ptr<A>();
  double sum = 0;
  for (int64_t n = 0; n < N; ++n) {
    const A scaled = losses[n] * scales[n * stride];
    if (reduce)
      sum += scaled;
    else
      out[n] = scaled;
  }
  if (reduce)
    *out = A(sum);
  return result;
}

using Outputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// See Backend.row_loss and RowOutputs in anl_kernels/backends/interface.py.
Outputs row_loss(const Tensor& given, const Tensor& target, const Tensor& row_scale,
                 const OptionalTensor& term_weights, at::IntArrayRef functors,
                 at::ArrayRef<double> numbers, int64_t ignore_index, bool reduce, bool write_grad,
                 bool inplace, bool write_stats, bool aux, bool probs) {
  const Tensor logits = readable(given), labels = target.contiguous();
  const Tensor scale = row_scale.contiguous();
  const Tensor weights = term_weights ? term_weights->contiguous() : Tensor();
  const int64_t N = target.numel(), T = int64_t(functors.size());
  const auto per_row = logits.options().dtype(scale.scalar_type());
  // Undefined, None in Python, where it is not wanted.
  auto rows = [&](bool wanted, at::IntArrayRef shape) {
    return wanted ? at::empty(shape, per_row) : Tensor();
  };
  auto like_logits = [&](bool wanted) { return wanted ? empty_like_rows(given) : Tensor(); };
  Outputs outputs = {Tensor(),
                     rows(true, {N}),
                     like_logits(write_grad && !inplace),
                     rows(write_stats, {N, num_stats + T}),
                     rows(aux, {N, T}),
                     rows(aux, {N}),
                     rows(aux, {N}),
                     aux ? at::empty({N}, logits.options().dtype(at::kLong)) : Tensor(),
                     like_logits(probs)};
  auto finish = [&] {
    const Tensor& losses = std::get<1>(outputs);
    std::get<0>(outputs) = losses.scalar_type() == at::kDouble
                               ? scaled_loss<double>(losses, scale, target.sizes(), reduce)
                               : scaled_loss<float>(losses, scale, target.sizes(), reduce);
    return outputs;
  };
  if (logits.numel() == 0)
    return finish();

  const std::vector<TermSpec> terms = terms_of(functors, numbers);
  RowLossArgs args;
  fill_in(args, logits, labels, scale, terms, ignore_index);
  args.term_weights = weights.defined() ? weights.data_ptr() : nullptr;
  args.grad = rows_of(write_grad && inplace ? given : std::get<2>(outputs));
  args.stream = args.stream && args.grad.data != args.logits.data; // what was just read is cached
  args.row_losses = data_of(std::get<1>(outputs));
  args.stats = data_of(std::get<3>(outputs));
  args.term_losses = data_of(std::get<4>(outputs));
  args.lse = data_of(std::get<5>(outputs));
  args.p_y = data_of(std::get<6>(outputs));
  args.argmax = static_cast<int64_t*>(data_of(std::get<7>(outputs)));
  args.probs = rows_of(std::get<8>(outputs));
  run(kernels->row_loss(args, at::get_num_threads()));
  return finish();
}

template <class Y>
std::tuple<int64_t, int64_t> scan(const Tensor& target, int64_t K, int64_t ignore_index) {
  const Y* y = target.const_data_ptr<Y>();
  const int64_t N = target.numel();
  int64_t counted = 0, outside = -1;
  for (int64_t n = 0; n < N; ++n) {
    const bool counts = y[n] != ignore_index;
    counted += counts;
    if (counts && (y[n] < 0 || y[n] >= K) && outside < 0)
      outside = n;
  }
  return {counted, outside};
}

// The number of labels that are not ignored, and the first that is no class, or -1.
std::tuple<int64_t, int64_t> scan_labels(const Tensor& target, int64_t K, int64_t ignore_index) {
  const Tensor labels = target.contiguous();
  return labels.scalar_type() == at::kInt ? scan<int32_t>(labels, K, ignore_index)
                                          : scan<int64_t>(labels, K, ignore_index);
}

// See Backend.row_grad.
void row_grad_into(const Tensor& grad, const Tensor& given, const Tensor& target,
                   const Tensor& row_scale, const Tensor& stats, at::IntArrayRef functors,
                   at::ArrayRef<double> numbers, int64_t ignore_index) {
  if (given.numel() == 0)
    return;
  const Tensor logits = readable(given), labels = target.contiguous();
  const Tensor scale = row_scale.contiguous(), saved = stats.contiguous();
  const std::vector<TermSpec> terms = terms_of(functors, numbers);
  RowGradArgs args;
  fill_in(args, logits, labels, scale, terms, ignore_index);
  args.grad = rows_of(grad);
  args.stream = args.stream && args.grad.data != args.logits.data;
  args.stats = saved.data_ptr();
  run(kernels->row_grad(args));
}

Tensor softmax(const Tensor& given) {
  const Tensor logits = readable(given), probs = empty_like_rows(given);
  if (logits.numel() == 0)
    return probs;
  const View view = view_of(logits);
  RowLossArgs args = {};
  args.type = type_of(logits);
  args.shape = view.shape;
  args.logits = view.rows;
  args.probs = rows_of(probs);
  args.stream = streams(logits);
  run(kernels->row_loss(args, at::get_num_threads()));
  return probs;
}

Tensor softmax_backward(const Tensor& given_upstream, const Tensor& given_probs) {
  const Tensor upstream = readable(given_upstream), probs = readable(given_probs);
  const Tensor grad = empty_like_rows(given_probs);
  if (probs.numel() == 0)
    return grad;
  const View view = view_of(probs);
  SoftmaxBackwardArgs args = {type_of(probs), view.shape,    rows_of(upstream),
                              view.rows,      rows_of(grad), streams(probs)};
  run(kernels->softmax_backward(args));
  return grad;
}

TORCH_LIBRARY(anl_kernels_cpu, library) {
  library.def("row_loss(Tensor logits, Tensor target, Tensor row_scale, Tensor? term_weights, "
              "int[] functors, float[] numbers, int ignore_index, bool reduce, bool write_grad, "
              "bool inplace, bool write_stats, bool aux, bool probs) -> "
              "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.def("scan_labels(Tensor target, int num_classes, int ignore_index) -> (int, int)");
  library.def("row_grad_into(Tensor grad, Tensor logits, Tensor target, Tensor row_scale, "
              "Tensor stats, int[] functors, float[] numbers, int ignore_index) -> ()");
  library.def("softmax(Tensor logits) -> Tensor");
  library.def("softmax_backward(Tensor upstream, Tensor probs) -> Tensor");
  library.def("empty_like_rows(Tensor logits) -> Tensor");
}

TORCH_LIBRARY_IMPL(anl_kernels_cpu, CPU, library) {
  library.impl("row_loss", row_loss);
  library.impl("scan_labels", scan_labels);
  library.impl("row_grad_into", row_grad_into);
  library.impl("softmax", softmax);
  library.impl("softmax_backward", softmax_backward);
  library.impl("empty_like_rows", empty_like_rows);
}

} // namespace

void set_kernels(const Kernels* table) { kernels = table; }

void elementary(Elementary function, const Tensor& x, const Tensor& y) {
  kernels->elementary(function, type_of(x), x.data_ptr(), y.data_ptr(), x.numel());
}

} // namespace anl::cpu
