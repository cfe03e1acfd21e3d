"""Label noise as the papers make it: which labels change is exact or drawn, always from a seed.

Each function takes labels of any kind and gives :class:`NoisyLabels`. ``symmetric``, ``asymmetric``
and ``pair`` depend on the class alone and flip an exact number of labels of each class;
``instance_dependent`` looks at features.
"""

from anl_kernels.noise.class_dependent import FLIPS, asymmetric, pair, symmetric
from anl_kernels.noise.instance import instance_dependent
from anl_kernels.noise.result import NoisyLabels

__all__ = ["FLIPS", "NoisyLabels", "asymmetric", "instance_dependent", "pair", "symmetric"]
