"""The suites, by the names of the command line."""

from benchmarks.suite import Suite
from benchmarks.suites.layouts import LAYOUTS
from benchmarks.suites.linear import LINEAR
from benchmarks.suites.overhead import OVERHEAD
from benchmarks.suites.rows import ROWS
from benchmarks.suites.scaling import SCALING
from benchmarks.suites.softmax import SOFTMAX
from benchmarks.suites.train import TRAIN

SUITES: dict[str, Suite] = {
    "rows": ROWS,
    "linear": LINEAR,
    "layouts": LAYOUTS,
    "softmax": SOFTMAX,
    "overhead": OVERHEAD,
    "scaling": SCALING,
    "train": TRAIN,
}
