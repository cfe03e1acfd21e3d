// The module anl_kernels._cpu: what is not an operator. Facts of the build, the choice of kernels,
// the cache of buffers.
#include "../autograd.h"
#include "../bindings.h"
#include "../facts.h"
#include "buffers.h"
#include "log_probs.h"
#include "ops.h"
#include "plain.h"

#include <torch/csrc/utils/pybind.h>

#include <string>
#include <vector>

namespace {

struct Space {
  static constexpr const char *name = "anl_kernels_cpu", *backend = "cpu";
};

} // namespace

PYBIND11_MODULE(_cpu, module) {
  namespace py = pybind11;
  using namespace anl::cpu;
  anl::bind_operators(module, Space::name);
  anl::bind_autograd<Space>(module);
  py::class_<PlainCalls>(module, "PlainCalls")
      .def(py::init<py::object>())
      .def("loss", &PlainCalls::loss<Space>);
  module.def(
      "label_scale",
      [](const at::Tensor& target, int64_t num_classes, int64_t ignore_index, at::ScalarType dtype,
         bool mean, const std::string& argument) {
        using Function = at::Tensor(const at::Tensor&, c10::SymInt, int64_t, at::ScalarType, bool,
                                    std::string_view);
        static const auto call = anl::operator_of<Function>("anl_kernels", "label_scale");
        return call.call(target, num_classes, ignore_index, dtype, mean, argument);
      },
      "See anl_kernels/rows/labels.py, which defines the operator.",
      py::call_guard<py::gil_scoped_release>());
  const py::call_guard<py::gil_scoped_release> without_gil;
  module.def("most_probable", most_probable, without_gil);
  module.def("log_probs", log_probs, without_gil);
  module.def("totals", totals, without_gil);
  module.def("add_ones_", add_ones_, without_gil);
  module.def("functor_names", anl::functor_names, "The functors the kernels have, in their order.");
  module.def("dense_functors", anl::dense_functors, "Those whose sum needs the row's lse.");
  module.def("row_outputs", anl::row_outputs, "The outputs of rows, in the order of their bits.");
  module.def(
      "set_kernels",
      [](const py::capsule& table) { set_kernels(table.get_pointer<const Kernels>()); },
      "Run the operators on the kernels of a library of one instruction set.");
  module.def("compiler", anl::compiler, "What compiled this module.");
  module.attr("openmp") =
#ifdef _OPENMP
      true;
#else
      false;
#endif
  module.def("cache_facts", [] {
    const CacheFacts facts = cache_facts();
    return py::make_tuple(facts.held_bytes, facts.limit_bytes);
  });
  module.def("set_cache_limit", set_cache_limit);
  module.def("empty_cache", empty_cache);
  module.def("elementary", [](int function, const at::Tensor& x, const at::Tensor& y) {
    elementary(Elementary(function), x, y);
  });
}
