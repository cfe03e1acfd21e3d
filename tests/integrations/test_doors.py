"""What the doors of transformers do with models and calls out of the ordinary."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import anl_kernels as ak
from anl_kernels.integrations.items import ItemLoss
from anl_kernels.integrations.transformers import (
    compute_loss_func,
    loss_function,
    patch_model,
    set_loss_function,
    unpatch_model,
)

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

from tests.integrations.models import VOCABULARY, tiny, tokens  # noqa: E402

TERMS = 1.0 * ak.GCE(0.7) + 2.0 * ak.NCE()
IDS, LABELS = tokens()
SMALL = {
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_labels": 3,
}


def bert(kind="SequenceClassification"):
    torch.manual_seed(1)
    config = transformers.BertConfig(vocab_size=VOCABULARY, **SMALL)
    return getattr(transformers, f"BertFor{kind}")(config).eval()


def classifier():
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, num_key_value_heads=1, pad_token_id=0, **SMALL
    )
    return transformers.LlamaForSequenceClassification(config).eval()


def of_images():
    torch.manual_seed(1)
    config = transformers.ViTConfig(image_size=4, patch_size=2, **SMALL)
    return transformers.ViTForImageClassification(config).eval()


# Tuples


@pytest.mark.parametrize("given", [{}, {"output_hidden_states": True}], ids=["plain", "hidden"])
@pytest.mark.parametrize("family", ["Llama", "Mixtral"])
def test_a_tuple_is_that_of_the_model_without_logits(family, given):
    own, patched = (tiny(family, torch.float32) for _ in range(2))
    patch_model(patched, ak.CE())
    given = dict(input_ids=IDS, labels=LABELS, use_cache=False, return_dict=False, **given)
    wanted = own(**given)
    place = next(i for i, value in enumerate(wanted) if getattr(value, "shape", 0) == (4, 9, 37))
    for _ in range(2):  # the stand-ins differ
        found = patched(**given)
        assert len(found) == len(wanted) - 1
        torch.testing.assert_close(found, wanted[:place] + wanted[place + 1 :])


def test_a_tuple_whose_tensors_were_converted():
    """As by accelerate for mixed precision, between the model's forward and its hooks."""
    patched = patch_model(tiny("Mixtral", torch.float32), ak.CE())
    forward = patched.forward
    patched.forward = lambda **given: tuple(
        value.double() if isinstance(value, torch.Tensor) else value for value in forward(**given)
    )
    for _ in range(2):
        found = patched(input_ids=IDS, labels=LABELS, use_cache=False, return_dict=False)
        assert [value.shape for value in found[:2]] == [(), ()]
        assert len(found) == 3  # the loss, the router's, its logits


# Terms and heads that are refused


@pytest.mark.parametrize(
    "make",
    [
        compute_loss_func,
        loss_function,
        lambda terms: set_loss_function(tiny(), terms),
        lambda terms: patch_model(tiny(), terms),
    ],
)
def test_learned_weights_are_refused(make):
    with pytest.raises(TypeError, match=r"no weights that are learned here.* make ak\.RobustLoss"):
        make(nn.Parameter(torch.ones(())) * ak.CE())
    make(torch.ones(()) * ak.CE())


def test_a_head_whose_forward_was_replaced():
    model = tiny()
    model.lm_head.forward = model.lm_head.forward
    with pytest.raises(TypeError, match="forward was replaced, as offloading hooks do"):
        ak.LinearRobustLoss(model.lm_head, TERMS)
    with pytest.raises(TypeError, match="LlamaForCausalLM cannot be patched: head must be a plain"):
        patch_model(model, TERMS)


def test_a_head_that_is_offloaded_after_the_patch():
    hooks = pytest.importorskip("accelerate.hooks")
    patched = patch_model(tiny(), TERMS)
    hooks.add_hook_to_module(patched.lm_head, hooks.AlignDevicesHook("cpu", offload=True))
    with pytest.raises(RuntimeError, match="head of LlamaForCausalLM is offloaded"):
        patched(input_ids=IDS, labels=LABELS)
    assert patched(input_ids=IDS).logits.shape == (4, 9, VOCABULARY)


# Other losses on a patched model


def delete(model):
    del model._loss_function


def replace(model):
    model.loss_function = loss_function(ak.CE(), shift=True)


@pytest.mark.parametrize("change", [delete, replace])
@pytest.mark.parametrize("copied", [False, True])
def test_a_patched_model_whose_loss_function_changed(change, copied):
    model = patch_model(tiny(), TERMS)
    model = copy.deepcopy(model) if copied else model
    change(model)
    with pytest.raises(RuntimeError, match="was changed or deleted; call unpatch_model"):
        model(input_ids=IDS, labels=LABELS)
    assert model(input_ids=IDS).logits.shape == (4, 9, VOCABULARY)
    with pytest.raises(ValueError, match="must not be patched already"):
        patch_model(model, TERMS)
    unpatch_model(model)
    output, wanted = (m(input_ids=IDS, labels=LABELS) for m in (model, tiny()))
    torch.testing.assert_close(output.logits, wanted.logits)
    torch.testing.assert_close(output.loss, wanted.loss, check_dtype=False)
    assert not model._forward_hooks
    assert not model.lm_head._forward_pre_hooks


# Pickles and copies


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("door", [set_loss_function, patch_model])
def test_models_can_be_pickled_and_copied(door, again):
    model = door(tiny(), TERMS)
    wanted = model(input_ids=IDS, labels=LABELS).loss
    other = again(model)
    torch.testing.assert_close(other(input_ids=IDS, labels=LABELS).loss, wanted)
    with torch.no_grad():
        other.lm_head.weight.zero_()
    torch.testing.assert_close(model(input_ids=IDS, labels=LABELS).loss, wanted)


@pytest.mark.parametrize("make", [compute_loss_func, loss_function])
def test_losses_can_be_pickled(make):
    logits = torch.randn(4, 9, VOCABULARY)
    loss = make(TERMS, shift=True, weight=torch.rand(VOCABULARY))
    again = pickle.loads(pickle.dumps(loss))
    torch.testing.assert_close(again(logits, LABELS), loss(logits, LABELS))


# The loss inside a model's forward


def test_a_classifier_of_images():
    """Which calls its loss with labels first."""
    model, pixels = of_images(), torch.randn(5, 3, 4, 4)
    labels = torch.tensor([0, 2, 1, 1, 0])
    set_loss_function(model, TERMS)
    output = model(pixel_values=pixels, labels=labels)
    torch.testing.assert_close(output.loss, ak.robust_loss(output.logits, labels, TERMS))


def test_a_classifier_of_sequences():
    model, labels = classifier(), torch.tensor([0, 2, 1, 1])
    set_loss_function(model, TERMS)
    output = model(input_ids=IDS, labels=labels)
    torch.testing.assert_close(output.loss, ak.robust_loss(output.logits, labels, TERMS))


def test_models_that_call_no_loss_function():
    t5 = transformers.T5Config(vocab_size=9, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=1)
    for model in bert(), transformers.T5ForConditionalGeneration(t5):
        with pytest.raises(TypeError, match=r"does not call any.* use Trainer\(compute_loss_func="):
            set_loss_function(model, TERMS)
    with pytest.raises(TypeError, match="must be a PreTrainedModel of transformers, got Linear"):
        set_loss_function(nn.Linear(2, 2), TERMS)
    with pytest.raises(ValueError, match="must not be patched already"):
        set_loss_function(patch_model(tiny(), TERMS), TERMS)


def test_losses_of_another_kind():
    loss = loss_function(TERMS, shift=False)
    scores, positions = torch.randn(2, 9), torch.tensor([1, 3])
    for arguments in [
        (scores, scores, positions, positions),  # question answering
        (torch.rand(2, 3), torch.rand(2, 3)),  # several labels for one example
        (positions, positions),
        (None, positions),
    ]:
        with pytest.raises(TypeError, match="with logits and with labels that are class indices"):
            loss(*arguments)


# Arguments


def test_class_weights_follow_the_logits():
    seen = []

    class Recorder(nn.Module):
        def __init__(self, reduction, weight):
            super().__init__()
            self.terms = 1.0 * ak.CE()
            self.register_buffer("weight", weight)

        def forward(self, rows, target, sample_weight=None):
            seen.append(self.weight)

    loss = ItemLoss(Recorder, {"weight": torch.ones(3)})
    rows, target = torch.zeros(2, 3, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
    for items in (None, 2, None):
        loss(rows, target, items)
    assert [weight.device.type for weight in seen] == ["meta"] * 3
    assert seen[0] is seen[2]  # moved once


def test_outputs_without_logits():
    compute = compute_loss_func(TERMS)
    output = patch_model(tiny(), TERMS)(input_ids=IDS, labels=LABELS)
    for outputs in (output, dict(output), {"logits": None}, (None,), None):
        with pytest.raises(TypeError, match=r"outputs must have logits.* patch_model changed"):
            compute(outputs, LABELS)


def test_numbers_of_items():
    logits, compute = torch.randn(4, 9, VOCABULARY), compute_loss_func(TERMS, shift=True)
    nothing = torch.full_like(LABELS, -100)
    for items in (None, 0, torch.tensor(0)):
        assert compute(logits, nothing, items) == 0
    with pytest.raises(ValueError, match="num_items_in_batch must not be negative, got -3"):
        compute(logits, LABELS, -3)
    with pytest.raises(ValueError, match=r"must be one number, got a tensor of shape \(2,\)"):
        compute(logits, LABELS, torch.tensor([3, 4]))


def test_one_more_head_after_resizing():
    """An untied head is replaced: unpatch before, patch after."""
    patched = patch_model(tiny(), ak.CE())
    unpatch_model(patched).resize_token_embeddings(VOCABULARY + 3)
    output = patch_model(patched, ak.CE())(input_ids=IDS, labels=LABELS)
    logits = patched(input_ids=IDS).logits
    assert logits.shape[-1] == VOCABULARY + 3
    target = F.pad(LABELS, (0, 1), value=-100)[:, 1:]
    torch.testing.assert_close(output.loss, F.cross_entropy(logits.flatten(0, 1), target.flatten()))
