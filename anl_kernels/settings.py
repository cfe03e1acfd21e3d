"""What a caller sets for a context: the backend of its calls, and whether their labels are checked.

Context variables: a thread or an asyncio task has settings of its own. Dynamo cannot call a
``ContextVar``, but it reads and writes the attributes of a module, guards on what it read, and
reads them anew before each call: compiled code follows the context of whoever calls it.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from types import ModuleType

AUTO = "auto"

_backend = ContextVar("anl_kernels.backend", default=AUTO)
_labels = ContextVar(
    "anl_kernels.check_labels", default=os.environ.get("ANL_KERNELS_CHECK_LABELS") == "1"
)


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


settings = _Settings("anl_kernels.settings.settings")
