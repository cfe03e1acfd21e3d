"""The errors of exp and its kin."""

import numpy as np
import torch

from anl_kernels.backends.choice import instruction_set
from tests.cpu.elementary import BOUNDS, arguments

for dtype in (np.float32, np.float64):
    numbers = arguments(dtype, 9973)
    for bound in BOUNDS:
        if bound.dtype == dtype and np.finfo(np.longdouble).nmant >= 60:
            worst, where = bound.worst(numbers)
            assert worst <= bound.most, f"{bound}: {worst:.3g} ulp at {where!r}"
print(instruction_set(), torch.__version__)
