// The short way of a plain call (anl_kernels/rows/plain.py): the questions about its tensors, the
// look at its labels, and the operator of rows, in one step out of Python.
#pragma once

#include "../autograd.h"
#include "ops.h"
#include "running.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <torch/csrc/autograd/python_variable.h>

#include <array>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace anl::cpu {

inline bool is_plain(const Tensor& tensor) {
  return tensor.is_cpu() && tensor.layout() == at::kStrided && !tensor.is_nested() &&
         !tensor.is_neg() && !tensor._is_zerotensor();
}

// Whether the checks of anl_kernels/checks.py would have nothing against the tensors.
inline bool is_loss_of_labels(const Tensor& logits, const Tensor& target) {
  if (!is_plain(logits) || !is_plain(target) || logits.dim() == 0)
    return false;
  const at::ScalarType type = logits.scalar_type(), label = target.scalar_type();
  if (type != at::kFloat && type != at::kBFloat16 && type != at::kHalf && type != at::kDouble)
    return false;
  if (label != at::kLong && label != at::kInt)
    return false;
  const at::IntArrayRef sizes = logits.sizes();
  const size_t dim = logits.dim() == 1 ? 0 : 1;
  return sizes[dim] > 0 && target.dim() + 1 == logits.dim() &&
         target.sizes().slice(0, dim) == sizes.slice(0, dim) &&
         target.sizes().slice(dim) == sizes.slice(dim + 1);
}

// The requests of the plain calls of a sum of terms, of whatever keywords.
class PlainCalls {
  using Handle = pybind11::handle;

public:
  // make(terms, K, dtype, recorded, *keywords) gives the request of a call, asked for once, and, of
  // a call with a running mean, weights, summands of uniform logits, and which are normalised.
  explicit PlainCalls(pybind11::object make) : make_(std::move(make)) {}

  // The loss; nothing where it is not for here. `state` is a running mean that moves, or None.
  template <class Space>
  std::optional<Tensor> loss(Handle terms, Handle given_logits, Handle given_target,
                             Handle ignore_index, Handle reduction, Handle class_scale,
                             Handle state, double momentum) {
    if (!THPVariable_CheckExact(given_logits.ptr()) ||
        !THPVariable_CheckExact(given_target.ptr()) || at::impl::torch_function_mode_enabled() ||
        !unwatched())
      return std::nullopt;
    if (!PyLong_CheckExact(ignore_index.ptr()) || !PyUnicode_CheckExact(reduction.ptr()) ||
        !(PyFloat_CheckExact(class_scale.ptr()) || PyUnicode_CheckExact(class_scale.ptr())))
      return std::nullopt;
    const Tensor &logits = THPVariable_Unpack(given_logits.ptr()),
                 &target = THPVariable_Unpack(given_target.ptr());
    if (!is_loss_of_labels(logits, target))
      return std::nullopt;
    const int64_t K = logits.size(logits.dim() == 1 ? 0 : 1);
    const bool recorded = at::GradMode::is_enabled() && logits.requires_grad();
    const Call call =
        call_of(terms, {K,
                        logits.scalar_type(),
                        recorded,
                        {borrowed(ignore_index), borrowed(reduction), borrowed(class_scale)}});
    if (!call.request)
      return std::nullopt;
    if (call.running && (!THPVariable_CheckExact(state.ptr()) ||
                         !Running::fits(THPVariable_Unpack(state.ptr()), *call.running)))
      return std::nullopt;
    pybind11::gil_scoped_release without_gil;
    const Tensor scale = label_scale(target, K, call.request->ignore_index, accumulator_of(logits),
                                     call.mean, "target");
    if (call.running) {
      const Running running(*call.running, THPVariable_Unpack(state.ptr()), momentum);
      return running_loss<Space>(logits, target, scale, call, running, K);
    }
    if (recorded)
      return recorded_row_loss<Space>(logits, target, scale, std::nullopt, call.request,
                                      leave_as_it_is)[0];
    return RowOperators<Space>::get().row_loss(logits, target, scale, std::nullopt,
                                               *call.request)[0];
  }

private:
  static pybind11::object borrowed(Handle handle) {
    return pybind11::reinterpret_borrow<pybind11::object>(handle);
  }
  struct Key {
    int64_t K;
    at::ScalarType dtype;
    bool recorded;
    std::array<pybind11::object, 3> keywords;

    bool operator==(const Key& other) const {
      if (K != other.K || dtype != other.dtype || recorded != other.recorded)
        return false;
      for (size_t i = 0; i < keywords.size(); ++i)
        if (!keywords[i].is(other.keywords[i]) && !keywords[i].equal(other.keywords[i]))
          return false;
      return true;
    }
  };
  struct Call {
    KeptRequestPointer request; // null: not for here
    bool mean;
    std::shared_ptr<const RunningTerms> running; // null: of no running mean
  };
  // The gradient is that of terms with other weights; the value is the plain one.
  template <class Space>
  static Tensor running_loss(const Tensor& logits, const Tensor& target, const Tensor& scale,
                             const Call& call, const Running& running, int64_t K) {
    const KeptRequest& request = *call.request;
    const Tensor weights = running.factors(K, scale.options());
    const auto finish = [&](const std::vector<Tensor>& results) {
      const size_t grad = request.wants(Output::grad); // has left its place among the results
      plain_value(results[0], results[place_of(Output::term_losses, request) - grad], scale,
                  call.running->weights, request.reduce);
      running.move(results[place_of(Output::denominators, request) - grad], target,
                   request.ignore_index, K);
    };
    return recorded_row_loss<Space>(logits, target, scale, weights, call.request, finish)[0];
  }
  static constexpr size_t most_calls = 64; // for whoever meets ever other numbers of classes

  Call call_of(Handle terms, Key key) {
    for (const auto& [known, call] : calls_)
      if (known == key)
        return call;
    const auto& [ignore_index, reduction, class_scale] = key.keywords;
    const pybind11::object made =
        make_(terms, key.K, key.dtype, key.recorded, ignore_index, reduction, class_scale);
    Call call = {nullptr, reduction.equal(pybind11::str("mean")), nullptr};
    if (pybind11::isinstance<pybind11::tuple>(made)) {
      using Numbers = std::vector<double>;
      const auto [request, weights, uniform, normalised] =
          made.cast<std::tuple<KeptRequestPointer, Numbers, Numbers, std::vector<bool>>>();
      call.request = request;
      call.running =
          std::make_shared<const RunningTerms>(RunningTerms{weights, uniform, normalised});
    } else if (!made.is_none()) {
      call.request = made.cast<KeptRequestPointer>();
    }
    if (calls_.size() == most_calls)
      calls_.clear();
    calls_.emplace_back(std::move(key), call);
    return call;
  }

  const pybind11::object make_;
  std::vector<std::pair<Key, Call>> calls_;
};

} // namespace anl::cpu
