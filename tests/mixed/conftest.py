import pytest

from anl_kernels.mixed import autograd, loss


@pytest.fixture(params=["swept", "small"])
def form(request, monkeypatch):
    """Rows by sweeps over chunks, also few and short ones; or as few rows are computed."""
    small = request.param == "small"
    monkeypatch.setattr(loss, "_is_small", lambda *args: small)
    monkeypatch.setitem(autograd._CHUNK_BYTES, "cpu", 256)
    monkeypatch.setitem(autograd._CHUNK_BYTES, "cuda", 256)
    return request.param


@pytest.fixture
def swept(monkeypatch):
    """Rows by sweeps over chunks, also few and short ones."""
    monkeypatch.setattr(loss, "_is_small", lambda *args: False)
    monkeypatch.setitem(autograd._CHUNK_BYTES, "cpu", 256)
    monkeypatch.setitem(autograd._CHUNK_BYTES, "cuda", 256)
