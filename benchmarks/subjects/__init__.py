"""What is measured: loss and gradient of given logits, by the library and by its peers.

A subject is a function of the inputs that returns how to prepare a step (see timing.py).
"""

from benchmarks.subjects import library, others  # their subjects register themselves, in this order
from benchmarks.subjects.base import (
    SUBJECTS,
    Criterion,
    Subject,
    criterion_of,
    loss_and_gradient,
    on_backend,
)

__all__ = [
    "SUBJECTS",
    "Criterion",
    "Subject",
    "criterion_of",
    "library",
    "loss_and_gradient",
    "on_backend",
    "others",
]
