// The operators torch.ops.anl_kernels_cpu.*: tensors in, work shared over PyTorch's threads,
// tensors out. anl_kernels/backends/compiled.py calls them.
#include "ops.h"

#include "../operators.h"
#include "../tensors.h"
#include "buffers.h"
#include "interface.h"

#include <ATen/Parallel.h>

#include <memory>
#include <numeric>
#include <tuple>

namespace anl::cpu {
namespace {

const Kernels* kernels = nullptr;

// Elements that are worth waking a thread for.
constexpr int64_t grain_elements = 1 << 14;
// Outputs from here on may pass the cache by, which saves fetching what is overwritten.
constexpr int64_t stream_bytes = int64_t(1) << 23;

bool streams(const Tensor& logits) { return int64_t(logits.nbytes()) >= stream_bytes; }

void run(Job* made) {
  const std::unique_ptr<Job> job(made);
  for (int phase = 0; phase < job->phases(); ++phase) {
    const int64_t of_unit = std::max<int64_t>(1, job->elements_of_unit(phase));
    const int64_t grain = std::max<int64_t>(1, grain_elements / of_unit);
    at::parallel_for(0, job->units(phase), grain,
                     [&](int64_t begin, int64_t end) { job->run(phase, begin, end); });
  }
}

// What was just read is in the cache already.
bool past_cache(const RowArgs& args, const Tensor& logits) {
  return streams(logits) && args.grad.data != args.logits.data;
}

// The losses of rows times their scale, or the sum of that, in double precision: the same several
// sums always, since one would wait for every addition.
template <class A>
Tensor scaled_loss(const Tensor& row_losses, const Tensor& scale, at::IntArrayRef shape,
                   bool reduce) {
  const A *losses = row_losses.const_data_ptr<A>(), *scales = scale.const_data_ptr<A>();
  const int64_t N = row_losses.numel(), stride = scale.numel() == 1 ? 0 : 1;
  Tensor result = at::empty(reduce ? at::IntArrayRef() : shape, row_losses.options());
  A* out = result.mutable_data_ptr<A>();
  double sums[8] = {};
  for (int64_t n = 0; n < N; ++n) {
    const A scaled = losses[n] * scales[n * stride];
    if (reduce)
      sums[n % 8] += scaled;
    else
      out[n] = scaled;
  }
  if (reduce)
    *out = A(std::accumulate(sums, sums + 8, 0.0));
  return result;
}

// See Backend.row_loss and RowOutputs in anl_kernels/interface.py.
Outputs row_loss(const Tensor& logits, const Tensor& target, const Tensor& row_scale,
                 const OptionalTensor& term_weights, at::IntArrayRef functors,
                 at::ArrayRef<double> numbers, int64_t ignore_index, bool reduce, bool write_grad,
                 bool inplace, bool write_saved, bool aux, bool probs) {
  RowLossCall call(logits, target, row_scale, term_weights,
                   {functors, numbers, kernels->num_functors}, ignore_index,
                   {write_grad, inplace, write_saved, aux, probs}, empty_strided);
  if (!call.empty()) {
    call.args.past_cache = past_cache(call.args, call.logits);
    run(kernels->row_loss(call.args, at::get_num_threads()));
  }
  const Tensor& losses = std::get<1>(call.outputs);
  std::get<0>(call.outputs) = losses.scalar_type() == at::kDouble
                                  ? scaled_loss<double>(losses, call.scale, target.sizes(), reduce)
                                  : scaled_loss<float>(losses, call.scale, target.sizes(), reduce);
  return std::move(call.outputs);
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
void row_grad_into(const Tensor& grad, const Tensor& logits, const Tensor& target,
                   const Tensor& row_scale, const Tensor& saved, at::IntArrayRef functors,
                   at::ArrayRef<double> numbers, int64_t ignore_index) {
  if (logits.numel() == 0)
    return;
  RowGradCall call(grad, logits, target, row_scale, saved,
                   {functors, numbers, kernels->num_functors}, ignore_index);
  call.args.past_cache = past_cache(call.args, call.logits);
  run(kernels->row_grad(call.args));
}

// See Kernels.shard_partials.
std::tuple<Tensor, Tensor> shard_partials(const Tensor& logits, const Tensor& target,
                                          int64_t ignore_index, bool aux) {
  const ShardPartialsCall call(logits, target, ignore_index, aux);
  if (!call.empty())
    run(kernels->shard_partials(call.args));
  return {call.partials, call.best};
}

// See Kernels.shard_sums.
Tensor shard_sums(const Tensor& logits, const Tensor& target, const Tensor& partials,
                  at::IntArrayRef functors, at::ArrayRef<double> numbers, int64_t ignore_index,
                  bool aux) {
  const ShardSumsCall call(logits, target, partials, {functors, numbers, kernels->num_functors},
                           ignore_index, aux);
  if (!call.empty())
    run(kernels->shard_sums(call.args));
  return call.sums;
}

// See Kernels.shard_finish.
ShardOutputs shard_finish(const Tensor& partials, const Tensor& sums, const Tensor& target,
                          const OptionalTensor& term_weights, at::IntArrayRef functors,
                          at::ArrayRef<double> numbers, int64_t ignore_index, bool write_saved,
                          bool aux) {
  const ShardFinishCall call(partials, sums, target, term_weights,
                             {functors, numbers, kernels->num_functors}, ignore_index, write_saved,
                             aux);
  if (!call.empty())
    run(kernels->shard_finish(call.args));
  return call.outputs;
}

Tensor empty_like_rows(const Tensor& logits) { return anl::empty_like_rows(logits, empty_strided); }

Tensor softmax(const Tensor& given) {
  const Tensor logits = readable(given), probs = empty_like_rows(given);
  if (logits.numel() == 0)
    return probs;
  RowLossArgs args = softmax_args(logits, probs);
  args.past_cache = streams(logits);
  run(kernels->row_loss(args, at::get_num_threads()));
  return probs;
}

Tensor softmax_backward(const Tensor& given_upstream, const Tensor& given_probs) {
  const Tensor upstream = readable(given_upstream), probs = readable(given_probs);
  const Tensor grad = empty_like_rows(given_probs);
  if (probs.numel() == 0)
    return grad;
  SoftmaxBackwardArgs args = softmax_backward_args(upstream, probs, grad);
  args.past_cache = streams(probs);
  run(kernels->softmax_backward(args));
  return grad;
}

// See ColumnKernels.column_sums.
std::tuple<Tensor, Tensor> column_sums(const Tensor& logits, const OptionalTensor& counted,
                                       double low, double high) {
  const ColumnSumsCall call(logits, counted, low, high);
  if (!call.empty())
    run(kernels->column_sums(call.args, at::get_num_threads()));
  return {call.sums, call.lse_parts};
}

// See ColumnKernels.column_grad.
void column_grad(const Tensor& grad, const Tensor& logits, const OptionalTensor& counted,
                 const Tensor& lse_parts, const Tensor& slopes, const Tensor& scale, double low,
                 double high, bool accumulate) {
  if (logits.numel() == 0)
    return;
  ColumnGradCall call(grad, logits, counted, lse_parts, slopes, scale, low, high, accumulate);
  call.args.past_cache = streams(call.logits) && !accumulate; // or it has just been read
  run(kernels->column_grad(call.args));
}

// The entropy regulariser of (K,) column sums, and its slopes.
std::tuple<Tensor, Tensor> entropy(const Tensor& given, double min_prob) {
  const Tensor sums = given.contiguous();
  const Tensor value = at::empty({}, sums.options()), slopes = at::empty_like(sums);
  kernels->entropy(type_of(sums), sums.const_data_ptr(), sums.numel(), min_prob, value.data_ptr(),
                   slopes.data_ptr());
  return {value, slopes};
}

// See Backend.scale_.
void scale_(const Tensor& tensor, const Tensor& factor) {
  if (factor.item().toDouble() != 1)
    tensor.mul_(factor);
}

TORCH_LIBRARY(anl_kernels_cpu, library) {
  define_operators(library);
  library.def("scan_labels(Tensor target, int num_classes, int ignore_index) -> (int, int)");
  library.def("entropy(Tensor sums, float min_prob) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(anl_kernels_cpu, CPU, library) {
  library.impl("row_loss", row_loss);
  library.impl("scan_labels", scan_labels);
  library.impl("entropy", entropy);
  library.impl("row_grad_into", row_grad_into);
  library.impl("shard_partials", shard_partials);
  library.impl("shard_sums", shard_sums);
  library.impl("shard_finish", shard_finish);
  library.impl("softmax", softmax);
  library.impl("softmax_backward", softmax_backward);
  library.impl("column_sums", column_sums);
  library.impl("column_grad", column_grad);
  library.impl("empty_like_rows", empty_like_rows);
  library.impl("scale_", scale_);
}

} // namespace

void set_kernels(const Kernels* table) { kernels = table; }

void elementary(Elementary function, const Tensor& x, const Tensor& y) {
  kernels->elementary(function, type_of(x), x.data_ptr(), y.data_ptr(), x.numel());
}

} // namespace anl::cpu
