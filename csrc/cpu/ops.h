// What the facts module reaches of the operators.
#pragma once

#include "interface.h"

#include <ATen/core/Tensor.h>

namespace anl::cpu {

void set_kernels(const Kernels* table);

// y = f(x) with the kernels' own elementary functions, for tests of their accuracy.
void elementary(Elementary function, const at::Tensor& x, const at::Tensor& y);

} // namespace anl::cpu
