"""The forms that the GPU kernels of both backends take, forced at small numbers of classes."""

import importlib
from contextlib import contextmanager

from tests.backends import running_on

# Names in tests/triton/forms.py and tests/cuda/forms.py, which import the backends.
FORMS = [
    *(("triton", form) for form in ("tile", "sweep", "sweep-of-rows", "split")),
    *(("cuda", form) for form in ("tile", "elements", "warp", "block", "cluster", "cluster-of-16")),
    *(("cuda", form) for form in ("stream", "split")),
]


@contextmanager
def forced(backend, form, monkeypatch):
    """Run on a backend, every row in one form."""
    with running_on(backend), _forms_of(backend).forced(form, monkeypatch):
        yield


@contextmanager
def checked(backend, form, monkeypatch):
    """As ``forced``; fails if rows ran in another form."""
    with running_on(backend), _forms_of(backend).checked(form, monkeypatch):
        yield


def _forms_of(backend):
    return importlib.import_module(f"tests.{backend}.forms")
