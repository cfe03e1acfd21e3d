"""Segmentation runs in its quick form; the committed page is what its record says."""

import json

import numpy as np
import pytest
import torch

from tests.examples.running import ROOT, run_example

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

RESULTS = ROOT / "examples" / "results" / "segmentation"


def test_quick_run(tmp_path):
    run_example("segmentation.py", "--quick", "--out", tmp_path)
    record = json.loads((tmp_path / "segmentation.json").read_text())
    assert [run["loss"] for run in record["runs"]] == record["arguments"]["losses"]
    assert all(0 < run["mean_iou"] < 1 for run in record["runs"])
    for plot in ("curves.png", "pictures.png"):
        assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")


def test_the_committed_page_is_its_records(tmp_path):
    (tmp_path / "segmentation.json").write_bytes((RESULTS / "segmentation.json").read_bytes())
    run_example("segmentation.py", "--render", "--out", tmp_path)
    assert (tmp_path / "README.md").read_text() == (RESULTS / "README.md").read_text()


@pytest.mark.parametrize("count", [1, 4])
def test_pictures_of_few(monkeypatch, tmp_path, count):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from segmentation_demo.data import draw
    from segmentation_demo.report import save_pictures

    data = draw(count, 16, noise=0.4, generator=np.random.default_rng(0))
    save_pictures(data, tmp_path / "pictures.png")
    assert (tmp_path / "pictures.png").read_bytes().startswith(b"\x89PNG")


def test_noisy_masks_differ_in_whole_shapes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from segmentation_demo.data import CLASSES, VOID, draw

    data = draw(60, 32, noise=0.4, generator=np.random.default_rng(0))
    assert data.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(data.noisy == VOID, data.clean == VOID)
    assert torch.equal(data.noisy == 0, data.clean == 0)
    shape = (data.clean != VOID) & (data.clean != 0)
    assert 0.25 < data.wrong[shape].float().mean() < 0.55
    assert set(data.clean.unique().tolist()) == {*range(len(CLASSES)), VOID}
    clean = draw(5, 32, noise=0.0, generator=np.random.default_rng(0))
    assert not clean.wrong.any()
