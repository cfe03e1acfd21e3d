// The module anl_kernels._cpu: what is not an operator. Facts of the build, the choice of kernels,
// the cache of buffers.
#include "../facts.h"
#include "buffers.h"
#include "ops.h"

#include <torch/csrc/utils/pybind.h>

#include <string>
#include <vector>

PYBIND11_MODULE(_cpu, module) {
  namespace py = pybind11;
  using namespace anl::cpu;
  module.def("functor_names", anl::functor_names, "The functors the kernels have, in their order.");
  module.def("dense_functors", anl::dense_functors, "Those whose sum needs the row's lse.");
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
