// What autograd has of rows after a plain call in eager mode: a node of its graph. It serves the
// one backward pass that nearly all have: the first, not differentiable itself, for the logits'
// gradient alone. All else it hands to Python (further_gradient in anl_kernels/rows/autograd.py),
// where the Function for other calls is.
//
// A node, and not a torch::autograd::Function: with that one, 1 x 10 logits take 34.7 us forward
// and backward, with this one 27.2 (with a Function in Python 47; cross entropy takes 33).
#pragma once

#include "bindings.h"

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <array>
#include <bit>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace anl {

// A RowRequest of anl_kernels/interface.py, whose numbers do not move. A sum of terms keeps it for
// its next call, and a graph for its backward pass.
struct KeptRequest {
  std::string functors;
  std::vector<double> numbers;
  int64_t ignore_index, outputs;
  bool reduce, inplace;

  KeptRequest(std::string functors, std::vector<double> numbers, int64_t ignore_index,
              int64_t outputs, bool reduce, bool inplace)
      : functors(std::move(functors)), numbers(std::move(numbers)), ignore_index(ignore_index),
        outputs(outputs), reduce(reduce), inplace(inplace) {}

  bool wants(Output output) const { return outputs >> int(output) & 1; }
  bool overwrites() const { return inplace && wants(Output::grad); }
};
using KeptRequestPointer = std::shared_ptr<KeptRequest>;

// Whether nobody but autograd sees what this thread calls: no transform, mode, or tracer, and no
// forward-mode derivative is taken.
inline bool unwatched() {
  const auto keys = c10::impl::tls_local_dispatch_key_set().included_;
  return (keys - c10::default_included_set).empty() &&
         !torch::autograd::ForwardADLevel::try_get_by_idx(0);
}

// Whether operators are Python's for a tensor: of a subclass that has its own.
inline bool is_wrapped(const Tensor& tensor) {
  return tensor.key_set().has(c10::DispatchKey::Python);
}

// An operator of a backend that takes a request after its tensors.
template <class Result, class... Tensors> class RowOperator {
public:
  RowOperator(const char* space, const char* name) : handle_(operator_of<Function>(space, name)) {}
  Result operator()(Tensors... tensors, const KeptRequest& r) const {
    return handle_.call(tensors..., r.functors, r.numbers, std::nullopt, r.ignore_index, r.outputs,
                        r.reduce, r.inplace);
  }

private:
  using Function = Result(Tensors..., std::string_view, at::ArrayRef<double>, const OptionalTensor&,
                          int64_t, int64_t, bool, bool);
  c10::TypedOperatorHandle<Function> handle_;
};

// Those of a backend: Space::name is their namespace, Space::backend its name.
template <class Space> struct RowOperators {
  using T = const Tensor&;
  using Loss = RowOperator<std::vector<Tensor>, T, T, T, const OptionalTensor&>;
  Loss row_loss{Space::name, "row_loss"}, row_loss_{Space::name, "row_loss_"};
  RowOperator<Tensor, T, T, T, T> row_grad{Space::name, "row_grad"};
  c10::TypedOperatorHandle<void(T, T)> scale_ = operator_of<void(T, T)>(Space::name, "scale_");

  static const RowOperators& get() {
    static const RowOperators operators;
    return operators;
  }
};

// Where a result of row_loss is: those that are wanted come in the order of their bits.
inline size_t place_of(Output output, const KeptRequest& request) {
  return std::popcount(uint64_t(request.outputs) & ((uint64_t(1) << int(output)) - 1));
}

// What Python makes of a backward pass that is not the usual one. Its exceptions come through, as
// those of Python's own Functions do.
template <class Space>
Tensor further_gradient(const KeptRequest& r, const Tensor& upstream,
                        const std::vector<Tensor>& inputs, const Tensor& saved) {
  namespace py = pybind11;
  py::gil_scoped_acquire gil;
  try {
    const py::object gradient =
        py::module_::import("anl_kernels.rows.autograd")
            .attr("further_gradient")(Space::backend,
                                      py::make_tuple(r.functors, r.numbers, py::none(),
                                                     r.ignore_index, r.outputs, r.reduce,
                                                     r.inplace),
                                      upstream, inputs, saved);
    return gradient.is_none() ? Tensor() : gradient.cast<Tensor>();
  } catch (py::error_already_set& error) {
    error.restore();
    python_error thrown;
    thrown.persist();
    throw thrown;
  }
}

// Node's pointers are shared_ptr or, since torch 2.12, intrusive_ptr.
using NodePointer = decltype(torch::autograd::Edge::function);
template <class Pointer> Pointer owner_of(torch::autograd::Node* node) {
  if constexpr (requires { Pointer::unsafe_steal_from_new(node); })
    return Pointer::unsafe_steal_from_new(node);
  else
    return Pointer(node);
}

template <class Space> class RowLossBackward : public torch::autograd::Node {
  using Node = torch::autograd::Node;
  using Saved = torch::autograd::SavedVariable;
  using Tensors = std::vector<Tensor>;

public:
  RowLossBackward(torch::autograd::edge_list&& edges, KeptRequestPointer request)
      : Node(std::move(edges)), request_(std::move(request)) {}

  // After the operator, which may have overwritten the logits. Of the gradient and what was saved
  // of rows there is one.
  void save(const Tensor& logits, const Tensor& target, const Tensor& row_scale,
            const OptionalTensor& term_weights, Tensor grad, Tensor saved) {
    const Tensor* tensors[] = {&logits, &target, &row_scale};
    for (size_t i = 0; i < std::size(tensors); ++i)
      inputs_[i] = Saved(*tensors[i], false);
    if (term_weights)
      inputs_.back() = Saved(*term_weights, false);
    grad_ = std::move(grad);
    saved_ = std::move(saved);
  }

  std::string name() const override { return "RowLossFunctionBackward"; }

  Tensors apply(Tensors&& upstream) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!upstream[0].defined())
      return {Tensor()};
    Tensors results;
    results.push_back(gradient(upstream[0]));
    return results;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Saved& input : inputs_)
      input.reset_data();
    grad_.reset();
    saved_.reset();
  }

  // Compiled autograd traces the pass as it is in Python.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    const KeptRequest& r = *request_;
    args.collect(r.functors);
    args.collect(r.numbers);
    for (const int64_t number : {r.ignore_index, r.outputs, int64_t(r.reduce), int64_t(r.inplace)})
      args.collect(number);
    for (const Saved& input : inputs_)
      args.collect(input, false);
    args.collect(saved_);
  }
  Tensors apply_with_saved(const Tensors& upstream,
                           torch::dynamo::autograd::SwapSavedVariables& saved) override {
    for (Saved& input : inputs_)
      saved.before(input);
    saved.before(saved_);
    Tensors results = apply(Tensors(upstream));
    saved.after(saved_);
    for (Saved& input : inputs_)
      saved.after(input);
    return results;
  }

private:
  Tensor gradient(const Tensor& upstream) {
    const bool usual =
        !torch::autograd::GradMode::is_enabled() && unwatched() && !is_wrapped(upstream);
    const auto& operators = RowOperators<Space>::get();
    if (usual && grad_.defined()) {
      // Held here any longer, the gradient would be cloned by whoever accumulates it.
      Tensor grad = std::move(grad_);
      operators.scale_.call(grad, upstream);
      return grad;
    }
    if (request_->overwrites())
      return further_gradient<Space>(*request_, upstream, {}, Tensor());
    Tensors inputs;
    for (const Saved& input : inputs_)
      inputs.push_back(input.unpack());
    if (usual && saved_.defined() && !request_->inplace)
      return operators.row_grad(inputs[0], inputs[1], upstream.mul(inputs[2]), saved_, *request_);
    return further_gradient<Space>(*request_, upstream, inputs, saved_);
  }

  const KeptRequestPointer request_;
  std::array<Saved, 4> inputs_; // logits, target, row_scale, term_weights
  Tensor grad_, saved_;
};

// Of a loss whose value stays what the operator gave it.
inline void leave_as_it_is(const std::vector<Tensor>&) {}

// row_loss as autograd sees it: what the request names but the gradient, the first of it, the loss,
// with a history, and of the value that `finish` may give it.
template <class Space, class Finish>
std::vector<Tensor> recorded_row_loss(const Tensor& logits, const Tensor& target,
                                      const Tensor& row_scale, const OptionalTensor& term_weights,
                                      const KeptRequestPointer& request, Finish finish) {
  using namespace torch::autograd;
  auto* const node = new RowLossBackward<Space>(collect_next_edges(logits), request);
  const auto owner = owner_of<NodePointer>(node);
  const auto& operators = RowOperators<Space>::get();
  const auto& row_loss = request->overwrites() ? operators.row_loss_ : operators.row_loss;
  std::vector<Tensor> results;
  Tensor grad, saved;
  {
    const AutoGradMode no_grad(false); // of what an operator may call
    results = row_loss(logits, target, row_scale, term_weights, *request);
    if (request->overwrites())
      grad = logits.detach();
  }
  if (request->wants(Output::saved)) {
    saved = results[place_of(Output::saved, *request)];
  } else if (!request->inplace) {
    grad = std::move(results[1]);
    results.erase(results.begin() + 1);
  }
  node->save(logits, target, row_scale, term_weights, std::move(grad), std::move(saved));
  finish(results);
  set_history(results[0], owner);
  return results;
}

template <class Space> void bind_autograd(pybind11::module_& module) {
  namespace py = pybind11;
  py::class_<KeptRequest, KeptRequestPointer>(module, "Request", py::module_local())
      .def(py::init<std::string, std::vector<double>, int64_t, int64_t, bool, bool>());
  module.def(
      "recorded_row_loss",
      [](const Tensor& logits, const Tensor& target, const Tensor& row_scale,
         const OptionalTensor& term_weights, const KeptRequestPointer& request) {
        return recorded_row_loss<Space>(logits, target, row_scale, term_weights, request,
                                        leave_as_it_is);
      },
      py::call_guard<py::gil_scoped_release>());
}

} // namespace anl
