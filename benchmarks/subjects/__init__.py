"""What is measured: the library and its peers.

A subject is a function of the inputs that returns how to prepare a step (see timing.py).
"""

# Each registers its subjects.
from benchmarks.subjects import library, linear, others, softmax, train
from benchmarks.subjects.base import (
    SUBJECTS,
    Criterion,
    Subject,
    is_library,
    loss_and_gradient,
    on_backend,
)

__all__ = [
    "SUBJECTS",
    "Criterion",
    "Subject",
    "is_library",
    "library",
    "linear",
    "loss_and_gradient",
    "on_backend",
    "others",
    "softmax",
    "train",
]
