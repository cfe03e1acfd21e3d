"""When the CUDA backend runs, when ``auto`` takes it, and what is said where it does not run."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

import anl_kernels as ak
from anl_kernels import report
from anl_kernels.backends import choice
from anl_kernels.backends.choice import best, choose_backend, why_not
from tests.backends import forget, operators_of

GPU = torch.cuda.is_available()
LOGITS, TARGET = torch.zeros(2, 3), torch.tensor([0, 1])
H100, A100, RTX5090 = (9, 0), (8, 0), (12, 0)
LONG = 8193  # classes, of a row that Triton does not hold in registers

emulated_only = pytest.mark.skipif(GPU, reason="the emulation is for machines without a GPU")


@pytest.fixture
def extension(machine):
    """Makes a module, or None for none, what the package finds as its CUDA extension."""
    return lambda module: machine.setitem(sys.modules, "anl_kernels._cuda", module)


@pytest.fixture
def gpus(extension, monkeypatch):
    """Makes GPUs visible, by their compute capabilities, to kernels for some architectures."""

    def make(*capabilities, architectures="8.0;9.0;10.0+PTX"):
        extension(SimpleNamespace(device_type="cuda", architectures=lambda: architectures))
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])

    return make


def refusal():
    with pytest.raises(RuntimeError) as refused:
        ak.use_backend("cuda").__enter__()
    assert ak.env_report().backends["cuda"] in str(refused.value)
    return str(refused.value)


# ---- why not -----------------------------------------------------------------------------------


def test_an_extension_that_was_not_built(extension, monkeypatch):
    extension(None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    message = refusal()
    for fact in ("'cuda'", "anl_kernels._cuda", "nvcc", "13.0", "FORCE_CUDA=1 pip install"):
        assert fact in message


def test_a_pytorch_without_cuda(extension, monkeypatch):
    extension(None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert f"this PyTorch ({torch.__version__}) is without CUDA" in refusal()


def test_a_pytorch_for_rocm(extension, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "this PyTorch is for ROCm" in refusal()


@pytest.mark.skipif(GPU, reason="needs a machine without a GPU")
def test_no_device(gpus):
    gpus()
    assert "no CUDA device is visible" in refusal()


def test_one_of_several_gpus_will_do(gpus):
    gpus((7, 5), H100)
    assert why_not("cuda") is None
    assert "7.5" in why_not("cuda", "cuda", 0)
    assert why_not("cuda", "cuda", 1) is None


@pytest.mark.parametrize(
    ("capability", "architectures", "facts"),
    [
        ((7, 5), "8.0;9.0;10.0+PTX", ["7.5", "8.0 or newer"]),
        ((8, 0), "8.0;9.0;10.0+PTX", []),
        ((8, 9), "8.0;9.0;10.0+PTX", []),
        ((10, 3), "8.0;9.0;10.0+PTX", []),
        ((12, 0), "8.0;9.0;10.0+PTX", []),
        ((12, 1), "8.0;9.0;10.0+PTX;12.0", []),
        ((11, 0), "8.0;9.0;10.0+PTX;12.0", []),
        ((12, 0), "8.0;9.0;10.0", ["12.0", "8.0;9.0;10.0", "TORCH_CUDA_ARCH_LIST=12.0"]),
        ((8, 0), "9.0+PTX", ["8.0", "9.0+PTX", "TORCH_CUDA_ARCH_LIST=8.0"]),
        ((8, 0), "8.6", ["8.6"]),
        ((9, 0), "9.0a", []),
        ((10, 0), "9.0a", ["9.0a"]),
        ((9, 0), "Hopper", []),
    ],
)
def test_which_gpus_will_do(capability, architectures, facts, gpus):
    gpus(capability, architectures=architectures)
    reason = why_not("cuda", "cuda", 0)
    assert bool(reason) == bool(facts)
    for fact in facts:
        assert fact in reason


@emulated_only
def test_the_emulation_runs_on_a_cpu_only(cuda_backend):
    assert choose_backend(LOGITS) == "cuda"
    with (
        FakeTensorMode(),
        pytest.raises(RuntimeError, match=r"'cuda' cannot run on cuda tensors: move .* the CPU"),
    ):
        choose_backend(torch.empty(2, 3, device="cuda"))
    assert "emulated on a CPU" in ak.env_report().backends["cuda"]


def test_it_never_falls_back(gpus):
    gpus(H100)
    with ak.use_backend("cuda"):
        for call in (
            lambda: ak.robust_loss(LOGITS, TARGET, ak.NCE()),
            lambda: ak.softmax(LOGITS),
        ):
            with pytest.raises(RuntimeError, match=r"'cuda' cannot run on cpu tensors: .* a GPU"):
                call()


def test_a_sum_of_too_many_terms(cuda_backend, device):
    terms = sum([ak.CE()] * 33, start=ak.CE() * 1.0)
    with pytest.raises(RuntimeError, match="'cuda' takes a sum of up to 32 terms, got 34"):
        ak.robust_loss(LOGITS.to(device), TARGET.to(device), terms)


# ---- auto --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "dtype", "num_classes", "best"),
    [
        (H100, torch.float32, LONG, "cuda"),
        (H100, torch.float32, LONG - 1, "triton"),
        (H100, torch.float32, 819_200, "cuda"),
        (H100, torch.float32, 819_201, "triton"),
        (H100, torch.bfloat16, 1_638_400, "cuda"),
        (H100, torch.float16, 1_638_401, "triton"),
        (H100, torch.float64, LONG, "triton"),
        (H100, torch.bfloat16, 10, "triton"),
        ((10, 0), torch.bfloat16, LONG, "cuda"),
        (A100, torch.float32, LONG, "triton"),
        (RTX5090, torch.float32, LONG, "triton"),
    ],
)
def test_the_table(capability, dtype, num_classes, best):
    (rule,) = choice.RULES
    logits = torch.empty(1, num_classes, dtype=dtype, device="meta")
    assert rule.holds(capability, logits, 1) == (best == "cuda")
    assert not rule.holds(capability, logits.expand(7, -1).t().contiguous(), 0)


def test_every_rule_says_where_it_comes_from():
    for rule in choice.RULES:
        assert "not measured" in rule.reason


@pytest.fixture
def fake_gpu(machine):
    """An H100 and kernels for it, less those that ``without`` names; ``rows`` makes logits."""
    able = {
        name: choice.BACKENDS[name]._replace(why_not=lambda: None) for name in ("triton", "cuda")
    }
    kernels = {name: of._replace(device_type=lambda: "cuda") for name, of in able.items()}
    machine.setattr(choice, "BACKENDS", kernels)
    machine.setattr(choice, "_why_not_compiled_for", lambda index: None)
    machine.setattr(choice, "_warned", {"cuda"})
    machine.setattr(torch.cuda, "get_device_capability", lambda index: H100)

    def without(name):
        kernels[name] = kernels[name]._replace(why_not=lambda: "not built")
        forget()

    def rows(*shape, **options):
        return torch.empty(shape, device="cuda", **options)

    with FakeTensorMode():  # no data, so that no GPU is needed
        yield SimpleNamespace(rows=rows, without=without)


def test_auto_goes_by_the_logits(fake_gpu):
    rows, last = fake_gpu.rows, torch.channels_last
    assert choose_backend(rows(4, LONG)) == "cuda"
    assert choose_backend(rows(LONG), dim=0) == "cuda"
    assert choose_backend(rows(4, 1000)) == "triton"
    assert choose_backend(rows(4, LONG, dtype=torch.float64)) == "triton"
    assert choose_backend(rows(LONG, 4), dim=0) == "triton"
    assert choose_backend(rows(2, LONG, 3, 3)) == "triton"
    assert choose_backend(rows(2, LONG, 3, 3, memory_format=last)) == "cuda"
    assert best("cuda") == "triton"


def test_auto_takes_what_there_is(fake_gpu):
    logits = fake_gpu.rows(4, LONG)
    fake_gpu.without("cuda")
    assert choose_backend(logits) == "triton"
    fake_gpu.without("triton")
    assert choose_backend(logits) == "reference"
    assert best("cuda") == "reference"


def test_auto_without_triton_takes_cuda_for_all_rows(fake_gpu):
    fake_gpu.without("triton")
    assert choose_backend(fake_gpu.rows(4, 10)) == "cuda"
    assert best("cuda") == "cuda"


def test_auto_passes_over_a_gpu_that_is_too_old(fake_gpu, machine):
    machine.setattr(choice, "_why_not_compiled_for", lambda index: "too old")
    assert choose_backend(fake_gpu.rows(4, LONG)) == "triton"


def test_the_report_says_what_auto_takes(fake_gpu):
    said = report._auto_on("cuda")
    assert said.startswith("triton; cuda for rows of more than 8192 classes")
    for fact in ("bfloat16", "3200 KiB", "compute capability 9.0"):
        assert fact in said
    fake_gpu.without("cuda")
    assert report._auto_on("cuda") == "triton"


@pytest.fixture
def cpu_as_gpu(cuda_backend, triton_backend, machine):
    """``auto`` takes a CPU for an H100: the kernels are emulated and interpreted there."""
    able = choice.BACKENDS["cuda"]._replace(why_not=lambda: None)
    machine.setattr(choice, "BACKENDS", choice.BACKENDS | {"cuda": able})
    machine.setattr(choice, "KERNELS_FOR", {"cpu": ("triton", "cuda")})
    machine.setattr(choice, "GPU", "cpu")
    machine.setattr(torch.cuda, "get_device_capability", lambda index: H100)
    with ak.use_backend("auto"):
        yield


@emulated_only
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler's own modules
@pytest.mark.parametrize(("num_classes", "best"), [(10, "triton"), (LONG, "cuda")])
def test_compiled_code_makes_the_same_choice(num_classes, best, cpu_as_gpu):
    def both(z):
        return ak.robust_loss(z, TARGET, ak.NCE()), ak.softmax(z)

    logits = torch.randn(2, num_classes, requires_grad=True)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits), both(logits))
    for call in (both, compiled):
        kernels = set(operators_of(call, logits))
        assert kernels == {f"{best}::row_loss", f"{best}::softmax"}
