// The operators that a library of kernels registers, the CPU's and the CUDA kernels' alike;
// anl_kernels/rows/ and anl_kernels/backends/compiled.py call them.
#pragma once

#include "tensors.h"

#include <torch/library.h>

#include <string>

namespace anl {

// A RowRequest of anl_kernels/interface.py, as it follows an operator's tensors: in its schema, and
// in the function that implements it.
#define ANL_REQUEST_SCHEMA                                                                         \
  "str functors, float[] numbers, Tensor? moving, int ignore_index, int outputs, bool reduce, "    \
  "bool inplace"
#define ANL_REQUEST_PARAMETERS                                                                     \
  std::string_view functors, at::ArrayRef<double> numbers, const OptionalTensor &moving,           \
      int64_t ignore_index, int64_t outputs, bool reduce, bool inplace
#define ANL_REQUEST Request(functors, numbers, moving, ignore_index, outputs, reduce, inplace)

inline void define_operators(torch::Library& library) {
  const auto define = [&](const std::string& schema) {
    library.def(schema.c_str(), {at::Tag::pt2_compliant_tag});
    // Functions in Python are differentiable. Without this the dispatcher would call what warns
    // of a missing derivative, in boxes.
    library.impl(
        schema.substr(0, schema.find('(')).c_str(),
        torch::dispatch(c10::DispatchKey::Autograd, torch::CppFunction::makeFallthrough()));
  };
  define("row_loss(Tensor logits, Tensor target, Tensor row_scale, Tensor? "
         "term_weights, " ANL_REQUEST_SCHEMA ") -> Tensor[]");
  define("row_loss_(Tensor(a!) logits, Tensor target, Tensor row_scale, Tensor? "
         "term_weights, " ANL_REQUEST_SCHEMA ") -> Tensor[]");
  define(
      "row_grad(Tensor logits, Tensor target, Tensor row_scale, Tensor saved, " ANL_REQUEST_SCHEMA
      ") -> Tensor");
  define("row_grad_into(Tensor(a!) grad, Tensor logits, Tensor target, Tensor row_scale, "
         "Tensor saved, " ANL_REQUEST_SCHEMA ") -> ()");
  define("shard_partials(Tensor logits, Tensor target, " ANL_REQUEST_SCHEMA
         ") -> (Tensor, Tensor)");
  define("shard_sums(Tensor logits, Tensor target, Tensor partials, " ANL_REQUEST_SCHEMA
         ") -> Tensor");
  define("shard_finish(Tensor partials, Tensor sums, Tensor target, Tensor? "
         "term_weights, " ANL_REQUEST_SCHEMA ") -> Tensor[]");
  define("softmax(Tensor logits) -> Tensor");
  define("softmax_backward(Tensor upstream, Tensor probs) -> Tensor");
  define("column_sums(Tensor logits, Tensor? counted, float low, float high) -> "
         "(Tensor, Tensor)");
  define("column_grad(Tensor(a!) grad, Tensor logits, Tensor? counted, Tensor lse_parts, "
         "Tensor slopes, Tensor scale, float low, float high, bool accumulate) -> ()");
  define("empty_like_rows(Tensor logits) -> Tensor");
  define("scale_(Tensor(a!) tensor, Tensor factor) -> ()");
}

// Those of a library that come of one function, which it has: row_loss_of(logits, target,
// row_scale, term_weights, request), row_grad_into and empty_like_rows.
template <auto& row_loss_of>
std::vector<Tensor> row_loss(const Tensor& logits, const Tensor& target, const Tensor& row_scale,
                             const OptionalTensor& term_weights, ANL_REQUEST_PARAMETERS) {
  const Request request = ANL_REQUEST;
  TORCH_CHECK(!request.overwrites(), "row_loss_ is for inplace");
  return row_loss_of(logits, target, row_scale, term_weights, request);
}

template <auto& row_loss_of>
std::vector<Tensor> row_loss_(const Tensor& logits, const Tensor& target, const Tensor& row_scale,
                              const OptionalTensor& term_weights, ANL_REQUEST_PARAMETERS) {
  bump_version(logits);
  return row_loss_of(logits, target, row_scale, term_weights, ANL_REQUEST);
}

template <auto& empty_like_rows, auto& row_grad_into>
Tensor row_grad(const Tensor& logits, const Tensor& target, const Tensor& row_scale,
                const Tensor& saved, ANL_REQUEST_PARAMETERS) {
  const Tensor grad = empty_like_rows(logits);
  row_grad_into(grad, logits, target, row_scale, saved, functors, numbers, moving, ignore_index,
                outputs, reduce, inplace);
  return grad;
}

} // namespace anl
