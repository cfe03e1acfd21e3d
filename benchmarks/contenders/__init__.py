"""What is measured: the library and its peers.

A contender is a function of the inputs that returns how to prepare a step (see timing.py).
"""

# Each registers its contenders.
from benchmarks.contenders import library, linear, peers, softmax, train
from benchmarks.contenders.base import (
    CONTENDERS,
    Contender,
    Criterion,
    is_library,
    loss_and_gradient,
    on_backend,
)

__all__ = [
    "CONTENDERS",
    "Contender",
    "Criterion",
    "is_library",
    "library",
    "linear",
    "loss_and_gradient",
    "on_backend",
    "peers",
    "softmax",
    "train",
]
