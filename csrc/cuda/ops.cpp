// The operators torch.ops.anl_kernels_cuda.*: tensors in, kernels started, tensors out; nothing
// here waits for the device. anl_kernels/backends/compiled.py calls them.
#include "ops.h"

#include "../operators.h"
#include "../tensors.h"
#include "interface.h"
#include "place.h"

#include <ATen/ops/empty_strided.h>

#include <string>
#include <utility>

namespace anl::cuda {
namespace {

// PyTorch's own allocator: it keeps memory for each stream, and in CUDA graphs.
Tensor allocate(at::IntArrayRef sizes, at::IntArrayRef strides, const at::TensorOptions& options) {
  return at::empty_strided(sizes, strides, options);
}

void check_device(const char* name, const Tensor& tensor, const Tensor& logits) {
  TORCH_CHECK(tensor.device() == logits.device(), name, " is on ", tensor.device(),
              " and must be on ", logits.device(), ", as the logits are; move it there with .to()");
}

void check_num_terms(const Request& request) {
  TORCH_CHECK(request.terms.size() <= size_t(max_terms),
              "terms: the CUDA kernels take a sum of up to ", max_terms, ", got ",
              request.terms.size(), "; choose ak.use_backend('triton')");
}

// Memory to work in may go back to the allocator at once: whoever gets it next in this stream comes
// after the kernels.
void run(const RowLossArgs& args, const Tensor& logits, const Place& place) {
  Tensor memory;
  const auto workspace = [&](int64_t bytes) {
    memory = at::empty({bytes}, logits.options().dtype(at::kByte));
    return memory.data_ptr();
  };
  cuda::row_loss(args, workspace, place);
}

// See Backend.row_loss in anl_kernels/interface.py.
std::vector<Tensor> row_loss_of(const Tensor& logits, const Tensor& target, const Tensor& row_scale,
                                const OptionalTensor& term_weights, const Request& request) {
  check_device("target", target, logits);
  check_device("row_scale", row_scale, logits);
  if (term_weights)
    check_device("term_weights", *term_weights, logits);
  check_num_terms(request);
  const OnDeviceOf device(logits);
  RowLossCall call(logits, target, row_scale, term_weights, request, allocate);
  if (!call.empty())
    run(call.args, call.logits, device.place());
  if (request.wants(Output::loss)) {
    const Tensor scaled = call.row_losses.view(target.sizes()).mul(call.scale);
    call.loss = request.reduce ? scaled.sum() : scaled;
  }
  return call.results();
}

// See Backend.row_grad_into.
void row_grad_into(const Tensor& grad, const Tensor& logits, const Tensor& target,
                   const Tensor& row_scale, const Tensor& saved, ANL_REQUEST_PARAMETERS) {
  check_device("grad", grad, logits);
  check_device("target", target, logits);
  check_device("row_scale", row_scale, logits);
  check_device("saved", saved, logits);
  bump_version(grad);
  if (logits.numel() == 0)
    return;
  const Request request = ANL_REQUEST;
  check_num_terms(request);
  const OnDeviceOf device(logits);
  const RowGradCall call(grad, logits, target, row_scale, saved, request);
  cuda::row_grad(call.args, device.place());
}

// See Kernels.shard_partials.
std::tuple<Tensor, Tensor> shard_partials(const Tensor& logits, const Tensor& target,
                                          ANL_REQUEST_PARAMETERS) {
  check_device("target", target, logits);
  const OnDeviceOf device(logits);
  const Request request = ANL_REQUEST;
  const ShardPartialsCall call(logits, target, request);
  if (!call.empty())
    cuda::shard_partials(call.args, device.place());
  return {call.partials, call.best};
}

// See Kernels.shard_sums.
Tensor shard_sums(const Tensor& logits, const Tensor& target, const Tensor& partials,
                  ANL_REQUEST_PARAMETERS) {
  check_device("target", target, logits);
  check_device("partials", partials, logits);
  const OnDeviceOf device(logits);
  const Request request = ANL_REQUEST;
  check_num_terms(request);
  const ShardSumsCall call(logits, target, partials, request);
  if (!call.empty())
    cuda::shard_sums(call.args, device.place());
  return call.sums;
}

// See Kernels.shard_finish.
std::vector<Tensor> shard_finish(const Tensor& partials, const Tensor& sums, const Tensor& target,
                                 const OptionalTensor& term_weights, ANL_REQUEST_PARAMETERS) {
  check_device("sums", sums, partials);
  check_device("target", target, partials);
  if (term_weights)
    check_device("term_weights", *term_weights, partials);
  const OnDeviceOf device(partials);
  const Request request = ANL_REQUEST;
  check_num_terms(request);
  const ShardFinishCall call(partials, sums, target, term_weights, request);
  if (!call.empty())
    cuda::shard_finish(call.args, device.place());
  return call.results();
}

Tensor empty_like_rows(const Tensor& logits) { return anl::empty_like_rows(logits, allocate); }

Tensor softmax(const Tensor& given) {
  const OnDeviceOf device(given);
  const Tensor logits = readable(given), probs = empty_like_rows(given);
  if (logits.numel() == 0)
    return probs;
  run(softmax_args(logits, probs), logits, device.place());
  return probs;
}

Tensor softmax_backward(const Tensor& given_upstream, const Tensor& given_probs) {
  check_device("upstream", given_upstream, given_probs);
  const OnDeviceOf device(given_probs);
  const Tensor upstream = readable(given_upstream), probs = readable(given_probs);
  const Tensor grad = empty_like_rows(given_probs);
  if (probs.numel() != 0)
    cuda::softmax_backward(softmax_backward_args(upstream, probs, grad), device.place());
  return grad;
}

// See ColumnKernels.column_sums.
std::tuple<Tensor, Tensor> column_sums(const Tensor& logits, const OptionalTensor& counted,
                                       double low, double high) {
  if (counted)
    check_device("counted", *counted, logits);
  const OnDeviceOf device(logits);
  ColumnSumsCall call(logits, counted, low, high);
  if (call.empty())
    return {call.sums, call.lse_parts};
  const int64_t groups = cuda::column_groups(call.args, device.place());
  const Tensor partial = call.numbers({groups, call.args.shape.K});
  call.args.sums = partial.data_ptr();
  cuda::column_sums(call.args, device.place());
  return {groups == 1 ? partial.squeeze(0) : partial.sum(0), call.lse_parts};
}

// See ColumnKernels.column_grad.
void column_grad(const Tensor& grad, const Tensor& logits, const OptionalTensor& counted,
                 const Tensor& lse_parts, const Tensor& slopes, const Tensor& scale, double low,
                 double high, bool accumulate) {
  check_device("grad", grad, logits);
  check_device("slopes", slopes, logits);
  check_device("scale", scale, logits);
  if (counted)
    check_device("counted", *counted, logits);
  if (logits.numel() == 0)
    return;
  const OnDeviceOf device(logits);
  const ColumnGradCall call(grad, logits, counted, lse_parts, slopes, scale, low, high, accumulate);
  cuda::column_grad(call.args, device.place());
}

// See Backend.scale_. The kernel walks memory, which a tensor without gaps is.
void scale_(const Tensor& tensor, const Tensor& factor) {
  bump_version(tensor);
  check_device("factor", factor, tensor);
  if (tensor.numel() == 0)
    return;
  if (!tensor.is_non_overlapping_and_dense()) {
    tensor.mul_(factor);
    return;
  }
  const OnDeviceOf device(tensor);
  const Tensor number = factor.to(accumulator_of(tensor));
  cuda::scale(type_of(tensor), tensor.data_ptr(), tensor.numel(), number.data_ptr(),
              device.place());
}

TORCH_LIBRARY(anl_kernels_cuda, library) { define_operators(library); }

TORCH_LIBRARY_IMPL(anl_kernels_cuda, ANL_DISPATCH_KEY, library) {
  library.impl("row_loss", anl::row_loss<row_loss_of>);
  library.impl("row_loss_", anl::row_loss_<row_loss_of>);
  library.impl("row_grad", anl::row_grad<empty_like_rows, row_grad_into>);
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

Launched launch_of(const Tensor& given, LaunchOf* of) {
  const OnDeviceOf device(given);
  const Tensor logits = readable(given);
  return of(softmax_args(logits, Tensor()), device.place());
}

} // namespace anl::cuda
