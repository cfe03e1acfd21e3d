"""What a patched model may do to the logits that it does not have, and what it may not."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import anl_kernels as ak
from anl_kernels.integrations.logit_law import LogitLaw, NoLogits
from anl_kernels.integrations.transformers import patch_model

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

from tests.integrations.models import SIZE, tokens  # noqa: E402


def no_logits():
    return NoLogits("Model", torch.empty(0, 3, 7), torch.Size((2, 3, 7)), LogitLaw())


LAWS = {
    "nothing": (lambda z: z, (1.0, None)),
    "float32": (lambda z: z.float().contiguous(), (1.0, None)),
    "factor": (lambda z: z / 6, (1 / 6, None)),
    "factor of NumPy": (lambda z: z * np.float32(0.5), (0.5, None)),
    "function": (lambda z: torch.div(torch.mul(3, z), 2), (1.5, None)),
    "softcap": (lambda z: 30 * torch.tanh(z / 30), (1.0, 30.0)),
    "softcap in float32": (lambda z: 2 * F.tanh(z.float() / 2), (1.0, 2.0)),
    "both": (lambda z: 30 * torch.tanh(z * 0.5 / 30), (0.5, 30.0)),
    "factor after a softcap": (lambda z: 30 * torch.tanh(z / 30) / 3, (1 / 3, 10.0)),
    "padding": (lambda z: z[..., :5], (1.0, None)),
    "padding of all dimensions": (lambda z: z[:, :, :5] * 2, (2.0, None)),
}


BREAKS_A_GRAPH = {"factor of NumPy", "softcap in float32"}
"""NumPy's numbers and ``F.tanh``, which the compiler takes for functions of tensors alone."""


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", LAWS)
def test_laws(name, compiled):
    change, law = LAWS[name]

    def run(x):
        return x + 1, change(no_logits())

    torch._dynamo.reset()
    if compiled:
        run = torch.compile(run, backend="eager", fullgraph=name not in BREAKS_A_GRAPH)
    found = run(torch.ones(1))[1]
    assert found.law.softcap == (law[1] and pytest.approx(law[1], rel=1e-12))
    assert found.law.scale == pytest.approx(law[0], rel=1e-12)
    z = torch.randn(2, 3, 7, dtype=torch.float64)
    wanted = change(z)
    scaled = z[..., : found.shape[-1]] * law[0]
    capped = scaled if law[1] is None else law[1] * torch.tanh(scaled / law[1])
    torch.testing.assert_close(capped, wanted, rtol=1e-6, atol=1e-9, check_dtype=False)
    assert (found.shape, found.ndim, found.dim()) == (wanted.shape, 3, 3)


def set_item(z):
    z[:, :, 3] = -1.0


UNKNOWN = {
    "bias": (lambda z: z + 1, "__add__"),
    "bias of a class": (lambda z: torch.arange(7) + z, "add"),
    "clamp": (lambda z: z.clamp(-2, 2), "clamp"),
    "cube": (lambda z: z**3, "__pow__"),
    "sign": (lambda z: -1 * z, "multiplies its logits by -1"),
    "learned": (lambda z: z * torch.ones((), requires_grad=True), "by a Tensor"),
    "product with a tensor": (lambda z: torch.ones(()) * z, "mul"),
    "shape": (lambda z: z[:, 1:], "takes some"),
    "last position": (lambda z: z[:, -1, :], "takes some"),
    "some classes": (lambda z: z[..., torch.tensor([1, 2])], "takes some"),
    "end": (lambda z: z[..., 2:], "takes some"),
    "view": (lambda z: z.view(-1, 7), "view"),
    "two softcaps": (lambda z: torch.tanh(torch.tanh(z)), "tanh of its logits twice"),
    "in place": (lambda z: z.tanh_(), "tanh_"),
    "factor in place": (lambda z: z.__imul__(2), "__imul__"),
    "item": (set_item, "__setitem__"),
    "z-loss": (lambda z: z.logsumexp(dim=-1), "logsumexp"),
    "entropy": (lambda z: F.softmax(z, -1), "softmax"),
    "cross entropy": (lambda z: F.cross_entropy(z, torch.zeros(2, 7)), "cross_entropy"),
    "concatenation": (lambda z: torch.cat([z, z]), "cat was given logits"),
    "comparison": (lambda z: z == 0, "__eq__"),
    "branch": (lambda z: z if z else None, "__bool__"),
    "rows": (lambda z: list(z), "__iter__"),
}


@pytest.mark.parametrize(("use", "what"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_needs_logits(use, what):
    with pytest.raises(ValueError, match=f"{what}.*(a patched model|patch_model)"):
        use(no_logits())


def bamba(**options):
    torch.manual_seed(1)
    mamba = {f"mamba_{name}": 4 for name in ("n_heads", "d_head", "d_state")}
    config = transformers.BambaConfig(
        **SIZE, **mamba, mamba_n_groups=1, attn_layer_indices=[0], **options
    )
    return transformers.BambaForCausalLM(config).train()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_that_reads_its_logits_after_the_loss(compiled):
    ids, labels = tokens()
    own, patched = bamba(), patch_model(bamba(), ak.CE())
    loss = patched(input_ids=ids, labels=labels).loss
    torch.testing.assert_close(loss, own(input_ids=ids, labels=labels).loss)
    patched.config.z_loss_coefficient = patched.z_loss_coefficient = 0.1
    run = torch.compile(patched, backend="eager") if compiled else patched
    for _ in range(2):
        with pytest.raises(ValueError, match=r"BambaForCausalLM .*logsumexp.* ak\.ZLoss"):
            run(input_ids=ids, labels=labels)
    assert patched(input_ids=ids).logits.shape == (4, 9, 37)  # nothing is left behind


def test_columns_that_are_dropped():
    ids, labels = tokens()
    patched = patch_model(bamba(), ak.CE())
    patched.lm_head.register_forward_hook(lambda head, args, logits: logits[..., :30])
    with pytest.raises(ValueError, match="pass num_classes=30"):
        patched(input_ids=ids, labels=labels)
