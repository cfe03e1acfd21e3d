"""Balanced losses of models of transformers: of logits, and with the fused head."""

import pytest
import torch

import anl_kernels as ak

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

from anl_kernels.integrations.transformers import (  # noqa: E402
    compute_loss_func,
    patch_model,
    set_loss_function,
)
from tests.integrations.models import VOCABULARY, grads, tiny, tokens  # noqa: E402

TERMS = 1.0 * ak.NCE() + 2.0 * ak.NNCE()


def scale_of(mode):
    state = torch.zeros(2, dtype=torch.float64) if mode == "running" else None
    return ak.Balance(mode, running=state)


def gradients(model, **given):
    ids, labels = tokens()
    model.zero_grad()
    model(input_ids=ids, labels=labels, **given).loss.backward()
    return {name: grad.clone() for name, grad in grads(model).items()}


@pytest.mark.parametrize("items", [None, torch.tensor(19)], ids=["mean", "items"])
@pytest.mark.parametrize("mode", ["row", "batch", "running"])
def test_models(mode, items):
    """Both doors have the gradient of the loss of the shifted rows."""
    given = {} if items is None else {"num_items_in_batch": items}
    set_on, patched, own = (tiny("Llama", torch.float64) for _ in range(3))
    set_loss_function(set_on, TERMS, class_scale=scale_of(mode))
    patch_model(patched, TERMS, class_scale=scale_of(mode))
    ids, labels = tokens()
    logits = own(input_ids=ids).logits[:, :-1].reshape(-1, VOCABULARY)
    target = labels[:, 1:].reshape(-1)
    reduction = "mean" if items is None else "sum"
    loss = ak.robust_loss(logits, target, TERMS, class_scale=scale_of(mode), reduction=reduction)
    (loss if items is None else loss / items).backward()
    wanted = grads(own)
    for model in (set_on, patched):
        found = gradients(model, **given)
        assert found.keys() == wanted.keys()
        for name, grad in wanted.items():
            torch.testing.assert_close(found[name], grad)


def test_a_mean_that_nobody_would_save_is_refused():
    for door in (
        lambda: compute_loss_func(TERMS, shift=True, class_scale="running"),
        lambda: set_loss_function(tiny("Llama"), TERMS, class_scale="running"),
        lambda: patch_model(tiny("Llama"), TERMS, class_scale="running"),
    ):
        with pytest.raises(TypeError, match=r"class_scale='running' .* running=tensor"):
            door()
