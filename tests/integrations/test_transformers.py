"""The doors of transformers, with the real library and tiny models."""

import copy
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import anl_kernels as ak
from anl_kernels.integrations.transformers import (
    compute_loss_func,
    loss_function,
    patch_model,
    set_loss_function,
    unpatch_model,
)

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

from tests.integrations.models import FAMILIES, VOCABULARY, grads, tiny, tokens  # noqa: E402

TERMS = 1.0 * ak.GCE(0.7) + 2.0 * ak.NCE()
ITEMS = {"mean": None, "int": 17, "tensor": torch.tensor(17), "replica": torch.tensor([17])}


def expected(logits, labels, terms, items=None):
    """The loss by the book: shifted copies, flattened."""
    rows, target = logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1)
    if items is None:
        return ak.robust_loss(rows, target, terms)
    return ak.robust_loss(rows, target, terms, reduction="sum") / int(items)


def assert_same_grads(model, wanted, **tolerance):
    found, wanted = grads(model), grads(wanted)
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(
            found[name], grad, msg=lambda m, n=name: f"{n}: {m}", **tolerance
        )


# Losses of logits


@pytest.mark.parametrize("items", ITEMS.values(), ids=ITEMS)
@pytest.mark.parametrize("form", ["mapping", "tuple", "tensor"])
def test_compute_loss_func(form, items):
    logits = torch.randn(4, 9, VOCABULARY, dtype=torch.float64, requires_grad=True)
    outputs = {"mapping": {"logits": logits}, "tuple": (logits,), "tensor": logits}[form]
    _, labels = tokens()
    loss = compute_loss_func(TERMS, shift=True)(outputs, labels, num_items_in_batch=items)
    wanted = expected(logits, labels, TERMS, items)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (loss, wanted)))


def test_of_a_classifier():
    logits = torch.randn(6, 3, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, -100, 1, 0])
    compute = compute_loss_func(ak.GCE(), shift=False, class_scale=2.0)
    torch.testing.assert_close(compute((logits,), labels), ak.robust_loss(logits, labels, ak.GCE()))
    of_tokens = compute(logits.reshape(2, 3, 3), labels.reshape(2, 3), 5)
    torch.testing.assert_close(of_tokens, ak.robust_loss(logits, labels, ak.GCE()))
    pooled = loss_function(ak.GCE())(torch.zeros(1), labels, pooled_logits=logits)
    torch.testing.assert_close(pooled, ak.robust_loss(logits, labels, ak.GCE()))


def test_logits_are_not_copied():
    given = torch.randn(2, 9, VOCABULARY, requires_grad=True)
    logits = given * 1
    _, labels = tokens(2)
    compute_loss_func(TERMS, shift=True, inplace=True)(logits, labels).backward()
    torch.testing.assert_close(logits.detach(), given.grad)  # which has taken their place


@pytest.mark.parametrize("items", [4, torch.tensor(0), None])
def test_a_batch_without_labels_that_count(items):
    logits = torch.randn(2, 9, VOCABULARY, requires_grad=True)
    loss = compute_loss_func(TERMS, shift=True)(logits, torch.full((2, 9), -100), items)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_refusals_of_logits():
    logits, labels = torch.randn(2, 9, VOCABULARY), torch.zeros(2, 9, dtype=torch.long)
    compute = compute_loss_func(TERMS, shift=True)
    with pytest.raises(TypeError, match="labels must be a tensor of class indices, got None"):
        compute(logits, None)
    with pytest.raises(ValueError, match=r"labels must have shape \(2, 9\).* got \(2, 8\)"):
        compute(logits, labels[:, 1:])
    with pytest.raises(ValueError, match="shift=False for a classifier"):
        compute(logits[0], labels[0])
    with pytest.raises(TypeError, match="reduction is no option here"):
        compute_loss_func(TERMS, reduction="sum")
    with pytest.raises(TypeError, match="unknown option softcap"):
        loss_function(TERMS, softcap=3.0)


# Models


@pytest.mark.parametrize("family", FAMILIES)
def test_cross_entropy_is_the_models_own(family):
    """Of every door, so that shift, divisor, softcap and factor are transformers' own."""
    dtype = torch.float32 if family == "Mixtral" else torch.float64  # its experts know no other
    own, with_function, patched = (tiny(family, dtype) for _ in range(3))
    set_loss_function(with_function, ak.CE())
    patch_model(patched, ak.CE())
    ids, labels = tokens()
    for given in ({}, {"num_items_in_batch": torch.tensor(19)}):
        for model in (own, with_function, patched):
            model.zero_grad()
            output = model(input_ids=ids, labels=labels, use_cache=False, **given)
            output.loss.backward()
            assert type(output) is type(own(input_ids=ids))
            if model is own:
                wanted = output.loss
            assert (output.logits is None) == (model is patched)
            # transformers computes cross entropy in float32.
            torch.testing.assert_close(output.loss, wanted, check_dtype=False)
        for model in (with_function, patched):
            assert_same_grads(model, own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("items", ITEMS.values(), ids=ITEMS)
def test_a_patched_model_has_the_loss_of_its_logits(items):
    model, patched = tiny("Gemma2"), patch_model(tiny("Gemma2"), TERMS)
    ids, labels = tokens()
    given = {} if items is None else {"num_items_in_batch": items}
    for _ in range(2):  # the first forward learns of the softcap
        loss = patched(input_ids=ids, labels=labels, **given).loss
    wanted = expected(model(input_ids=ids).logits, labels, TERMS, items)
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    wanted.backward()
    assert_same_grads(patched, model)


def run_checkpointed(model, ids, labels):
    model.gradient_checkpointing_enable()
    model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
    return model


def run_compiled(model, ids, labels):
    torch._dynamo.reset()
    run = torch.compile(model, backend="aot_eager", fullgraph=True)
    run(input_ids=ids, labels=labels).loss.backward()
    return model


def run_with_a_tuple(model, ids, labels):
    loss, *others = model(ids, None, None, None, None, labels, return_dict=False, use_cache=False)
    loss.backward()
    assert not others
    return model


def run_copy(model, ids, labels):
    other = copy.deepcopy(model)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # the copy has its own
    other(input_ids=ids, labels=labels).loss.backward()
    return other


@pytest.mark.parametrize("run", [run_checkpointed, run_compiled, run_with_a_tuple, run_copy])
def test_ways_to_run(run):
    model = tiny()
    ids, labels = tokens()
    expected(model(input_ids=ids).logits, labels, TERMS).backward()
    assert_same_grads(run(patch_model(tiny(), TERMS), ids, labels), model)


def test_autocast():
    model, patched = tiny(dtype=torch.float32), patch_model(tiny(dtype=torch.float32), ak.CE())
    ids, labels = tokens()
    with torch.autocast("cpu", torch.bfloat16):
        loss = patched(input_ids=ids, labels=labels).loss
        wanted = model(input_ids=ids, labels=labels).loss
    torch.testing.assert_close(loss, wanted, rtol=1e-3, atol=0)
    loss.backward()
    assert patched.lm_head.weight.grad.dtype == torch.float32


def test_a_frozen_head():
    patched = patch_model(tiny(), TERMS)
    patched.lm_head.requires_grad_(False)
    ids, labels = tokens()
    patched(input_ids=ids, labels=labels).loss.backward()
    assert patched.lm_head.weight.grad is None
    assert patched.model.layers[0].mlp.up_proj.weight.grad.any()


def test_without_labels_nothing_changes(tmp_path):
    model, patched = tiny(), patch_model(tiny(), TERMS)
    ids, labels = tokens()
    patched(input_ids=ids, labels=labels)
    torch.testing.assert_close(patched(input_ids=ids).logits, model(input_ids=ids).logits)
    kept = patched(input_ids=ids, logits_to_keep=2).logits
    torch.testing.assert_close(kept, model(input_ids=ids, logits_to_keep=2).logits)
    hidden = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(patched.lm_head(hidden), model.lm_head(hidden))
    patched.eval(), model.eval()
    sampled = [m.generate(ids[:1], max_new_tokens=4, do_sample=False) for m in (patched, model)]
    assert sampled[0].tolist() == sampled[1].tolist()

    assert patched.state_dict().keys() == model.state_dict().keys()
    patched.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)

    unpatch_model(patched)
    output = patched(input_ids=ids, labels=labels)
    torch.testing.assert_close(output.logits, model(input_ids=ids).logits)
    torch.testing.assert_close(output.loss, model(input_ids=ids, labels=labels).loss)
    assert not patched._forward_hooks
    assert not patched.lm_head._forward_pre_hooks


def test_evaluation_says_that_there_are_no_logits(caplog):
    from anl_kernels.integrations import fused_head

    fused_head._tell_that_there_are_no_logits.cache_clear()
    ids, labels = tokens()
    patched, keeping = patch_model(tiny(), TERMS), patch_model(tiny(), TERMS, fuse_in_eval=False)
    output = keeping.eval()(input_ids=ids, labels=labels)
    assert not caplog.records
    torch.testing.assert_close(output.loss, expected(output.logits, labels, TERMS))
    for _ in range(2):
        without = patched.eval()(input_ids=ids, labels=labels)
        assert without.logits is None
        assert "logits" not in without
        torch.testing.assert_close(without.loss, output.loss)
    assert len(caplog.records) == 1
    assert keeping.train()(input_ids=ids, labels=labels).logits is None


def test_a_failed_forward_leaves_nothing_behind():
    patched = patch_model(tiny(), TERMS)
    ids, labels = tokens()
    with pytest.raises(ValueError, match="pass no logits_to_keep with labels"):
        patched(input_ids=ids, labels=labels, logits_to_keep=3)
    hidden = torch.randn(2, 8, dtype=torch.float64)
    torch.testing.assert_close(patched.lm_head(hidden), F.linear(hidden, patched.lm_head.weight))


def test_fsdp_as_a_whole():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, patched = tiny(), patch_model(tiny(), TERMS)
    ids, labels = tokens()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for layer in patched.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(patched, mesh=mesh)
        for _ in range(2):
            patched.zero_grad()
            patched(input_ids=ids, labels=labels).loss.backward()
        expected(model(input_ids=ids).logits, labels, TERMS).backward()
        wanted = grads(model)
        for name, grad in grads(patched).items():
            torch.testing.assert_close(grad.full_tensor(), wanted[name])
    finally:
        dist.destroy_process_group()


class LoraLinear(nn.Linear):
    def forward(self, hidden):
        return 2 * super().forward(hidden)


def with_head(head):
    model = tiny()
    model.set_output_embeddings(head)
    return model


def refused_models():
    from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

    small = {"vocab_size": 9, "hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 1}
    t5 = T5Config(vocab_size=9, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=1)
    yield nn.Linear(2, 3), "must be a PreTrainedModel of transformers, got Linear"
    yield (
        with_head(nn.Sequential()),
        "LlamaForCausalLM cannot be patched: head must be an nn.Linear",
    )
    yield with_head(LoraLinear(8, VOCABULARY)), "a plain nn.Linear, got LoraLinear"
    yield BertForMaskedLM(BertConfig(num_hidden_layers=1, **small)), "does not compute the loss of"
    yield T5ForConditionalGeneration(t5), "does not compute the loss of"
    other = tiny()
    other.loss_function = loss_function(TERMS)
    yield other, "has a loss set already"


def test_refused_models():
    for model, message in refused_models():
        with pytest.raises(TypeError, match=message):
            patch_model(model, TERMS)


def test_refusals():
    ids, labels = tokens()
    model = tiny()
    with pytest.raises(ValueError, match="model must be patched, got LlamaForCausalLM without"):
        unpatch_model(model)
    for option in ("logit_softcap", "reduction", "return_aux"):
        with pytest.raises(TypeError, match=f"{option} is no option here"):
            patch_model(model, TERMS, **{option: None})
    with pytest.raises(TypeError, match="unknown option inplace"):
        patch_model(model, TERMS, inplace=True)
    assert not model._forward_hooks
    patch_model(model, TERMS)
    with pytest.raises(ValueError, match="must not be patched already"):
        patch_model(model, TERMS)
    model.set_output_embeddings(nn.Linear(8, VOCABULARY, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="was replaced after patch_model"):
        model(input_ids=ids, labels=labels)
    with pytest.raises(RuntimeError, match=r"cannot be run by nn\.DataParallel"):
        patch_model(tiny(), TERMS)._replicate_for_data_parallel()(input_ids=ids, labels=labels)


@pytest.mark.parametrize("name", ["transformers", "transformers.loss.loss_utils"])
def test_without_transformers(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "anl_kernels.integrations.fused_head", raising=False)
    with pytest.raises(ImportError, match=r"pip install anl-kernels\[transformers\]"):
        patch_model(nn.Linear(2, 2), TERMS)
    assert compute_loss_func(TERMS, shift=True)(torch.randn(1, 2, 5), torch.tensor([[0, 3]])) > 0


def test_nothing_else_imports_the_integrations():
    package = Path(ak.__file__).parent
    for path in package.rglob("*.py"):
        if path.parent.name != "integrations":
            assert "integrations" not in path.read_text(encoding="utf-8"), path
