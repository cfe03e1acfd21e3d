// The operators as functions of a Python module: each calls the dispatcher, as torch.ops does,
// without the boxes, which take 2 us of a small call.
#pragma once

#include "operators.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/utils/pybind.h>

#include <string>

namespace anl {

template <class Function> auto operator_of(const char* space, const char* name) {
  const std::string full_name = std::string(space) + "::" + name;
  return c10::Dispatcher::singleton().findSchemaOrThrow(full_name.c_str(), "").typed<Function>();
}

// Defines `name` with the parameters of the operator: Python's lists and strings come as such.
template <class Result, class... Tensors>
void bind_request(pybind11::module_& module, const char* space, const char* name) {
  using Numbers = std::vector<double>;
  const auto call =
      operator_of<Result(Tensors..., std::string_view, at::ArrayRef<double>, const OptionalTensor&,
                         int64_t, int64_t, bool, bool)>(space, name);
  module.def(
      name,
      [call](Tensors... tensors, const std::string& functors, const Numbers& numbers,
             const OptionalTensor& moving, int64_t ignore_index, int64_t outputs, bool reduce,
             bool inplace) -> Result {
        return call.call(tensors..., functors, numbers, moving, ignore_index, outputs, reduce,
                         inplace);
      },
      pybind11::call_guard<pybind11::gil_scoped_release>());
}

template <class Result, class... Arguments>
void bind(pybind11::module_& module, const char* space, const char* name) {
  const auto call = operator_of<Result(Arguments...)>(space, name);
  module.def(
      name, [call](Arguments... arguments) -> Result { return call.call(arguments...); },
      pybind11::call_guard<pybind11::gil_scoped_release>());
}

// Those that autograd calls (SCHEMAS in anl_kernels/backends/operators.py).
inline void bind_operators(pybind11::module_& module, const char* space) {
  using T = const Tensor&;
  using Optional = const OptionalTensor&;
  bind_request<std::vector<Tensor>, T, T, T, Optional>(module, space, "row_loss");
  bind_request<std::vector<Tensor>, T, T, T, Optional>(module, space, "row_loss_");
  bind_request<Tensor, T, T, T, T>(module, space, "row_grad");
  bind_request<void, T, T, T, T, T>(module, space, "row_grad_into");
  bind<Tensor, T>(module, space, "softmax");
  bind<Tensor, T, T>(module, space, "softmax_backward");
  bind<void, T, T>(module, space, "scale_");
}

} // namespace anl
