"""Whoever takes the loss that is set on a model away ends in an error, in whatever order.

With the real TRL, Liger (in Triton's interpreter), peft and Trainer.
"""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

import anl_kernels as ak
from anl_kernels.integrations.transformers import (
    compute_loss_func,
    patch_model,
    set_loss_function,
    unpatch_model,
)

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

from tests.integrations.models import SIZE, tiny, tokens  # noqa: E402

TERMS = ak.MAE()  # at most 1, where cross entropy is about 4
IDS, LABELS = tokens()
EXAMPLES = [{"input_ids": i, "labels": y} for i, y in zip(IDS, LABELS, strict=True)]
DOORS = [set_loss_function, patch_model]
ARGS = {
    "per_device_train_batch_size": 4,
    "max_steps": 1,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
}


def model_of(door):
    return door(tiny(dtype=torch.float32), TERMS)


def train(model, directory, trainer=transformers.Trainer, others=None, **args):
    """The loss of the first step."""
    args = transformers.TrainingArguments(str(directory), **ARGS | args)
    trained = trainer(model, args, train_dataset=EXAMPLES, **others or {})
    trained.train()
    return trained.state.log_history[0]["loss"]


def wanted():
    logits = tiny(dtype=torch.float32)(input_ids=IDS).logits[:, :-1]
    return ak.robust_loss(logits.flatten(0, 1), LABELS[:, 1:].flatten(), TERMS).item()


# Trainer


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("door", DOORS)
def test_label_smoothing(door, compiled, tmp_path):
    options = {"torch_compile": True, "torch_compile_backend": "eager"} if compiled else {}
    with pytest.raises(RuntimeError, match=r"takes the labels out for label_smoothing_factor=0\.1"):
        train(model_of(door), tmp_path, label_smoothing_factor=0.1, **options)
    torch._dynamo.reset()


@pytest.mark.parametrize("door", DOORS)
def test_another_loss_of_the_trainer(door, tmp_path):
    others = {"compute_loss_func": compute_loss_func(TERMS)}
    with pytest.raises(RuntimeError, match="takes the labels out for its compute_loss_func"):
        train(model_of(door), tmp_path, others=others)


@pytest.mark.parametrize("door", DOORS)
def test_evaluation_by_another_loss(door, tmp_path):
    args = transformers.TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, **ARGS)
    trainer = transformers.Trainer(model_of(door), args, eval_dataset=EXAMPLES)
    with pytest.raises(RuntimeError, match=r"label_smoothing_factor=0\.1, and trains smoothed"):
        trainer.evaluate()


class WithTeacher(transformers.Trainer):
    """Calls another model, which it does not train."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with torch.no_grad():
            self.teacher(input_ids=inputs["input_ids"])
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


@pytest.mark.parametrize("door", DOORS)
def test_a_teacher_is_not_trained(door, tmp_path):
    WithTeacher.teacher = model_of(door).eval()
    assert train(tiny(dtype=torch.float32), tmp_path, WithTeacher, label_smoothing_factor=0.1) > 1


class OwnLoss(transformers.Trainer):
    """As many users write one."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        return F.cross_entropy(model(**inputs).logits[:, :-1].transpose(1, 2), labels[:, 1:])


class Consistent(transformers.Trainer):
    """The model's loss and something of its logits."""

    labels_first = True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ids = {"input_ids": inputs["input_ids"]}
        extra = None if self.labels_first else model(**ids).logits
        loss = model(**inputs, num_items_in_batch=num_items_in_batch).loss
        extra = model(**ids).logits if extra is None else extra
        return loss + 0 * extra.sum()


class ConsistentLater(Consistent):
    labels_first = False


@pytest.mark.parametrize("door", DOORS)
def test_trainers_with_a_loss_of_their_own(door, tmp_path):
    with pytest.raises(RuntimeError, match="calls it without labels and trains a loss of its own"):
        train(model_of(door), tmp_path, OwnLoss)
    for trainer in Consistent, ConsistentLater:
        options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
        assert train(model_of(door), tmp_path, trainer, **options) < 1.0


@pytest.mark.parametrize("door", DOORS)
def test_a_loop_without_labels_says_so(door, caplog):
    from anl_kernels.integrations import watch

    watch._tell_that_there_is_no_loss.cache_clear()
    model = model_of(door)
    model(input_ids=IDS, labels=LABELS)
    with torch.no_grad():
        model(input_ids=IDS)
    model.eval()(input_ids=IDS)
    assert not caplog.records
    model.train()
    for _ in range(2):
        model(input_ids=IDS).logits.sum().backward()
    (record,) = caplog.records
    assert "in training without labels" in record.message


# Liger


def apply_liger(model=None, **others):
    """Its loss alone: Triton's interpreter does not run all of its kernels."""
    liger = pytest.importorskip("liger_kernel.transformers")
    liger.apply_liger_kernel_to_llama(
        rope=False, rms_norm=False, swiglu=False, model=model, **others
    )
    return model


LIGER = {"rope": False, "rms_norm": False, "swiglu": False}


@pytest.fixture
def liger_class(monkeypatch):
    """Patches the class, which is whole again after the test."""
    own = transformers.LlamaForCausalLM
    monkeypatch.setattr(own, "forward", own.forward)
    return apply_liger


@pytest.mark.parametrize("door", DOORS)
def test_liger_after_the_door(door, tmp_path):
    with pytest.raises(RuntimeError, match=r"is passed over: its forward is that of liger_kernel"):
        apply_liger(model_of(door))(input_ids=IDS, labels=LABELS)
    with pytest.raises(RuntimeError, match="'fused_linear_cross_entropy': False"):
        train(model_of(door), tmp_path, use_liger_kernel=True, liger_kernel_config=LIGER)


@pytest.mark.parametrize("door", DOORS)
def test_liger_before_the_door(door):
    with pytest.raises(RuntimeError, match=r"would be passed over: its forward is that of liger"):
        door(apply_liger(tiny(dtype=torch.float32)), TERMS)


@pytest.mark.parametrize("door", DOORS)
def test_liger_on_the_class(door, liger_class):
    model = model_of(door)
    liger_class()
    with pytest.raises(RuntimeError, match="is passed over: its forward is that of liger_kernel"):
        model(input_ids=IDS, labels=LABELS)
    with pytest.raises(RuntimeError, match="would be passed over"):
        model_of(door)


@pytest.mark.parametrize("door", DOORS)
def test_liger_without_its_loss(door, tmp_path):
    config = LIGER | {"fused_linear_cross_entropy": False}
    found = train(model_of(door), tmp_path, use_liger_kernel=True, liger_kernel_config=config)
    assert found == pytest.approx(wanted(), rel=1e-4)


def test_compute_loss_func_beside_liger(tmp_path):
    """Without labels Liger's forward returns logits."""
    others = {"compute_loss_func": compute_loss_func(TERMS)}
    model = tiny(dtype=torch.float32)
    found = train(model, tmp_path, others=others, use_liger_kernel=True, liger_kernel_config=LIGER)
    assert found == pytest.approx(wanted(), rel=1e-4)


# TRL

KEYWORDS = "compute_loss_func", "peft_config", "ref_model"


def trl_trainer(kind, model, directory, **options):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({f"w{i}": i for i in range(37)}, unk_token="w2")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w2"
    )
    others = {name: options.pop(name) for name in KEYWORDS if name in options}
    pairs = {"prompt": "w3 w4 ", "chosen": "w5 w9", "rejected": "w6 w8"}
    row = {"SFT": {"prompt": "w3 w4 ", "completion": "w5 w9 w7"}}.get(kind, pairs)
    args = getattr(trl, f"{kind}Config")(str(directory), bf16=False, **ARGS | options)
    return getattr(trl, f"{kind}Trainer")(
        model,
        args=args,
        train_dataset=datasets.Dataset.from_list([row] * 4),
        processing_class=tokenizer,
        **others,
    )


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
@pytest.mark.parametrize("door", DOORS)
def test_sft_of_trl(door, loss_type, tmp_path):
    trainer = trl_trainer("SFT", model_of(door), tmp_path, loss_type=loss_type)
    with pytest.raises(
        RuntimeError, match=r"is passed over: its forward is that of trl.*; train with"
    ):
        trainer.train()
    with pytest.raises(RuntimeError, match=r"would be passed over: its forward is that of trl"):
        door(unset(trainer.model, door), TERMS)


def unset(model, door):
    if door is patch_model:
        return unpatch_model(model)
    del model._loss_function
    return model


@pytest.mark.parametrize("door", DOORS)
def test_sft_with_adapters(door, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = trl_trainer("SFT", model_of(door), tmp_path, peft_config=config)
    with pytest.raises(RuntimeError, match="is passed over: its forward is that of trl"):
        trainer.train()


@pytest.mark.parametrize(
    "options", [{"label_smoothing_factor": 0.1}, {"compute_loss_func": "ours"}]
)
@pytest.mark.parametrize("door", DOORS)
def test_sft_with_another_loss(door, options, tmp_path):
    if "compute_loss_func" in options:
        options = {"compute_loss_func": compute_loss_func(TERMS)}
    trainer = trl_trainer("SFT", model_of(door), tmp_path, **options)
    with pytest.raises(RuntimeError, match="the Trainer takes the labels out for"):
        trainer.train()


@pytest.mark.parametrize("door", DOORS)
def test_preferences_of_trl(door, tmp_path):
    with pytest.raises(RuntimeError, match="is passed over: its forward is that of trl"):
        trl_trainer("DPO", model_of(door), tmp_path, ref_model=tiny(dtype=torch.float32)).train()


def test_rewards_of_trl(tmp_path):
    config = transformers.LlamaConfig(**SIZE, num_labels=1)
    model = set_loss_function(transformers.LlamaForSequenceClassification(config), TERMS)
    with pytest.raises(RuntimeError, match="calls it without labels and trains a loss of its own"):
        trl_trainer("Reward", model, tmp_path).train()


def test_the_way_that_works_in_trl(tmp_path):
    model = tiny(dtype=torch.float32)
    ids = torch.tensor([[3, 4, 5, 9, 7, 1]])
    logits = model(input_ids=ids).logits[:, 1:-1].flatten(0, 1)  # of the completion
    right = ak.robust_loss(logits, ids[0, 2:], TERMS).item()
    trainer = trl_trainer("SFT", model, tmp_path, compute_loss_func=compute_loss_func(TERMS))
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(right, rel=1e-4)


# What goes on working


def replace_forward(model):
    model.forward = lambda **given: transformers.modeling_outputs.CausalLMOutputWithPast(
        loss=torch.zeros(()), logits=None
    )
    return model


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("door", DOORS)
def test_copies_are_watched_too(door, again):
    model = replace_forward(again(model_of(door)))
    with pytest.raises(RuntimeError, match=r"its forward is that of tests\.integrations"):
        model(input_ids=IDS, labels=LABELS)


def test_a_loss_that_was_deleted_is_not_watched():
    model = model_of(set_loss_function)
    del model._loss_function
    own = tiny(dtype=torch.float32)(input_ids=IDS, labels=LABELS).loss
    torch.testing.assert_close(model(input_ids=IDS, labels=LABELS).loss, own)
    assert replace_forward(model)(input_ids=IDS, labels=LABELS).loss == 0
    for _ in range(2):  # hooks do not pile up
        set_loss_function(model, TERMS)
    assert len(model._forward_hooks) == len(model._forward_pre_hooks) == 1


def test_compiled_whole():
    model = model_of(set_loss_function)
    right = model(input_ids=IDS, labels=LABELS, use_cache=False).loss
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = compiled(input_ids=IDS, labels=LABELS, use_cache=False).loss
    torch.testing.assert_close(found, right)
    torch._dynamo.reset()


@pytest.mark.parametrize("door", DOORS)
def test_mixed_precision_of_the_trainer(door, tmp_path):
    """For which accelerate replaces the forward by one that calls it."""
    assert train(model_of(door), tmp_path, bf16=True) == pytest.approx(wanted(), rel=1e-2)
