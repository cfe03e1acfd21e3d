"""Arguments that make no sense end the examples with a sentence; defaults are the documents'."""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch

from tests.examples.running import ROOT

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture
def example(monkeypatch):
    """Imports an example."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module


def parsed(module, arguments):
    return module.parse_arguments(arguments.split())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("segmentation", "--noise 1.5", "--noise: must be a share between 0 and 1, got 1.5"),
        ("segmentation", "--noise nan", "--noise: must be a share between 0 and 1, got nan"),
        ("segmentation", "--epochs 0", "--epochs: must be a whole number of at least 1, got 0"),
        ("segmentation", "--batch -1", "--batch: must be"),
        ("segmentation", "--train-images 0", "--train-images: must be"),
        ("segmentation", "--test-images 0", "--test-images: must be"),
        ("segmentation", "--seeds -1", "--seeds: must be a whole number of at least 0, got -1"),
        ("segmentation", "--size 30", "at least 8 and a multiple of 4, got 30"),
        ("segmentation", "--size 0", "at least 8 and a multiple of 4, got 0"),
        ("segmentation", "--render --out nowhere", "nowhere/segmentation.json does not exist"),
        ("images", "--epochs 0", "--epochs: must be"),
        ("images", "--epochs few", "--epochs: must be a whole number of at least 1, got few"),
        ("images", "--batch 0", "--batch: must be"),
        ("images", "--learning-rate -1", "--learning-rate: must be at least 0, got -1"),
        ("images", "--symmetric 0.2 1.2", "--symmetric: must be a share between 0 and 1, got 1.2"),
        ("images", "--symmetric --asymmetric", "there is no rate of any noise"),
        ("images", "--device gpu", "--device: gpu is the name of no device"),
        pytest.param("images", "--device cuda", "there are 0 GPUs, got cuda", marks=NO_GPU),
        ("images", "--render --out nowhere", "nowhere/images.json does not exist"),
        ("class_scale", "--render --out nowhere", "nowhere has none; see --out"),
        ("class_scale", "everything", "parts must be some of .*, got 'everything'"),
    ],
)
def test_errors(example, capsys, name, arguments, message):
    with pytest.raises(SystemExit):
        parsed(example(name), arguments)
    assert_said(capsys, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--noise -0.1", "--noise: must be a share"),
        ("--evaluations 0", "--evaluations: must be"),
        ("--accumulation 0", "--accumulation: must be"),
        ("--width 48", "at least 32 and a multiple of 32, got 48"),
    ],
)
def test_errors_of_the_language_model(example, capsys, arguments, message):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    with pytest.raises(SystemExit):
        parsed(example("causal_lm"), arguments)
    assert_said(capsys, message)


def assert_said(capsys, message):
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, said), said


def test_parallel_without_a_launcher(example, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr("sys.argv", ["parallel.py"])
    with pytest.raises(SystemExit):
        example("parallel").main()
    assert_said(capsys, "the processes are torchrun's: torchrun --standalone")


def test_what_is_said_twice_counts_once(example):
    arguments = "--seeds 1 0 1 --methods CE GCE CE --symmetric 0.2 0.20"
    args = parsed(example("images"), arguments)
    assert (args.seeds, args.methods, args.symmetric) == ([1, 0], ["CE", "GCE"], [0.2])
    args = parsed(example("segmentation"), "--seeds 2 2 --losses CE CE")
    assert (args.seeds, args.losses) == ([2], ["CE"])


def test_no_learning_rate_is_one_too(example):
    images = example("images")
    assert parsed(images, "--learning-rate 0").learning_rate == 0
    assert parsed(images, "").learning_rate == 0.05


@pytest.mark.parametrize("name", ["segmentation", "images", "class_scale"])
def test_results_that_are_kept_are_not_the_default(example, name):
    assert parsed(example(name), "--quick").out.is_relative_to(Path("out"))


def test_segmentation_makes_its_committed_record_by_default(example):
    committed = ROOT / "examples" / "results" / "segmentation" / "segmentation.json"
    given = json.loads(committed.read_text())["arguments"]
    args = vars(parsed(example("segmentation"), ""))
    assert {name: args[name] for name in given} == given
