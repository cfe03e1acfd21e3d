// The module anl_kernels._cuda: what is not an operator. Facts of the build, the limits between the
// kinds of launches.
#include "../autograd.h"
#include "../bindings.h"
#include "../facts.h"
#include "interface.h"
#include "ops.h"

#include <torch/csrc/utils/pybind.h>

#ifndef ANL_EMULATED_DEVICE
#include <cuda_runtime_api.h>
#endif

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace {

namespace py = pybind11;
using anl::cuda::Limits;

struct Space {
  static constexpr const char *name = "anl_kernels_cuda", *backend = "cuda";
};

#ifdef ANL_EMULATED_DEVICE

constexpr const char* device_type = "cpu";
std::string cuda_version() { return "none"; }
std::string architectures() { return "none"; }

#else

constexpr const char* device_type = "cuda";
std::string cuda_version() {
  return std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}
// Such as 8.0;9.0+PTX: TORCH_CUDA_ARCH_LIST, which setup.py hands over.
#define ANL_TEXT(...) #__VA_ARGS__
#define ANL_TEXT_OF(...) ANL_TEXT(__VA_ARGS__)
std::string architectures() { return ANL_TEXT_OF(ANL_CUDA_ARCHITECTURES); }

#endif

using Limit = std::pair<const char*, int64_t Limits::*>;
constexpr Limit all_limits[] = {
    {"tile_classes", &Limits::tile_classes},
    {"warp_bytes", &Limits::warp_bytes},
    {"chunk_bytes", &Limits::chunk_bytes},
    {"max_cluster", &Limits::max_cluster},
    {"shared_bytes", &Limits::shared_bytes},
    {"split_below_rows", &Limits::split_below_rows},
    {"split_from_bytes", &Limits::split_from_bytes},
    {"part_bytes", &Limits::part_bytes},
};
static_assert(sizeof(Limits) == std::size(all_limits) * sizeof(int64_t), "a limit has no name");

std::map<std::string, int64_t> limits() {
  std::map<std::string, int64_t> numbers;
  for (const auto& [name, member] : all_limits)
    numbers[name] = anl::cuda::limits().*member;
  return numbers;
}

void set_limits(const std::map<std::string, int64_t>& numbers) {
  Limits changed = anl::cuda::limits();
  for (const auto& [wanted, number] : numbers) {
    int64_t Limits::* found = nullptr;
    for (const auto& [name, member] : all_limits)
      found = wanted == name ? member : found;
    if (!found)
      throw py::value_error("no limit is named " + wanted + "; limits() has their names");
    changed.*found = number;
  }
  anl::cuda::limits() = changed;
}

template <anl::cuda::LaunchOf* of> py::dict launch_of(const at::Tensor& logits) {
  const anl::cuda::Launched launch = anl::cuda::launch_of(logits, of);
  return py::dict(py::arg("kind") = launch.kind, py::arg("blocks") = launch.blocks,
                  py::arg("threads") = launch.threads, py::arg("cluster") = launch.cluster,
                  py::arg("shared_bytes") = launch.shared_bytes);
}

} // namespace

PYBIND11_MODULE(_cuda, module) {
  module.attr("device_type") = device_type;
  module.attr("max_terms") = anl::cuda::max_terms;
  anl::bind_operators(module, Space::name);
  anl::bind_autograd<Space>(module);
  module.def("functor_names", anl::functor_names, "The functors the kernels have, in their order.");
  module.def("dense_functors", anl::dense_functors, "Those whose sum needs the row's lse.");
  module.def("row_outputs", anl::row_outputs, "The outputs of rows, in the order of their bits.");
  module.def("compiler", anl::compiler, "What compiled this module for the host.");
  module.def("cuda_version", cuda_version, "The CUDA that the kernels were compiled with.");
  module.def("architectures", architectures, "The compute capabilities they were compiled for.");
  module.def("limits", limits, "Which rows take which kind of launch.");
  module.def(
      "set_limits",
      [](const py::kwargs& numbers) { set_limits(numbers.cast<std::map<std::string, int64_t>>()); },
      "Change some of limits(), for tests.");
  module.def("row_loss_launch", launch_of<anl::cuda::row_loss_launch>,
             "How the loss of these logits is launched.");
  module.def("shard_launch", launch_of<anl::cuda::shard_launch>,
             "How the partials of these logits, a shard's, are launched.");
}
