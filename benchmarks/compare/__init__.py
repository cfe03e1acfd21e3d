"""What changed between two runs of a suite, and whether it is more than noise."""

from benchmarks.compare.changes import Change, Comparison, Failure
from benchmarks.compare.document import render
from benchmarks.compare.matching import compare

__all__ = ["Change", "Comparison", "Failure", "compare", "render"]
