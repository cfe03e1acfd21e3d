"""One training run through the Trainer of transformers, in a process of its own."""

from __future__ import annotations

import argparse
import multiprocessing as mp
import statistics
import tempfile
import time
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

import anl_kernels as ak
from anl_kernels.integrations.transformers import compute_loss_func, patch_model
from anl_kernels.terms import Term, Terms

from .data import IGNORED, Sequences
from .memory import Peak

LOSSES: dict[str, Term | Terms] = {
    "CE": ak.CE(),
    "GCE(0.7)": ak.GCE(q=0.7),
    "ANL-CE(5,5)": 5.0 * ak.NCE() + 5.0 * ak.NNCE(),
    "ANL-CE(5,5), min_prob 1e-5": 5.0 * ak.NCE() + 5.0 * ak.NNCE(min_prob=1e-5),
    "ANL-CE(1,1), balanced": ak.NCE() + ak.NNCE(),
    "RelativeGCE(0.7)": ak.RelativeGCE(q=0.7),
}
BALANCED = ("ANL-CE(1,1), balanced",)
"""Those with ``class_scale="batch"``."""
OWN, LOGITS, FUSED = "transformers' own", "logits", "fused head"
MEASURED_STEP = 3  # of which the peak is taken; the optimiser's state is there by then
EVALUATION_BATCH = 32


def forms_of(loss: str) -> list[str]:
    """The forms in which a loss is trained; transformers has cross entropy alone."""
    return [OWN, LOGITS, FUSED] if loss == "CE" else [LOGITS, FUSED]


@dataclass
class Run:
    """What one run has left."""

    loss: str
    form: str
    curve: list[float] = field(default_factory=list)  # the training loss of every step
    steps: list[int] = field(default_factory=list)  # of the evaluations
    accuracy: list[float] = field(default_factory=list)  # clean held-out tokens, top-1
    seconds_a_step: float = 0.0  # median; of the process's CPU time, if that is the device
    peak_bytes: int | None = None  # of a step, above what is held before it
    seconds: float = 0.0


class Watch(TrainerCallback):
    """Takes time, memory and accuracy."""

    def __init__(self, run: Run, data: Sequences, every: int, device: str) -> None:
        self.run, self.data, self.every = run, data, every
        # Of the process on a CPU: whatever else the machine does is not in it.
        self.clock = time.process_time if device == "cpu" else time.perf_counter
        self.times: list[float] = []

    def on_step_begin(self, args, state, control, model, **_) -> None:
        self.step = state.global_step + 1
        if self.step == MEASURED_STEP:
            self.peak = Peak(model.device)
            self.peak.start()
        self.began = self.clock()

    def on_step_end(self, args, state, control, model, **_) -> None:
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        if self.step == MEASURED_STEP:
            self.run.peak_bytes = self.peak.read()
        elif self.step > MEASURED_STEP:
            self.times.append(self.clock() - self.began)
        if self.step % self.every == 0 or self.step == args.max_steps:
            self.run.steps.append(self.step)
            self.run.accuracy.append(accuracy(model, self.data))

    def on_train_end(self, args, state, control, **_) -> None:
        self.run.seconds_a_step = statistics.median(self.times)
        self.run.curve = [entry["loss"] for entry in state.log_history if "loss" in entry]


@torch.no_grad()
def accuracy(model: nn.Module, data: Sequences) -> float:
    """The share of clean held-out tokens that have the highest logit.

    A patched model has logits where it is given no labels.
    """
    mode = model.training
    model.eval()
    right = counted = 0
    batches = data.test_ids.split(EVALUATION_BATCH), data.test_labels.split(EVALUATION_BATCH)
    for ids, labels in zip(*batches, strict=True):
        logits = model(input_ids=ids.to(model.device)).logits[:, :-1]
        following = labels[:, 1:].to(model.device)
        right += ((logits.argmax(-1) == following) & (following != IGNORED)).sum().item()
        counted += (following != IGNORED).sum().item()
    model.train(mode)
    return right / counted


def new_model(args: argparse.Namespace) -> LlamaForCausalLM:
    """A small model, from a configuration: nothing is downloaded."""
    config = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.width,
        intermediate_size=3 * args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 32,
        max_position_embeddings=args.length,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def train(run: Run, args: argparse.Namespace, data: Sequences) -> Run:
    """Fill in a run."""
    start = time.perf_counter()
    torch.set_num_threads(args.threads)
    terms, class_scale = LOSSES[run.loss], "batch" if run.loss in BALANCED else 1.0
    set_seed(args.seed)  # every run starts from the same weights
    model = new_model(args)
    compute = None
    if run.form == FUSED:
        patch_model(model, terms, class_scale=class_scale, chunk_bytes=args.chunk_mib << 20)
    elif run.form == LOGITS:
        compute = compute_loss_func(terms, class_scale=class_scale, inplace=True)
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(
            model,
            TrainingArguments(
                output_dir=directory,
                per_device_train_batch_size=args.batch,
                gradient_accumulation_steps=args.accumulation,
                max_steps=args.steps,
                learning_rate=args.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=args.steps // 20,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                use_cpu=args.device == "cpu",
                disable_tqdm=True,
                log_level="error",
                seed=args.seed,
            ),
            train_dataset=data.examples(),
            compute_loss_func=compute,
            callbacks=[Watch(run, data, max(1, args.steps // args.evaluations), args.device)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    run.seconds = time.perf_counter() - start
    return run


def train_apart(run: Run, args: argparse.Namespace, data: Sequences) -> Run:
    """The same in a process of its own, whose allocator holds nothing free.

    On a CPU a fork spares the imports; with CUDA a process cannot be forked.
    """
    method = "fork" if args.device == "cpu" and "fork" in mp.get_all_start_methods() else "spawn"
    with mp.get_context(method).Pool(1) as pool:
        return pool.apply(train, (run, args, data))
