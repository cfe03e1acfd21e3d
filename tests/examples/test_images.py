"""The image study: its quick form, its readers on files of the real format, its committed page."""

import gzip
import json
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.examples.running import ROOT, run_example

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

RESULTS = sorted((ROOT / "examples" / "results").glob("*/images.json"))
RNG = np.random.default_rng(0)


@pytest.fixture
def study(monkeypatch):
    """The modules of the example."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import image_study.data
    import image_study.methods
    import image_study.models
    import image_study.readers
    import image_study.recipes
    import image_study.report

    return image_study


def test_quick_run(tmp_path):
    pytest.importorskip("sklearn")
    run_example("images.py", "--quick", "--out", tmp_path)
    found = json.loads((tmp_path / "images.json").read_text())["runs"]
    assert [run["method"] for run in found] == ["CE", "GCE", "ANL-CE"] * 3
    assert all(len(run["correct"]) == 4 for run in found)
    wrong = [run["wrong_labels"] for run in found[::3]]
    assert wrong == pytest.approx([0, 0.6, 0.2], abs=0.01)
    assert (tmp_path / "images.png").read_bytes().startswith(b"\x89PNG")
    assert "| loss | clean labels | symmetric 60% |" in (tmp_path / "README.md").read_text()


def run_study(out, *arguments):
    """The runs of ``out`` after one more call, in this process."""
    import images
    from image_study import records
    from rich.console import Console

    chosen = "--epochs", "1", "--methods", "CE", "--symmetric", "--seeds", "0", *arguments
    images.run(images.parse_arguments(["--out", str(out), *chosen]), Console(quiet=True))
    return records.load(out / records.FILE).runs


@pytest.mark.usefixtures("study")
def test_a_study_goes_on_where_it_was(tmp_path):
    pytest.importorskip("sklearn")
    before = run_study(tmp_path, "--asymmetric", "--pair", "0.3")
    more = "--asymmetric", "--pair", "0.3", "--instance", "0.3", "--seeds", "0", "1"
    after = run_study(tmp_path, *more)
    added = [("instance", 0), ("pair", 1), ("instance", 1)]
    assert [(run.noise, run.seed) for run in after] == [("pair", 0), *added]
    assert after[:1] == before
    page = (tmp_path / "README.md").read_text()
    assert "| loss | pair 30% |" in page
    (tmp_path / "README.md").unlink()
    assert run_study(tmp_path, "--render") == after
    assert (tmp_path / "README.md").read_text() == page


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_pages_are_what_their_json_renders_to(study, path):
    from image_study import records

    assert (path.parent / "README.md").read_text() == study.report.render(records.load(path))


def test_runs_of_other_arguments_are_not_mixed(study, tmp_path):
    from image_study import records

    one = records.Study({"epochs": 1}, {}, {}, {"test": 10})
    one.save(tmp_path / records.FILE)
    other = records.Study({"epochs": 2}, {}, {}, {"test": 10})
    with pytest.raises(SystemExit, match=r"other arguments: .*1}, not .*2}"):
        records.resume(other, tmp_path / records.FILE)
    assert records.resume(one, tmp_path / records.FILE) == one


def runs(records, method, rate, finals):
    return [
        records.Run(method, "symmetric", rate, seed, rate, [9, final], 1.0, None, 0.0, "c")
        for seed, final in enumerate(finals)
    ]


def test_tables_and_sentences_follow_the_figures(study):
    from image_study import findings, records, tables

    made = records.Study({}, {}, {}, {"test": 10})
    figures = {"CE": [8, 8], "GCE": [8, 7], "SCE": [4, 4], "ANL-CE": [9, 10]}
    for method, finals in figures.items():
        made.runs += runs(records, method, 0.4, finals)
    assert tables.markdown(made, "symmetric", made.last).splitlines() == [
        "| loss | symmetric 40% |",
        "| --- | ---: |",
        "| CE | 80.00 ± 0.00 |",
        "| GCE | 75.00 ± 7.07 |",
        "| SCE | 40.00 ± 0.00 |",
        "| ANL-CE | **95.00 ± 7.07** |",
    ]
    (sentence,) = findings.findings(made)
    assert (
        "CE ends at 80.0 % (its best epoch, which only clean labels could find: 90.0)" in sentence
    )
    assert "above it ANL-CE 95.0; level with it GCE 75.0; below it SCE 40.0" in sentence


def write_idx(path, array, compressed):
    content = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    content += array.tobytes()
    if compressed:
        Path(f"{path}.gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("compressed", [False, True])
def test_mnist_is_read(study, tmp_path, compressed):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    images, labels = {}, {}
    for part, n in (("train", 30), ("t10k", 10)):
        images[part] = RNG.integers(0, 256, (n, 28, 28), np.uint8)
        labels[part] = np.arange(n, dtype=np.uint8) % 10
        write_idx(folder / f"{part}-images-idx3-ubyte", images[part], compressed)
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels[part], compressed)

    loaded = study.data.load("mnist", tmp_path)
    assert loaded.num_classes == 10
    assert loaded.test_labels.tolist() == labels["t10k"].tolist()
    raw = torch.from_numpy(images["train"]).double()[:, None]
    wanted = (raw - raw.mean()) / raw.std(correction=0)
    torch.testing.assert_close(loaded.train, wanted.float())


class Python2Pickler(pickle._Pickler):
    """Writes bytes as the str of Python 2, as the published files of CIFAR have them."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_str(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_str


def write_python2(path, record):
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(record)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.", b"numpy.core."))


def cifar_record(n, labels):
    data = RNG.integers(0, 256, (n, 3072), np.uint8)
    return {b"data": data, **labels, b"filenames": [b"\xff.png"] * n, b"batch_label": b"a batch"}


@pytest.fixture
def cifar10(tmp_path):
    """What a folder of it holds."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    written = []
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        written.append(cifar_record(4, {b"labels": RNG.permutation(10)[:4].tolist()}))
        write_python2(folder / name, written[-1])
    return written


def test_cifar10_is_read(study, tmp_path, cifar10):
    (images, labels), (test_images, test_labels) = study.readers.read_cifar10(tmp_path)
    assert labels.tolist() == [y for record in cifar10[:5] for y in record[b"labels"]]
    assert test_labels.tolist() == cifar10[5][b"labels"]
    assert images.shape == (20, 3, 32, 32)
    assert (images.reshape(20, -1)[4:8] == cifar10[1][b"data"]).all()
    assert (test_images[0, 2, 5] == cifar10[5][b"data"][0, 2048 + 160 : 2048 + 192]).all()


@pytest.mark.usefixtures("study", "cifar10")
def test_cifar10_trains_with_its_recipe(tmp_path):
    found = run_study(tmp_path, "--data", "cifar10", "--root", str(tmp_path), "--asymmetric", "0.4")
    assert [len(run.correct) for run in found] == [1]


def test_cifar100_is_read_with_its_fine_labels(study, tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        labels = {b"fine_labels": [99, 3], b"coarse_labels": [1, 2]}
        write_python2(folder / name, cifar_record(2, labels))
    loaded = study.data.load("cifar100", tmp_path)
    assert loaded.train_labels.tolist() == loaded.test_labels.tolist() == [99, 3]
    assert loaded.num_classes == 100
    assert loaded.train.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)


def test_files_that_are_not_what_they_should_be(study, tmp_path):
    with pytest.raises(SystemExit, match=r"train does not exist: --root names the folder"):
        study.readers.read_cifar100(tmp_path)
    bad = tmp_path / "bad"
    bad.write_bytes(b"\0\0\x0d\1\0\0\0\0")
    with pytest.raises(SystemExit, match="bad is not an idx file of unsigned bytes"):
        study.readers.read_idx(bad)
    bad.write_bytes(pickle.dumps(print, protocol=2))
    with pytest.raises(pickle.UnpicklingError, match=r"asks for (__builtin__|builtins)\.print"):
        study.readers.read_cifar(bad, "labels")


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10", "cifar100"])
def test_models_fit_their_images(study, name):
    recipe = study.recipes.RECIPES[name]
    channels, size, classes = {
        "digits": (1, 8, 10),
        "mnist": (1, 28, 10),
        "cifar10": (3, 32, 10),
        "cifar100": (3, 32, 100),
    }[name]
    model = recipe.model(channels, size, classes)
    assert model(torch.zeros(2, channels, size, size)).shape == (2, classes)
    layers = {"digits": 4, "mnist": 4, "cifar10": 8, "cifar100": 34}[name]
    weights = [m for n, m in model.named_modules() if hasattr(m, "weight") and "around" not in n]
    assert sum(m.weight.dim() > 1 for m in weights) == layers


def test_augmented_images_are_moved_and_mirrored(study):
    images = torch.arange(1.0, 65).view(1, 1, 8, 8).expand(400, 1, 8, 8)
    changed = study.data.augment(images, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape
    padded = torch.nn.functional.pad(images[:1], [4] * 4)[0, 0]
    windows = padded.unfold(0, 8, 1).unfold(1, 8, 1).flatten(0, 1)
    both = torch.cat((windows, windows.flip(-1)))
    matches = (changed == both).all(dim=(2, 3))  # 400 images against 2 x 81 windows
    assert matches.any(dim=1).all()
    assert matches.any(dim=0).sum() > 140


def test_every_method_has_every_column(study):
    for weights in ("mnist", "cifar10", "cifar100"):
        for name in study.methods.METHODS:
            method = study.methods.make(name, weights)
            num_classes = 100 if weights == "cifar100" else 10
            loss = method.criterion(torch.zeros(4, num_classes), torch.arange(4))
            assert loss.isfinite()
            assert (method.l1 == 0) == (not name.startswith("ANL"))
            assert (method.weight_decay == 0) == (method.l1 > 0)


@pytest.mark.usefixtures("study")
def test_the_document_says_which_wrong_labels_are_fitted():
    """docs/label_noise.md."""
    from image_study import records

    results = ROOT / "examples" / "results"
    digits = records.load(results / "digits" / "images.json")
    mnist = records.load(results / "digits_mnist_weights" / "images.json")
    robust = "GCE", "NCE+MAE", "ANL-CE", "ANL-FL", "ANL-CE-ER"
    for rate in (0.2, 0.4, 0.6, 0.8):
        setting = records.Setting("symmetric", rate)
        assert all(digits.fitted_wrong(name, setting).mean < 12 for name in robust)
        assert all(digits.fitted_wrong(name, setting).mean > 99.995 for name in ("CE", "FL"))
    asymmetric = records.Setting("asymmetric", 0.4)
    fitted = [round(digits.fitted_wrong(name, asymmetric).mean) for name in (*robust, "CE", "FL")]
    assert fitted == [65, 24, 32, 33, 24, 100, 97]
    for rate, wanted in ((0.0, [97.04, 96.74]), (0.6, [86.37, 85.11])):
        setting = records.Setting("symmetric", rate)
        found = [study.last("GCE", setting) for study in (mnist, digits)]
        assert [round(summary.mean, 2) for summary in found] == wanted
        assert found[0].mean - found[1].mean < min(summary.deviation for summary in found)
    assert round(mnist.last("SCE", records.Setting("symmetric", 0.6)).mean, 2) == 82.52


@pytest.mark.usefixtures("study")
def test_the_document_says_what_balance_does_with_few_classes():
    """docs/many_classes.md."""
    from image_study import methods, records

    digits = records.load(ROOT / "examples" / "results" / "digits" / "images.json")
    setting = records.Setting("symmetric", 0.6)
    names = ("ANL-CE", methods.AS_LARGE, methods.EQUAL, "CE")
    assert [round(digits.last(n, setting).mean, 1) for n in names] == [86.5, 46.5, 39.4, 44.7]
    assert [round(digits.fitted_wrong(n, setting).mean) for n in names[1:3]] == [82, 100]


def test_a_balanced_loss_starts_with_the_gradient_of_the_published_one(study):
    def norm(name, weights):
        logits = torch.zeros(4, 10, requires_grad=True)
        study.methods.make(name, weights).criterion(logits, torch.arange(4)).backward()
        return logits.grad.norm().item()

    for weights in ("mnist", "cifar10"):
        wanted = norm("ANL-CE", weights)
        assert norm(study.methods.AS_LARGE, weights) == pytest.approx(wanted, rel=1e-5)


def test_documents_quote_the_pages():
    quoted = 0
    for document in (ROOT / "docs").glob("*.md"):
        text = document.read_text(encoding="utf-8")
        for page, block in re.findall(r"<!-- from (\S+) -->\n(.*?)<!-- end -->", text, re.DOTALL):
            assert set(block.splitlines()) <= set((ROOT / page).read_text("utf-8").splitlines())
            quoted += 1
    assert quoted
