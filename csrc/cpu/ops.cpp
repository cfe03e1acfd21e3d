// The operators torch.ops.anl_kernels_cpu.*: tensors in, work shared over PyTorch's threads,
// tensors out. anl_kernels/rows/ calls them.
#include "ops.h"

#include "../operators.h"
#include "../tensors.h"
#include "buffers.h"
#include "interface.h"

#include <ATen/Parallel.h>

#include <c10/util/StringUtil.h>

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

// See Backend.row_loss in anl_kernels/interface.py.
std::vector<Tensor> row_loss_of(const Tensor& logits, const Tensor& target, const Tensor& row_scale,
                                const OptionalTensor& term_weights, const Request& request) {
  RowLossCall call(logits, target, row_scale, term_weights, request, empty_strided);
  if (!call.empty()) {
    call.args.past_cache = past_cache(call.args, call.logits);
    run(kernels->row_loss(call.args, at::get_num_threads()));
  }
  if (request.wants(Output::loss)) {
    const bool wide = call.row_losses.scalar_type() == at::kDouble;
    call.loss = (wide ? scaled_loss<double> : scaled_loss<float>)(call.row_losses, call.scale,
                                                                  target.sizes(), request.reduce);
  }
  return call.results();
}

template <class Y>
int64_t count_valid(const Tensor& target, int64_t K, int64_t ignore_index,
                    std::string_view argument) {
  const Y* y = target.const_data_ptr<Y>();
  const int64_t N = target.numel();
  int64_t valid = 0, outside = -1;
  for (int64_t n = 0; n < N; ++n) {
    const bool counts = y[n] != ignore_index;
    valid += counts;
    if (counts && (y[n] < 0 || y[n] >= K) && outside < 0)
      outside = n;
  }
  if (outside >= 0) {
    std::vector<int64_t> place(target.dim());
    for (int64_t d = target.dim() - 1, left = outside; d >= 0; left /= target.size(d), --d)
      place[d] = left % target.size(d);
    TORCH_CHECK_INDEX(false, argument, "[", c10::Join(", ", place), "] is ", int64_t(y[outside]),
                      ", outside [0, ", K, ") and not ignore_index (", ignore_index,
                      "); correct the label or pass ignore_index");
  }
  return valid;
}

// See Backend.row_grad_into.
void row_grad_into(const Tensor& grad, const Tensor& logits, const Tensor& target,
                   const Tensor& row_scale, const Tensor& saved, ANL_REQUEST_PARAMETERS) {
  bump_version(grad);
  if (logits.numel() == 0)
    return;
  const Request request = ANL_REQUEST;
  RowGradCall call(grad, logits, target, row_scale, saved, request);
  call.args.past_cache = past_cache(call.args, call.logits);
  run(kernels->row_grad(call.args));
}

// See Kernels.shard_partials.
std::tuple<Tensor, Tensor> shard_partials(const Tensor& logits, const Tensor& target,
                                          ANL_REQUEST_PARAMETERS) {
  const Request request = ANL_REQUEST;
  const ShardPartialsCall call(logits, target, request);
  if (!call.empty())
    run(kernels->shard_partials(call.args));
  return {call.partials, call.best};
}

// See Kernels.shard_sums.
Tensor shard_sums(const Tensor& logits, const Tensor& target, const Tensor& partials,
                  ANL_REQUEST_PARAMETERS) {
  const Request request = ANL_REQUEST;
  const ShardSumsCall call(logits, target, partials, request);
  if (!call.empty())
    run(kernels->shard_sums(call.args));
  return call.sums;
}

// See Kernels.shard_finish.
std::vector<Tensor> shard_finish(const Tensor& partials, const Tensor& sums, const Tensor& target,
                                 const OptionalTensor& term_weights, ANL_REQUEST_PARAMETERS) {
  const Request request = ANL_REQUEST;
  const ShardFinishCall call(partials, sums, target, term_weights, request);
  if (!call.empty())
    run(kernels->shard_finish(call.args));
  return call.results();
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
  const bool is_float = factor.scalar_type() == at::kFloat;
  if ((is_float ? *factor.const_data_ptr<float>() : factor.item().toDouble()) != 1)
    tensor.mul_(factor);
}

TORCH_LIBRARY(anl_kernels_cpu, library) {
  define_operators(library);
  library.def("entropy(Tensor sums, float min_prob) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(anl_kernels_cpu, CPU, library) {
  library.impl("row_loss", anl::row_loss<row_loss_of>);
  library.impl("row_loss_", anl::row_loss_<row_loss_of>);
  library.impl("row_grad", anl::row_grad<empty_like_rows, row_grad_into>);
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

// Python defines it, and implements it for other devices.
TORCH_LIBRARY_IMPL(anl_kernels, CPU, library) { library.impl("label_scale", label_scale); }
// Without this the dispatcher would go through its boxes, to warn of a missing derivative: 1.1 us.
TORCH_LIBRARY_IMPL(anl_kernels, Autograd, library) {
  library.impl("label_scale", torch::CppFunction::makeFallthrough());
}

} // namespace

Tensor label_scale(const Tensor& target, int64_t K, int64_t ignore_index, at::ScalarType dtype,
                   bool mean, std::string_view argument) {
  const Tensor labels = target.contiguous();
  const int64_t valid = labels.scalar_type() == at::kInt
                            ? count_valid<int32_t>(labels, K, ignore_index, argument)
                            : count_valid<int64_t>(labels, K, ignore_index, argument);
  Tensor scale = at::empty({}, labels.options().dtype(dtype));
  const double number = mean ? 1.0 / double(std::max<int64_t>(1, valid)) : 1.0;
  if (dtype == at::kDouble)
    *scale.mutable_data_ptr<double>() = number;
  else
    *scale.mutable_data_ptr<float>() = float(number);
  return scale;
}

void set_kernels(const Kernels* table) { kernels = table; }

void elementary(Elementary function, const Tensor& x, const Tensor& y) {
  kernels->elementary(function, type_of(x), x.data_ptr(), y.data_ptr(), x.numel());
}

} // namespace anl::cpu
