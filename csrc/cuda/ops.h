// What the facts module reaches of the operators.
#pragma once

#include "interface.h"

#include <ATen/core/Tensor.h>

namespace anl::cuda {

// How a call with these logits is launched, if its terms have no sums of their own.
using LaunchOf = Launched(const RowLossArgs&, const Place&);
Launched launch_of(const at::Tensor& logits, LaunchOf*);

} // namespace anl::cuda
