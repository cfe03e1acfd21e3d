// What the facts module reaches of the operators.
#pragma once

#include "interface.h"

#include <ATen/core/Tensor.h>

#include <string_view>

namespace anl::cpu {

void set_kernels(const Kernels* table);

// See label_scale in anl_kernels/rows/labels.py, which has the same words.
at::Tensor label_scale(const at::Tensor& target, int64_t K, int64_t ignore_index,
                       at::ScalarType dtype, bool mean, std::string_view argument);

// y = f(x) with the kernels' own elementary functions, for tests of their accuracy.
void elementary(Elementary function, const at::Tensor& x, const at::Tensor& y);

} // namespace anl::cpu
