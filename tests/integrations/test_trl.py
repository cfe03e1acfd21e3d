"""RobustSFTTrainer against TRL's own SFTTrainer: losses, weights, metrics."""

import copy
import functools
import re
from pathlib import Path

import pytest
import torch

import anl_kernels as ak

datasets = pytest.importorskip("datasets")
peft = pytest.importorskip("peft")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
pytestmark = pytest.mark.filterwarnings("ignore")

from anl_kernels.integrations import trl as door  # noqa: E402
from anl_kernels.integrations.transformers import (  # noqa: E402
    patch_model,
    set_loss_function,
    unpatch_model,
)
from anl_kernels.integrations.trl import RobustSFTTrainer  # noqa: E402
from tests.integrations.models import VOCABULARY, tiny  # noqa: E402

ROOT = Path(ak.__file__).parents[1]
WORDS = [f"w{i}" for i in range(VOCABULARY - 4)]
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }} "
    "</s>{% endgeneration %}{% else %}{{ m['content'] }} {% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """Of words, made here."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *WORDS]
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=CHAT,
    )


def some_words(generator, least=2, most=7):
    number = int(torch.randint(least, most, (1,), generator=generator))
    places = torch.randint(len(WORDS), (number,), generator=generator)
    return " ".join(WORDS[place] for place in places)


def examples(kind, number=8):
    generator = torch.Generator().manual_seed(5)
    made = []
    for _ in range(number):
        first, second = some_words(generator), some_words(generator)
        if kind == "text":
            made.append({"text": f"{first} {second}"})
        elif kind == "completion":
            made.append({"prompt": first, "completion": f" {second}"})
        else:
            turns = ("user", first), ("assistant", second), ("user", second), ("assistant", first)
            made.append({"messages": [{"role": r, "content": c} for r, c in turns]})
    return datasets.Dataset.from_list(made)


FORMS = {
    "plain": ("text", {}),
    "completions": ("completion", {}),
    "assistants": ("messages", {"assistant_only_loss": True}),
    "packed": ("text", {"packing": True, "max_length": 16}),
    "padding-free": ("text", {"padding_free": True, "max_length": None}),
    "checkpointed": ("text", {"gradient_checkpointing": True}),
}


def trained(trainer, model, tokenizer, directory, form="plain", evaluates=True, **options):
    """The trainer after two steps of two accumulated batches; and evaluation."""
    kind, of_form = FORMS[form]
    of_trainer = {k: options.pop(k) for k in ("terms", "peft_config", "weight") if k in options}
    arguments = {
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": False,
        "max_steps": 2,
        "learning_rate": 0.5,
        "max_grad_norm": 0.0,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "seed": 3,
    }
    args = trl.SFTConfig(str(directory), **(arguments | of_form | options))
    data = examples(kind)
    made = trainer(
        model,
        args,
        train_dataset=data,
        eval_dataset=data.select(range(5)),
        processing_class=tokenizer,
        **of_trainer,
    )
    made.train()
    made.found = made.evaluate() if evaluates else {}
    return made


def assert_same(one, other, tolerance=1e-6):
    """Weights, logged losses and metrics."""
    assert_same_weights(one, other, tolerance)
    logs = [*one.state.log_history, one.found], [*other.state.log_history, other.found]
    for ours, wanted in zip(*logs, strict=True):
        assert ours.keys() == wanted.keys()
        for name in ours:
            if "runtime" not in name and "per_second" not in name:
                torch.testing.assert_close(ours[name], wanted[name], rtol=1e-4, atol=1e-4, msg=name)


def assert_same_weights(one, other, tolerance=1e-6):
    pairs = zip(one.model.named_parameters(), other.model.named_parameters(), strict=True)
    for (name, ours), (_, wanted) in pairs:
        torch.testing.assert_close(ours, wanted, rtol=tolerance, atol=tolerance, msg=name)


def model_of(family="Llama"):
    model = tiny(family, torch.float32)
    if getattr(model.config, "pad_token_id", 0) is None:
        model.config.pad_token_id = 0
    return model


@pytest.mark.parametrize("form", FORMS)
def test_cross_entropy_is_trls_own(form, tokenizer, tmp_path):
    ours = trained(RobustSFTTrainer, model_of(), tokenizer, tmp_path, form, terms=ak.CE())
    assert_same(ours, trained(trl.SFTTrainer, model_of(), tokenizer, tmp_path, form))
    logged = ours.state.log_history[0]
    assert logged.keys() >= {"loss", "entropy", "mean_token_accuracy", "num_tokens"}
    assert ours.found.keys() >= {"eval_loss", "eval_entropy", "eval_mean_token_accuracy"}


def test_dft_is_trls_own(tokenizer, tmp_path):
    ours = trained(RobustSFTTrainer, model_of(), tokenizer, tmp_path, terms=ak.DFT())
    theirs = trained(trl.SFTTrainer, model_of(), tokenizer, tmp_path, loss_type="dft")
    assert_same(ours, theirs)


@pytest.mark.parametrize("family", ["Llama-tied", "Gemma2", "Granite", "Cohere", "Mixtral"])
def test_families(family, tokenizer, tmp_path):
    """Softcaps, factors on logits, and the loss of a router, which is averaged over batches."""
    models = [model_of(family) for _ in range(2)]
    ours = trained(RobustSFTTrainer, models[0], tokenizer, tmp_path, terms=ak.CE())
    assert_same(ours, trained(trl.SFTTrainer, models[1], tokenizer, tmp_path))
    if family == "Mixtral":
        assert ours.state.log_history[0]["aux_loss"] > 0


def test_bfloat16(tokenizer, tmp_path):
    options = {"bf16": True, "evaluates": False}
    ours = trained(RobustSFTTrainer, model_of(), tokenizer, tmp_path, terms=ak.CE(), **options)
    theirs = trained(trl.SFTTrainer, model_of(), tokenizer, tmp_path, **options)
    torch.testing.assert_close(
        ours.state.log_history[0]["loss"], theirs.state.log_history[0]["loss"], rtol=0.02, atol=0
    )


def test_adapters(tokenizer, tmp_path):
    runs = []
    for trainer, options in ((RobustSFTTrainer, {"terms": ak.CE()}), (trl.SFTTrainer, {})):
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
        options = {"peft_config": config, **options}
        runs.append(trained(trainer, model_of(), tokenizer, tmp_path, **options))
    assert_same(*runs)


def test_accumulated_batches_are_one_batch(tokenizer, tmp_path):
    """Of any terms and class weights: the sum over tokens, divided by the number of them all."""
    weight = torch.rand(VOCABULARY) + 0.5
    terms = ak.GCE(q=0.7) + 0.5 * ak.NCE()
    options = {"terms": terms, "weight": weight, "max_steps": 1, "evaluates": False}
    sizes = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    model = model_of()
    before = copy.deepcopy(model)
    parts = trained(
        RobustSFTTrainer,
        model,
        tokenizer,
        tmp_path,
        "completions",
        **(options | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}),
    )
    whole = trained(
        RobustSFTTrainer, model_of(), tokenizer, tmp_path, "completions", **(options | sizes)
    )
    assert_same_weights(parts, whole)
    batch = whole.data_collator([whole.train_dataset[i] for i in range(8)])
    labels = batch.pop("labels")[:, 1:]
    logits = before(**batch).logits[:, :-1]
    loss = ak.robust_loss(
        logits.flatten(0, 1), labels.flatten(), terms, weight=weight, reduction="sum"
    )
    counted = int((labels != -100).sum())
    torch.testing.assert_close(
        whole.state.log_history[0]["loss"], loss.item() / counted, rtol=1e-4, atol=1e-4
    )


def test_no_logits_are_made(tokenizer, tmp_path):
    made, model = [], model_of()
    trainer = trained(RobustSFTTrainer, model, tokenizer, tmp_path, terms=ak.GCE())
    handle = model.lm_head.register_forward_pre_hook(lambda _, args: made.append(args[0].numel()))
    batch = trainer.data_collator([trainer.train_dataset[0]])
    trainer.compute_loss(model, dict(batch))
    assert made == [0]
    handle.remove()


def test_logits_where_they_are_asked_for(tokenizer, tmp_path):
    model = model_of()
    trainer = trained(RobustSFTTrainer, model, tokenizer, tmp_path, terms=ak.GCE())
    batch = trainer.data_collator([trainer.train_dataset[0]])
    _, outputs = trainer.compute_loss(model, dict(batch), return_outputs=True)
    assert outputs.logits.shape == (*batch["input_ids"].shape, VOCABULARY)
    _, logits, _ = trainer.prediction_step(model, dict(batch), prediction_loss_only=False)
    torch.testing.assert_close(logits, outputs.logits)
    assert model.generate(batch["input_ids"], max_new_tokens=2).shape[1] > 2
    labelled = model(**batch)  # not TRL's call: the model's own loss
    shifted = labelled.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    torch.testing.assert_close(labelled.loss, torch.nn.functional.cross_entropy(*shifted))


def test_a_batch_without_labels_that_count(tokenizer, tmp_path):
    model = model_of()
    trainer = trained(RobustSFTTrainer, model, tokenizer, tmp_path, terms=ak.GCE())
    batch = dict(trainer.data_collator([trainer.train_dataset[0]]))
    batch["labels"] = torch.full_like(batch["labels"], -100)
    model.zero_grad()
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    assert loss == 0
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_another_trainer_of_the_same_model(tokenizer, tmp_path):
    model, other = model_of(), model_of()
    for terms in (ak.CE(), ak.MAE()):
        last = trained(RobustSFTTrainer, model, tokenizer, tmp_path, terms=terms)
    trained(trl.SFTTrainer, other, tokenizer, tmp_path)
    assert_same(last, trained(RobustSFTTrainer, other, tokenizer, tmp_path, terms=ak.MAE()))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"loss_type": "dft"}, ValueError, "loss_type must be left at 'nll'.*ak.DFT"),
        ({"label_smoothing_factor": 0.1}, ValueError, "label_smoothing_factor must be 0"),
        ({"terms": 3}, TypeError, "terms must be a term"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refusals(options, kind, message, tokenizer, tmp_path):
    with pytest.raises(kind, match=message):
        trained(RobustSFTTrainer, model_of(), tokenizer, tmp_path, **({"terms": ak.CE()} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore_index": 0}, "ignore_index is no option here"),
        ({"reduction": "sum"}, "reduction is no option here"),
        ({"logit_softcap": 1.0}, "logit_softcap is no option here"),
        ({"compute_loss_func": print}, "compute_loss_func goes with no terms"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_options_that_are_not(options, message, tokenizer, tmp_path):
    args = trl.SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[])
    with pytest.raises(TypeError, match=message):
        RobustSFTTrainer(
            model_of(),
            args,
            terms=ak.CE(),
            train_dataset=examples("text"),
            processing_class=tokenizer,
            **options,
        )


def test_models_with_a_loss_that_is_set(tokenizer, tmp_path):
    model = patch_model(model_of(), ak.GCE())
    with pytest.raises(ValueError, match="model must not be patched"):
        trained(RobustSFTTrainer, model, tokenizer, tmp_path, terms=ak.CE())
    model = set_loss_function(model_of(), ak.GCE())
    with pytest.raises(TypeError, match="has a loss set already"):
        trained(RobustSFTTrainer, model, tokenizer, tmp_path, terms=ak.CE())


def test_the_model_is_what_it_was_to_all_others(tokenizer, tmp_path):
    model, other = model_of(), model_of()
    trained(RobustSFTTrainer, model, tokenizer, tmp_path, terms=ak.GCE())
    other.load_state_dict(model.state_dict())
    labels = torch.arange(12).view(2, 6) % VOCABULARY
    with torch.no_grad():
        assert torch.equal(
            model(input_ids=labels, labels=labels).loss, other(input_ids=labels, labels=labels).loss
        )
    trainers = [trained(trl.SFTTrainer, m, tokenizer, tmp_path) for m in (model, other)]
    assert_same(*trainers, tolerance=0)
    copy.deepcopy(model)


def test_a_model_that_was_unpatched(tokenizer, tmp_path):
    made = trained(RobustSFTTrainer, model_of(), tokenizer, tmp_path, terms=ak.GCE())
    unpatch_model(made.model)
    with pytest.raises(RuntimeError, match=r"was unpatched.*make the RobustSFTTrainer anew"):
        made.train()


def changed(monkeypatch, compute_loss):
    monkeypatch.setattr(trl.SFTTrainer, "compute_loss", compute_loss)


def test_the_example_of_the_document(tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    on_a_cpu = functools.partial(trl.SFTConfig, use_cpu=True, bf16=False, report_to=[])
    monkeypatch.setattr(trl, "SFTConfig", on_a_cpu)
    text = (ROOT / "docs" / "language_models.md").read_text(encoding="utf-8")
    code = re.search(r"^## TRL$.*?^```py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[1]
    model = model_of()
    before = copy.deepcopy(model.state_dict())
    exec(code, {"model": model, "data": examples("text"), "tokenizer": tokenizer})
    assert any(not torch.equal(after, before[n]) for n, after in model.state_dict().items())


def test_a_later_trl_that_does_not_ask(tokenizer, tmp_path, monkeypatch):
    changed(monkeypatch, transformers.Trainer.compute_loss)
    with pytest.raises(RuntimeError, match=r"TRL 1\.16.*has not called the model with fused_lm_h"):
        trained(RobustSFTTrainer, model_of(), tokenizer, tmp_path, terms=ak.CE())


def test_a_later_trl_with_another_reduction(tokenizer, tmp_path, monkeypatch):
    original = trl.SFTTrainer.compute_loss

    def doubled(self, *args, **kwargs):
        return 2 * original(self, *args, **kwargs)

    changed(monkeypatch, doubled)
    for terms in (ak.CE(), 1e-6 * ak.NCE()):  # at many classes losses are as small
        with pytest.raises(RuntimeError, match=r"made .* of token losses that stand for"):
            trained(RobustSFTTrainer, model_of(), tokenizer, tmp_path, terms=terms)


def test_a_later_trl_with_other_outputs(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(door, "_FOUND", ("log_probs", "nothing"))
    with pytest.raises(RuntimeError, match="FusedCausalLMOutput has no nothing"):
        trained(RobustSFTTrainer, model_of(), tokenizer, tmp_path, terms=ak.CE())
