"""The script that compute-sanitizer runs, where no GPU is."""

import pytest
import torch

from anl_kernels.backends.choice import why_not
from tests.gpu import sanitize


@pytest.mark.parametrize("dtype", sanitize.DTYPES, ids=str)
@pytest.mark.parametrize("form", sanitize.FORMS, ids=lambda form: form.__name__)
def test_it_passes_where_the_kernels_are_right(form, dtype):
    if why_not("cpu"):
        pytest.skip(why_not("cpu"))
    for shape in ((33, 10), (3, 1001), (2, 21, 5, 7)):
        sanitize.run(form, shape, dtype, "cpu", "cpu")


def test_it_fails_where_they_are_not(monkeypatch):
    def wrong(logits, target):
        return (logits * logits.dtype.itemsize,)

    with pytest.raises(AssertionError, match="wrong"):
        sanitize.run(wrong, (2, 3), torch.float32, "reference", "cpu")


def test_what_checks_nothing_fails(capsys):
    assert sanitize.main("no such backend", "cpu") == 1
    assert "nothing was checked" in capsys.readouterr().out


def test_it_runs_the_forms_it_names(monkeypatch, capsys):
    monkeypatch.setattr(sanitize, "SHAPES", ((2, 3),))
    assert sanitize.main("reference", "cpu") == 0
    assert "24 runs on reference" in capsys.readouterr().out
