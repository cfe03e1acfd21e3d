"""Adapters of peft on a patched model, before and after, and heads that cannot be fused."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

import anl_kernels as ak
from anl_kernels.integrations.transformers import patch_model, set_loss_function

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

from tests.integrations.models import VOCABULARY, tiny, tokens  # noqa: E402

TERMS = 1.0 * ak.GCE(0.7) + 2.0 * ak.NCE()
IDS, LABELS = tokens()
ELSEWHERE = {
    "lora": peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    "dora": peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True),
    "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}
TRAINED_HEAD = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
ON_THE_HEAD = {
    "lora": peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"]),
    "dora": peft.LoraConfig(r=2, target_modules=["lm_head"], use_dora=True),
}


def adapted(config, door=lambda model: model, first=False):
    """A model with adapters and a door, which is opened first or last."""
    model = door(tiny()) if first else tiny()
    torch.manual_seed(3)
    model = peft.get_peft_model(model, copy.deepcopy(config)).double()
    if not first:
        door(model.get_base_model())
    return model


def patched(model):
    return patch_model(model, TERMS)


def with_function(model):
    return set_loss_function(model, TERMS)


def assert_same_steps(one, other, ids=IDS, labels=LABELS):
    losses = [model(input_ids=ids, labels=labels).loss for model in (one, other)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    trained = {n: p.grad for n, p in other.named_parameters() if p.requires_grad}
    assert trained
    for name, parameter in one.named_parameters():
        assert (parameter.grad is not None) == (name in trained)
        if name in trained:
            torch.testing.assert_close(parameter.grad, trained[name])


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("config", ELSEWHERE.values(), ids=ELSEWHERE)
def test_adapters_elsewhere(config, first):
    one = adapted(config, patched, first)
    assert_same_steps(one, adapted(config, with_function))
    assert one(input_ids=IDS, labels=LABELS).logits is None


def test_a_head_that_is_trained_beside_the_adapters():
    one = adapted(TRAINED_HEAD, patched)
    assert_same_steps(one, adapted(TRAINED_HEAD, with_function))
    assert one.base_model.model.lm_head.modules_to_save["default"].weight.grad.any()
    with one.disable_adapter(), pytest.raises(RuntimeError, match="was replaced after patch_model"):
        one(input_ids=IDS, labels=LABELS)
    late = adapted(TRAINED_HEAD, patched, first=True)
    with pytest.raises(RuntimeError, match=r"by peft\..*ModulesToSaveWrapper .*unpatch_model"):
        late(input_ids=IDS, labels=LABELS)
    with pytest.raises(TypeError, match=r"wrapper of peft; .*head.modules_to_save\['default'\]"):
        ak.LinearRobustLoss(one.base_model.model.lm_head, TERMS)


@pytest.mark.parametrize("config", ON_THE_HEAD.values(), ids=ON_THE_HEAD)
def test_adapters_on_the_head(config):
    early = adapted(config, patched, first=True)
    with pytest.raises(RuntimeError, match=r"by peft\.tuners\.lora.* take the head out of"):
        early(input_ids=IDS, labels=LABELS)
    model = adapted(config)
    for refused in (model.get_base_model().lm_head, model.base_model.model.lm_head):
        with pytest.raises(TypeError, match=r"got peft\.tuners\.lora.*merge_and_unload.*logits"):
            ak.LinearRobustLoss(refused, TERMS)
    with pytest.raises(TypeError, match=r"cannot be patched: head must be.*set_loss_function"):
        patched(model.get_base_model())
    with pytest.raises(TypeError, match=r"of a PeftModel: model\.get_base_model\(\)"):
        patched(model)
    # The two ways out.
    assert adapted(config, with_function)(input_ids=IDS, labels=LABELS).loss.isfinite()
    assert patched(model.merge_and_unload())(input_ids=IDS, labels=LABELS).loss.isfinite()


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
def test_the_trainer(first, tmp_path):
    """Accumulated gradients of adapters, with both doors."""
    pytest.importorskip("accelerate")
    from tests.integrations.test_trainer import trainer_of

    config, runs = ELSEWHERE["lora"], []
    for model in (adapted(config, patched, first), adapted(config, with_function)):
        trainer = trainer_of(model, tmp_path)
        trainer.train()
        runs.append({n: p for n, p in model.named_parameters() if p.requires_grad})
    start = dict(adapted(config).named_parameters())
    assert runs[0].keys() == runs[1].keys()
    for name, parameter in runs[0].items():
        torch.testing.assert_close(parameter, runs[1][name], rtol=1e-7, atol=1e-9)
        assert not torch.equal(parameter, start[name])


# Heads of other libraries


def test_a_quantised_head():
    head = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 5)), {nn.Linear})[0]
    with pytest.raises(TypeError, match=r"torch\.ao\.nn\.quantized.*which is quantised; leave"):
        ak.LinearRobustLoss(head, TERMS)


def test_a_head_that_is_quantised_by_its_weight():
    """As torchao does it; here with a tensor of PyTorch's own tests."""
    from torch.testing._internal.two_tensor import TwoTensor

    head = nn.Linear(4, 5)
    loss = ak.LinearRobustLoss(head, TERMS)
    head.weight = nn.Parameter(TwoTensor(head.weight.detach(), head.weight.detach()))
    for run in (
        lambda: ak.LinearRobustLoss(head, TERMS),
        lambda: loss(torch.randn(3, 4), torch.tensor([0, 1, 2])),
    ):
        with pytest.raises(TypeError, match=r"plain tensor for its weight, got .*TwoTensor"):
            run()


def test_a_head_with_tensor_parallelism_of_transformers():
    parallel = pytest.importorskip("transformers.distributed.tensor_parallel")
    from torch.distributed.device_mesh import init_device_mesh

    model = tiny()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("tp",))
        style = parallel.ColwiseParallel(output_layouts=parallel.Replicate())
        style.shard_param(model.lm_head, "weight", mesh)
        style.install_forward(model.lm_head, mesh)
        with pytest.raises(TypeError, match=r"for tensor parallelism \(tp_plan of transformers\)"):
            patched(model)
    finally:
        dist.destroy_process_group()


def test_a_head_of_a_deepspeed_engine():
    """What ZeRO-3 leaves on a head: no elements, its own attributes, hooks that gather."""
    model = tiny()
    weight = model.lm_head.weight
    weight.ds_id, weight.ds_shape = 0, weight.shape
    weight.data = torch.empty(0, dtype=weight.dtype)
    handle = model.lm_head.register_forward_pre_hook(lambda head, args: None)
    with pytest.raises(TypeError, match=r"before deepspeed\.initialize"):
        patched(model)
    handle.remove()
    with pytest.raises(ValueError, match=r"linear_weight must have shape \(K, D\), got .*ZeRO-3"):
        patched(model).loss_function.loss.mean(torch.zeros(1, 8).double(), torch.tensor([0]))
    assert weight.ds_shape[0] == VOCABULARY
