// A second Python module in every library that build.py makes: what tests set of the emulation.
#include "machine.h"

#include <pybind11/pybind11.h>

#include <map>
#include <stdexcept>
#include <string>

namespace py = pybind11;
namespace emulation = anl::cuda::emulation;

static void set_schedule(const std::string& order, uint64_t seed) {
  using emulation::Order;
  const std::map<std::string, Order> orders = {
      {"forward", Order::Forward}, {"backward", Order::Backward}, {"shuffled", Order::Shuffled}};
  const auto found = orders.find(order);
  if (found == orders.end())
    throw std::invalid_argument("order: forward, backward or shuffled, not " + order);
  emulation::set_schedule(found->second, seed);
}

PYBIND11_MODULE(emulation_control, module) {
  module.def("set_schedule", set_schedule, py::arg("order"), py::arg("seed") = 0);
  module.def(
      "set_device",
      [](int capability, int processors, int64_t shared_bytes, int max_cluster,
         int placed_cluster) {
        emulation::set_device({capability, processors, shared_bytes, max_cluster});
        emulation::placed_cluster = placed_cluster;
      },
      py::arg("capability") = 90, py::arg("processors") = 132, py::arg("shared_bytes") = 232448,
      py::arg("max_cluster") = 16, py::arg("placed_cluster") = 16);
}
