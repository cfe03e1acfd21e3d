"""Which GPUs Triton's kernels run on, and what is said of one that is too old."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

import anl_kernels as ak
from anl_kernels.backends import choice
from anl_kernels.backends.choice import choose_backend, why_not
from tests.backends import forget

pytest.importorskip("triton")


@pytest.fixture
def gpus(machine):
    """Makes GPUs visible by their compute capabilities, to Triton alone and not interpreted."""

    def make(*capabilities):
        absent = choice.BACKENDS["cuda"]._replace(why_not=lambda: "not built")
        machine.setattr(choice, "BACKENDS", choice.BACKENDS | {"cuda": absent})
        machine.setattr(choice, "interpreting", lambda: False)
        machine.setattr(choice, "_warned", set())
        machine.setattr(torch.version, "hip", None)
        machine.setattr(torch.cuda, "is_available", lambda: True)
        machine.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        machine.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
        forget()

    return make


@pytest.mark.parametrize("capability", [(7, 0), (7, 5)])
def test_an_old_gpu_is_refused_by_name(capability, gpus):
    gpus(capability)
    has = "{}.{}".format(*capability)
    with pytest.raises(RuntimeError, match=rf"'triton'.*compute capability {has}.*8\.0 or newer"):
        ak.use_backend("triton").__enter__()
    assert "ak.use_backend('auto')" in str(why_not("triton"))


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 3), (12, 0)])
def test_newer_ones_are_not(capability, gpus):
    gpus(capability)
    assert why_not("triton") is None
    assert why_not("triton", "cuda", 0) is None


def test_each_gpu_has_its_own_answer(gpus):
    gpus((7, 5), (9, 0))
    assert why_not("triton") is None
    assert "7.5" in str(why_not("triton", "cuda", 0))
    assert why_not("triton", "cuda", 1) is None


def test_amd_has_other_numbers(gpus, machine):
    gpus((6, 0))
    machine.setattr(torch.version, "hip", "6.4")
    assert why_not("triton") is None


def test_auto_takes_the_reference_and_says_why(gpus):
    gpus((7, 5))
    with FakeTensorMode():  # no data, so that no GPU is needed
        logits = torch.empty(4, 10, device="cuda")
    with pytest.warns(RuntimeWarning, match=r"no kernels for cuda tensors.*capability 7\.5"):
        assert choose_backend(logits) == "reference"
