// What the facts module reaches of the operators.
#pragma once

#include "interface.h"

#include <ATen/core/Tensor.h>

namespace anl::cuda {

// How the loss of these logits is launched, if its terms have no sums of their own.
RowLossLaunch launch_of(const at::Tensor& logits);

} // namespace anl::cuda
