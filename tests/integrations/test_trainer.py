"""The Trainer of transformers with the losses: accumulated gradients and evaluation."""

import numpy as np
import pytest
import torch

import anl_kernels as ak
from anl_kernels.integrations.transformers import compute_loss_func, patch_model, set_loss_function

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

from tests.integrations.models import SIZE, tiny, tokens  # noqa: E402

TERMS = ak.GCE(0.7) + 0.1 * ak.CE()
STEPS, RATE, ROWS = 3, 3.0, 6


def batch():
    """(input_ids, labels); the first labels, which nothing predicts, old Trainers count as well."""
    ids, labels = tokens(ROWS)
    labels[:, 0] = -100
    return ids, labels


def trainer_of(model, directory, max_steps=STEPS, bf16=False, **others):
    """Every step accumulates the gradients of three batches, which are all the examples."""
    args = transformers.TrainingArguments(
        output_dir=str(directory),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        max_steps=max_steps,
        bf16=bf16,
        learning_rate=RATE,
        optim="sgd",
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    ids, labels = batch()
    examples = [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]
    return transformers.Trainer(
        model, args, train_dataset=examples, eval_dataset=examples, **others
    )


def model_of(**attributes):
    model = tiny()
    vars(model).update(attributes)
    return model


def with_logits(directory, **attributes):
    model = model_of(**attributes)
    return trainer_of(model, directory, compute_loss_func=compute_loss_func(TERMS, inplace=True))


def with_function(directory, **attributes):
    return trainer_of(set_loss_function(model_of(**attributes), TERMS), directory)


def with_fused_head(directory, **attributes):
    return trainer_of(patch_model(model_of(**attributes), TERMS), directory)


def loss_of(model):
    """The loss of all examples at once, without a Trainer."""
    ids, labels = batch()
    logits = model(input_ids=ids).logits[:, :-1]
    return ak.robust_loss(logits.flatten(0, 1), labels[:, 1:].flatten(), TERMS)


@pytest.fixture(scope="module")
def by_hand():
    """(losses, parameters) of the same steps on one big batch."""
    model, losses = tiny(), []
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    for _ in range(STEPS):
        loss = loss_of(model)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # the Trainer's default
        optimiser.step()
        losses.append(loss.item())
    return losses, dict(model.named_parameters())


@pytest.mark.parametrize("make", [with_logits, with_function, with_fused_head])
def test_accumulated_steps_are_those_of_one_batch(make, by_hand, tmp_path):
    trainer = make(tmp_path)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    np.testing.assert_allclose(losses, by_hand[0], rtol=1e-4)  # old Trainers log four digits
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter, by_hand[1][name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("make", [with_logits, with_function, with_fused_head])
def test_a_model_that_accepts_no_loss_kwargs(make, by_hand, tmp_path):
    """As Gemma 3 and Qwen's with pictures: only compute_loss_func is told of all the labels."""
    trainer = make(tmp_path, accepts_loss_kwargs=False)
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(range(ROWS))
    trainer.train()
    first = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    ids, labels = batch()
    means = []
    for part in range(0, ROWS, 2):
        logits = tiny()(input_ids=ids[part : part + 2]).logits[:, :-1]
        target = labels[part : part + 2, 1:]
        means.append(ak.robust_loss(logits.flatten(0, 1), target.flatten(), TERMS).item())
    mean_of_means = sum(means) / len(means)
    assert mean_of_means != pytest.approx(by_hand[0][0], rel=5e-4)
    wanted = by_hand[0][0] if make is with_logits else mean_of_means
    assert first == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("door", ["own", "set", "patched"])
def test_the_loss_of_a_router_counts_once_for_every_batch(door, tmp_path):
    """Of transformers' Trainer, whosever the loss is: docs/language_models.md says so."""
    change = {"own": lambda m, _: m, "set": set_loss_function, "patched": patch_model}[door]
    model = change(tiny("Mixtral", torch.float32), ak.CE())
    ids, labels = batch()
    with torch.no_grad():
        outputs = [model(input_ids=ids[i : i + 2], labels=labels[i : i + 2]) for i in (0, 2, 4)]
    of_router = model.config.router_aux_loss_coef * sum(output.aux_loss for output in outputs)
    logits = tiny("Mixtral", torch.float32)(input_ids=ids).logits[:, :-1]
    of_labels = ak.robust_loss(logits.flatten(0, 1), labels[:, 1:].flatten(), ak.CE())
    trainer = trainer_of(model, tmp_path, max_steps=1)
    trainer.train()
    found = trainer.state.log_history[0]["loss"]
    assert found == pytest.approx((of_labels + of_router).item(), rel=1e-4)
    assert found != pytest.approx((of_labels + of_router / 3).item(), rel=1e-4)


def test_the_dtype_of_logits_under_mixed_precision(tmp_path):
    """Converted after the model's forward, so that a loss inside has bfloat16."""
    seen = {}

    def watched(name, loss):
        def compute(first, *others, **options):
            logits = options.get("logits", getattr(first, "logits", first))
            seen[name] = logits.dtype
            return loss(first, *others, **options)

        return compute

    def run(name, model, loss=None):
        trainer_of(model, tmp_path, bf16=True, max_steps=1, compute_loss_func=loss).train()

    own = tiny(dtype=torch.float32)
    run("outside", own, watched("outside", compute_loss_func(TERMS)))
    own = set_loss_function(tiny(dtype=torch.float32), TERMS)
    of_logits = own.loss_function.of_logits
    own.loss_function.of_logits = watched("inside", of_logits)
    run("inside", own)
    assert seen == {"outside": torch.float32, "inside": torch.bfloat16}


def test_evaluation(tmp_path):
    keeping = patch_model(tiny(), TERMS, fuse_in_eval=False)
    shapes = []

    def metrics(prediction):
        shapes.append(prediction.predictions.shape)
        return {}

    with_metrics = trainer_of(keeping, tmp_path, compute_metrics=metrics).evaluate()
    without = trainer_of(patch_model(tiny(), TERMS), tmp_path).evaluate()
    wanted = loss_of(tiny()).item()
    assert shapes == [(ROWS, 9, 37)]
    assert without["eval_loss"] == pytest.approx(wanted, rel=1e-6)
    assert with_metrics["eval_loss"] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("size", "accumulated"), [(6, 1), (2, 3)])
def test_accumulated_steps_of_a_classifier(size, accumulated, tmp_path):
    """Whose own forward is not told how many labels the batches have together."""
    torch.manual_seed(6)
    config = transformers.LlamaConfig(**SIZE, num_labels=3)
    model = transformers.LlamaForSequenceClassification(config).double()
    ids, _ = tokens(6)
    labels = torch.tensor([0, 1, 2, -100, 1, -100])
    wanted = ak.robust_loss(model(input_ids=ids).logits, labels, TERMS).item()
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            max_steps=1,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=[{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)],
        compute_loss_func=compute_loss_func(TERMS),
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(wanted, rel=1e-4)


class Renamed(transformers.LlamaForCausalLM):
    """From whose name transformers reads no loss_type."""


@pytest.mark.skipif(transformers.__version__ < "5", reason="which counts every first label")
@pytest.mark.parametrize(("kind", "counted"), [("Llama", 8), ("Renamed", 9), ("GPT2", 9)])
def test_how_many_labels_the_trainer_counts(kind, counted, tmp_path):
    """Of transformers' Trainer too."""
    model = tiny("GPT2" if kind == "GPT2" else "Llama", torch.float32)
    if kind == "Renamed":
        model.__class__ = Renamed
        model.loss_type = None
    ids, _ = tokens(ROWS)
    logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    total = ak.robust_loss(logits, ids[:, 1:].flatten(), ak.CE(), reduction="sum")
    trainer = trainer_of(set_loss_function(model, ak.CE()), tmp_path, max_steps=1)
    trainer.train_dataset = [{"input_ids": i, "labels": i} for i in ids]
    trainer.train()
    found = trainer.state.log_history[0]["loss"]
    assert found == pytest.approx(total.item() / (ROWS * counted), rel=1e-4)
