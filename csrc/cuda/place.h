// Where the operators of ops.cpp run: on the tensors' GPU, in PyTorch's current stream. The tests'
// emulation (tests/cuda/emulation) runs them on a CPU's tensors, in a build without CUDA.
#pragma once

#include "interface.h"

#include <ATen/core/Tensor.h>

#ifdef ANL_EMULATED_DEVICE

#define ANL_DISPATCH_KEY CPU

namespace anl::cuda {

class OnDeviceOf {
public:
  explicit OnDeviceOf(const at::Tensor&) {}
  Place place() const { return {0, nullptr}; }
};

} // namespace anl::cuda

#else

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#define ANL_DISPATCH_KEY CUDA

namespace anl::cuda {

// The tensor's device is the current one as long as this lives.
class OnDeviceOf {
public:
  explicit OnDeviceOf(const at::Tensor& tensor) : guard_(tensor.device()) {}
  Place place() const {
    const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream();
    return {int(stream.device_index()), stream.stream()};
  }

private:
  c10::cuda::CUDAGuard guard_;
};

} // namespace anl::cuda

#endif
