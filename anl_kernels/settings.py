"""What a caller sets for a context: the backend of its calls, and whether their labels are checked.

Context variables: a thread or an asyncio task has settings of its own. Dynamo cannot call a
``ContextVar``, but it reads and writes the attributes of a module, guards on what it read, and
reads them anew before each call: compiled code follows the context of whoever calls it.
"""

from __future__ import annotations

import os
import warnings
from contextvars import ContextVar
from types import ModuleType

AUTO = "auto"

LABELS_VARIABLE = "ANL_KERNELS_CHECK_LABELS"


def _set_in_environment(variable: str) -> bool:
    """Whether a variable is 1. Warn of a value that is neither 1 nor 0, which says nothing."""
    value = os.environ.get(variable, "0")
    if value not in ("", "0", "1"):
        warnings.warn(f"{variable} must be 0 or 1, got {value!r}: not used", stacklevel=2)
    return value == "1"


_backend = ContextVar("anl_kernels.backend", default=AUTO)
_labels_by_default = _set_in_environment(LABELS_VARIABLE)
_labels = ContextVar("anl_kernels.check_labels", default=_labels_by_default)


asked_backend = _backend.get
"""The backend asked for, as eager code may ask: ``settings.backend`` in an eighth of its time."""


class _Settings(ModuleType):
    @property
    def backend(self) -> str:
        """The backend asked for."""
        return _backend.get()

    @backend.setter
    def backend(self, name: str) -> None:
        _backend.set(name)

    @property
    def check_labels(self) -> bool:
        """Whether labels are checked where that costs a synchronisation."""
        return _labels.get()

    @check_labels.setter
    def check_labels(self, check: bool) -> None:
        _labels.set(check)


def interpreting() -> bool:
    """Whether ``TRITON_INTERPRET=1`` in the environment has Triton's kernels interpreted."""
    return os.environ.get("TRITON_INTERPRET") == "1"


settings = _Settings("anl_kernels.settings.settings")
