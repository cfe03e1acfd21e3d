"""The causal language model study: its quick form, and its committed page."""

import json

import pytest

from tests.examples.running import ROOT, run_example

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

RESULTS = ROOT / "examples" / "results" / "causal_lm"


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    out = tmp_path_factory.mktemp("causal_lm")
    run_example("causal_lm.py", "--quick", "--out", out)
    return out


def test_the_forms_have_the_same_training_curve(quick):
    runs = json.loads((quick / "causal_lm.json").read_text())["runs"]
    curves = {(run["loss"], run["form"]): run["curve"] for run in runs}
    forms = [(loss, form) for loss in ("CE", "GCE(0.7)") for form in ("logits", "fused head")]
    assert set(curves) == {("CE", "transformers' own"), *forms}
    for (loss, _), curve in curves.items():
        assert curve == pytest.approx(curves[loss, "fused head"], rel=1e-5)
        assert curve[-1] < 0.999 * curve[0]


def test_the_page_has_what_was_found(quick):
    record = json.loads((quick / "causal_lm.json").read_text())
    page = (quick / "README.md").read_text(encoding="utf-8")
    assert page.count("| fused head |") == 2
    assert all(sentence in page for sentence in record["findings"])
    assert record["curves_differ_by"] < 1e-5
    for run in record["runs"]:
        assert f"{run['accuracy'][-1]:.1%}" in page


@pytest.mark.skipif(not RESULTS.exists(), reason="there are no committed results")
def test_the_committed_page_is_of_the_committed_figures(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from causal_lm_study import report
    from causal_lm_study.train import Run

    record = json.loads((RESULTS / "causal_lm.json").read_text())
    runs = [Run(**run) for run in record["runs"]]
    assert report.findings(runs) == record["findings"]
    assert (RESULTS / "README.md").read_text(encoding="utf-8") == report.page(record, runs)
