"""The study of many classes: its quick form, its data, and the pages made of what is committed."""

import argparse
import json
import re
from itertools import chain

import numpy as np
import pytest
import torch

import anl_kernels as ak
from tests.examples.running import ROOT, run_example

pytest.importorskip("matplotlib")

RESULTS = ROOT / "examples" / "results" / "class_scale"


@pytest.fixture
def study(monkeypatch):
    """The modules of the example."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import class_scale_study.balance
    import class_scale_study.balance_report
    import class_scale_study.balance_selection
    import class_scale_study.corpus
    import class_scale_study.gradients
    import class_scale_study.losses
    import class_scale_study.plans
    import class_scale_study.records
    import class_scale_study.report
    import class_scale_study.selection
    import class_scale_study.train

    return class_scale_study


def test_quick_run_after_which_nothing_is_left_to_run(study, tmp_path):
    first = run_example("class_scale.py", "--quick", "--out", tmp_path)
    assert "top-1" in first.stdout
    for name in ("scale", "min_prob", "recipe", "balance"):
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert all(run["run"]["num_classes"] == 50 for run in record["runs"])
        assert all(run["steps"] == [3, 6] for run in record["runs"])
    for plot in ("scale.png", "recipe.png"):
        assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "README.md").read_text()
    assert "| *always the same answer* |" in page

    import class_scale

    again = class_scale.parse_arguments(["--quick", "--out", str(tmp_path)])
    assert class_scale.first_part_left(again) is None


def test_the_page_is_what_the_json_renders_to(study):
    committed = (RESULTS / "README.md").read_text(encoding="utf-8")
    assert committed == study.report.page(study.report.load(RESULTS))


@pytest.fixture
def top1(study):
    """The last accuracy of a committed run of the study of scale, in per cent, as it is printed."""
    runs = study.report.load(RESULTS)["scale"]["runs"]

    def found(optimiser, loss, K, noise=0.0):
        asked = study.selection.having(runs, loss=loss, num_classes=K, noise=noise)
        (record,) = study.selection.optimised_by(asked, optimiser)
        return round(100 * study.selection.last(record), 1)

    return found


def test_the_document_says_what_was_measured_of_scale(study, top1):
    """docs/many_classes.md."""
    runs = study.report.load(RESULTS)["scale"]["runs"]
    for run in runs:
        K, noise = run["run"]["num_classes"], run["run"]["noise"]
        if run["run"]["optimiser"] == "adamw" and K <= 10_000:
            assert study.selection.trained(run)
        if noise == 0 and run["run"]["loss"] == "CE":
            alike = [r for r in runs if other_losses(r) == other_losses(run)]
            assert max(alike, key=study.selection.last) is run
        if run["run"]["loss"] in ("ANL(5,5)", "NCE+MAE(50,1)", "GCE(0.7)") and 1000 <= K <= 10_000:
            assert study.selection.trained(run) == (run["run"]["optimiser"] == "adamw")
    plain, adamw, eps = study.plans.PLAIN, study.plans.ADAMW, study.plans.ADAMW_EPS
    large = (1000, 10_000, 50_000)
    assert [top1(plain, "NCE+MAE(1,1) auto", K) for K in large[:2]] == [11.3, 7.8]
    assert [top1(plain, "K log K NCE + MAE", K) for K in large] == [18.8, 16.9, 13.7]
    assert [top1(plain, "CE", K) for K in large] == [28.7, 22.9, 18.9]
    assert [top1(o, "ANL(5,5)", 50_000) for o in (adamw, eps)] == [6.4, 7.8]
    assert [top1(adamw, loss, 50_000) for loss in ("ANL(5,5) auto", "CE")] == [7.6, 17.0]
    assert [top1(adamw, loss, 1000, 0.4) for loss in ("CE", "GCE(0.7)")] == [23.8, 22.8]
    assert top1(study.plans.CLIPPED, "ANL(5,5) auto", 10_000) == 8.8
    assert top1(study.plans.CLIPPED, "K^0.7 GCE(0.7)", 10_000) == 10.4
    (thrown,) = study.selection.optimised_by(
        study.selection.having(runs, loss="ANL(5,5) auto", num_classes=10_000), plain
    )
    assert round(thrown["largest_gradient"]) == 4285
    assert thrown["top1"][-1] == thrown["constant"]


def other_losses(record):
    """What two runs have alike if they differ in the loss alone."""
    return {k: v for k, v in record["run"].items() if k != "loss"}


def test_the_document_says_what_was_measured_of_auto_under_adamw(study, top1):
    adamw, clipped = study.plans.ADAMW, study.plans.ADAMW_CLIPPED
    for optimiser, classes in ((adamw, (10, 100, 1000, 10_000)), (clipped, (10, 100, 1000))):
        for K in classes:
            plain, auto = (top1(optimiser, f"ANL(5,5){end}", K) for end in ("", " auto"))
            assert round(abs(plain - auto), 1) <= 2.2


def test_the_document_says_what_was_measured_of_gce_times_a_factor(study, top1):
    names = "GCE(0.7)", "K^0.7 GCE(0.7)"
    for K in (10, 100, 1000):
        plain, times = (top1(study.plans.ADAMW, name, K) for name in names)
        assert round(abs(plain - times), 1) <= 0.1
    clipped = [[top1(study.plans.ADAMW_CLIPPED, name, K) for name in names] for K in (100, 1000)]
    assert clipped == [[30.1, 28.7], [23.7, 22.7]]
    runs = study.report.load(RESULTS)["scale"]["runs"]
    ran = {
        K: {r["run"]["loss"] for r in study.selection.optimised_by(found, study.plans.ADAMW)}
        for K in (1000, 10_000)
        for found in [study.selection.having(runs, num_classes=K, noise=0.0)]
    }
    assert ran[1000] == set(study.plans.SCALE_LOSSES)
    assert ran[10_000] == {"CE", "GCE(0.7)", "K/6 NCE + GCE", "ANL(5,5)", "ANL(5,5) auto"}


def test_the_document_says_what_was_measured_of_min_prob(study):
    runs = study.report.load(RESULTS)["min_prob"]["runs"]
    runs = study.selection.having(runs, num_classes=1000, optimiser="adamw")
    by_loss = {
        loss: {r["run"]["min_prob"]: round(100 * study.selection.last(r), 1) for r in found}
        for loss in ("NNCE auto", "ANL(5,5) auto")
        for found in [study.selection.having(runs, loss=loss)]
    }
    highest = [found.pop(1e-4) for found in by_loss.values()]
    assert highest == [16.1, 17.2]
    rest = [top1 for found in by_loss.values() for top1 in found.values()]
    assert (min(rest), max(rest)) == (10.3, 14.2)
    everything = study.report.load(RESULTS)["min_prob"]["runs"]
    large = study.selection.having(everything, num_classes=10_000)
    assert [round(100 * study.selection.last(r), 1) for r in large] == [12.9, 10.5, 8.8]
    assert sum(run["clamped"]["labels"] < 0.5 for run in everything) == 1


def test_the_document_says_what_was_measured_of_recipes(study):
    """Its table is the committed one, shortened, and its sentences follow from it."""
    panels = study.report.recipe_panels(study.report.load(RESULTS)["recipe"])
    (found,) = (
        s for title, s in panels.items() if title.startswith("K = 3,000, 40%") and len(s) > 5
    )
    rows = {(s.loss, s.rate): s for s in found}
    text = (ROOT / "docs" / "many_classes.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| .* \| ([0-9.]+) \| ([+-][^|]*?)? *\|$", text, re.MULTILINE)
    in_order = ["GCE(0.5)", "GCE(0.3)", "0.1 CE + MAE", "K/15 NCE + GCE", "K/3 NCE + GCE"]
    in_order += ["GCE(0.7)", "NCE+MAE(1,1) auto", "CE"]
    summaries = [rows[loss, 1.5e-3] for loss in in_order]
    differences = [
        "" if s.difference is None else f"{s.difference:+.2f} ± {s.error:.2f}" for s in summaries
    ]
    assert told == [(f"{s.last:.1f}", d) for s, d in zip(summaries, differences, strict=True)]
    assert all(s.seeds == 5 for s in summaries)
    assert round(rows["CE", 1.5e-3].best, 1) == round(rows["GCE(0.7)", 1.5e-3].last, 1) == 26.3
    assert round(rows["CE", 1.5e-3].fitted) == 28
    runs = study.report.load(RESULTS)["recipe"]["runs"]
    noisier = study.selection.summaries(study.selection.having(runs, num_classes=10_000))
    assert all(s.seeds == 3 for s in noisier)
    found = {s.loss: f"{s.last:.2f}" for s in noisier}
    told = {"GCE(0.7)": "24.41", "K/15 NCE + GCE": "24.26", "GCE(0.5)": "24.22", "CE": "16.98"}
    assert found == told
    (longer,) = (s for title, s in panels.items() if "1400 steps" in title)
    assert {s.loss: f"{s.last:.1f}" for s in longer} == {
        "GCE(0.7)": "33.0",
        "ANL(5,5) auto": "24.8",
    }


@pytest.fixture
def balance(study):
    """The committed runs of the study of balance."""
    return study.report.load(RESULTS)["balance"]["runs"]


DOCUMENTED = {
    "CE": "`ak.CE()`",
    "GCE(0.5)": "`ak.GCE(q=0.5)`",
    "GCE(0.7)": "`ak.GCE(q=0.7)`",
    "RelativeGCE(0.5)": "`ak.RelativeGCE(q=0.5)`",
    "RelativeGCE(0.7)": "`ak.RelativeGCE(q=0.7)`",
    "ANL(1,1) batch": '`ak.NCE() + ak.NNCE()`, "batch"',
}
SEEDED = DOCUMENTED | {"ANL(1,1) running": '`ak.NCE() + ak.NNCE()`, "running"'}


def the_document():
    return (ROOT / "docs" / "many_classes.md").read_text(encoding="utf-8")


def test_the_document_says_what_was_measured_of_rates(study, balance):
    run = study.balance.setting(3000, "adamw")
    chosen = study.selection.having(
        balance,
        held_out="choice",
        optimiser="adamw",
        network="normalised",
        num_classes=3000,
        clip=study.balance.CLIP,
    )
    plain = [r for r in chosen if study.balance_selection.label(r) == r["run"]["loss"]]
    top1 = {}
    for loss, code in DOCUMENTED.items():
        cells = []
        for rate in sorted(study.balance.RATES["adamw"]):
            (found,) = study.selection.having(plain, loss=loss, learning_rate=rate)
            top1[loss, rate] = last = round(100 * study.selection.last(found), 1)
            cells.append(f"{last:.1f} ({100 * found['wrong_fitted']:.1f})")
        assert f"| {code} | {' | '.join(cells)} |" in the_document()
    best = study.balance.chosen_rates(plain, run)
    assert (best["GCE(0.7)"], best["RelativeGCE(0.7)"], best["ANL(1,1) batch"]) == (
        1.5e-3,
        1.5e-3,
        4.5e-3,
    )
    assert (top1["CE", 1.5e-3], top1["CE", 5e-4]) == (19.0, 23.2)
    lost = {loss: max(found) - min(found) for loss in DOCUMENTED for found in [of(top1, loss)]}
    assert min(lost, key=lost.__getitem__) == "RelativeGCE(0.7)"
    tried = {study.balance_selection.label(r) for r in chosen}
    told = {
        name: max(round(100 * study.selection.last(r), 1) for r in chosen if label(r) == name)
        for label in [study.balance_selection.label]
        for name in tried
    }
    assert told["ANL(1,1) batch"] == told["RelativeGCE(0.5)+ANL(1,1) batch"] == 24.2
    assert told["ANL(1,1) running"] == 24.2
    assert (told["ANL(1,2) batch"], told["ANL(2,1) batch"]) == (23.9, 23.5)
    assert (told["ANL(1,2) row"], told["ANL(1,1) row"]) == (23.5, 22.5)
    assert (told["ANL(5,5)"], told["ANL(5,5) auto"]) == (22.9, 22.8)
    assert (told["NCE+MAE(1,1)"], told["GCE(0.3)"]) == (22.6, 23.7)
    assert told["ANL(1,1) batch, after 100 steps of CE"] == 23.9
    assert told["ANL(1,1) batch, min_prob 3.3e-05"] == 23.8
    assert told["ANL(1,1) batch, min_prob 1e-15"] == 23.2


def of(top1, loss):
    """The accuracies of a loss."""
    return [value for (name, _), value in top1.items() if name == loss]


def test_the_document_says_what_was_measured_over_seeds(study, balance):
    def panel(num_classes, optimiser, **change):
        run = vars(study.balance.setting(num_classes, optimiser)) | change
        setting = {name: run[name] for name in study.balance_selection.SETTING}
        runs = study.selection.having(balance, held_out="test", **setting)
        return {s.loss: s for s in study.balance_selection.standings(runs)}

    def told(difference):
        return f"{difference.mean:+.2f} ± {difference.error:.2f}"

    def above(difference):
        return difference is not None and difference.in_errors > 2

    text = " ".join(the_document().split())
    adamw, sgd = panel(3000, "adamw"), panel(3000, "sgd")
    larger, larger_sgd = panel(10_000, "adamw"), panel(10_000, "sgd")
    for loss in (*study.balance.SEEDED, "GCE(0.5)"):
        s = adamw[loss]
        assert s.seeds == 5
        cell = "" if s.over_rival is None else told(s.over_rival)
        assert f"| {SEEDED[loss]} | {s.rate:g} | {cell} | {s.fitted:.1f} |" in the_document()
    gce = {loss: told(larger[loss].over_rival) for loss in set(larger) - {"GCE(0.5)"}}
    assert (
        f"relative GCE(0.5) was {gce['RelativeGCE(0.5)']} points above it, relative GCE(0.7) "
        f"{gce['RelativeGCE(0.7)']}, GCE(0.7) {gce['GCE(0.7)']}, balanced ANL "
        f"{gce['ANL(1,1) batch']}."
    ) in text
    assert f"fits {sgd['CE'].fitted:.1f} % of the wrong labels" in text
    ce = {loss: told(found.over_watched) for loss, found in sgd.items()}
    assert (
        f"Relative GCE(0.5) ended {ce['RelativeGCE(0.5)']} points above its best step, GCE(0.5) "
        f'{ce["GCE(0.5)"]}, ANL balanced by "running" {ce["ANL(1,1) running"]}, by "batch" '
        f'{ce["ANL(1,1) batch"]}, by "row" {ce["ANL(1,1) row"]}, relative GCE(0.7) '
        f"{ce['RelativeGCE(0.7)']}; at K = 10,000 balanced ANL "
        f"{told(larger_sgd['ANL(1,1) batch'].over_watched)} and relative GCE(0.7) "
        f"{told(larger_sgd['RelativeGCE(0.7)'].over_watched)}."
    ) in text
    assert {s.seeds for found in (larger, sgd, larger_sgd) for s in found.values()} == {5}
    for found in (adamw, larger):
        assert not any(above(s.over_rival) for s in found.values())
    for found in (sgd, larger_sgd):
        assert not any(above(s.over_watched) for s in found.values())
    free = panel(3000, "adamw", clip=None)
    anl = free["ANL(1,1) batch"]
    assert f"balanced ANL was {told(anl.over_rival)} points above GCE(0.5)" in text
    assert f"fitted {anl.fitted:.1f} % of the wrong labels" in text
    assert not any(above(s.over_rival) for s in free.values())


def test_the_document_says_what_was_measured_by_one_seed(study, balance):
    names = {
        "CE": "cross entropy",
        "ANL(1,1) batch": 'ANL by "batch"',
        "ANL(1,1) running": 'ANL by "running"',
        "RelativeGCE(0.5)": "relative GCE(0.5)",
        "RelativeGCE(0.7)": "relative GCE(0.7)",
    }
    text = " ".join(the_document().split())

    def percent(record):
        return round(100 * study.selection.last(record), 1)

    for other in ({"noise_kind": "pair"}, {"noise": 0.0}):
        found = study.selection.having(balance, held_out="test", **other)
        assert {r["run"]["seed"] for r in found} == {0}
        ranked = sorted(found, key=lambda r: -study.selection.last(r))
        parts = (f"{names.get(r['run']['loss'], r['run']['loss'])} {percent(r)}" for r in ranked)
        assert f"{', '.join(parts)} %" in text

    chosen = study.selection.having(balance, held_out="choice")
    by_rate = {
        (r["run"]["loss"], r["run"]["learning_rate"]): percent(r)
        for r in study.selection.having(chosen, optimiser="sgd")
    }
    rates = (0.01, 0.03, 0.1, 0.3)
    assert [by_rate["ANL(1,1) running", rate] for rate in rates] == [22.4, 22.0, 21.8, 21.6]
    assert [by_rate["CE", rate] for rate in rates] == [22.3, 18.8, 17.6, 16.9]
    best = study.balance.chosen_rates(balance, study.balance.setting(3000, "sgd"))
    assert (best["RelativeGCE(0.5)"], best["GCE(0.5)"]) == (0.1, 0.9)
    plain = {r["run"]["loss"]: percent(r) for r in study.selection.having(chosen, network="plain")}
    losses = "ANL(1,1) batch", "ANL(5,5)", "GCE(0.7)", "RelativeGCE(0.5)"
    assert [plain[loss] for loss in losses] == [20.9, 16.4, 23.2, 23.8]
    alone = {
        loss: 100 * record["wrong_fitted"]
        for loss in study.balance.ALONE
        for (record,) in [study.selection.having(balance, held_out="test", loss=loss)]
    }
    nce, nnce = (
        [alone[f"{half} {balance}"] for balance in ("row", "batch")] for half in ("NCE", "NNCE")
    )
    assert [round(fitted) for fitted in nce] == [82, 82]
    assert [round(fitted, 1) for fitted in nnce] == [0.1, 0.2]


def made_up_tokens(study):
    """Four files of falling numbers of distinct tokens."""
    rng = np.random.default_rng(0)
    texts = [rng.zipf(1.5, 4000) % 300 for _ in range(20)]
    file = np.repeat(np.arange(20, dtype=np.int32), 4000)
    return study.corpus.Tokens(np.concatenate(texts).astype(np.int32), file, 20, 300)


def test_noise_is_exact_and_in_training_alone(study):
    tokens = made_up_tokens(study)
    clean = study.corpus.split(tokens, 50, 0.0, 3, 1000, 200)
    noisy = study.corpus.split(tokens, 50, 0.4, 3, 1000, 200)
    assert (noisy.train.given != noisy.train.clean).sum() == 400
    assert torch.equal(noisy.train.clean, clean.train.clean)
    assert torch.equal(clean.train.given, clean.train.clean)
    for part in (noisy.choice, noisy.test, noisy.train):
        assert part.context.shape == (len(part), 4)
        assert 0 < part.clean.min() < part.clean.max() < 50
    assert torch.equal(noisy.test.given, noisy.test.clean)
    wrong = noisy.train.given[noisy.train.given != noisy.train.clean]
    assert len(wrong.unique()) > 40  # of any class
    with pytest.raises(SystemExit, match="choose a wider source"):
        study.corpus.split(tokens, 400, 0.0, 3, 1000, 200)


def test_pair_flips_go_to_the_next_class(study):
    tokens = made_up_tokens(study)
    train = study.corpus.split(tokens, 50, 0.4, 3, 1000, 200, noise_kind="pair").train
    wrong = train.given != train.clean
    assert 0.35 < wrong.float().mean() < 0.45
    assert torch.equal(train.given[wrong], (train.clean[wrong] + 1) % 50)


def test_windows_lie_within_one_file(study):
    ids = np.repeat(np.arange(30, dtype=np.int32), 50)  # each file is one token, many times
    tokens = study.corpus.Tokens(ids, ids.copy(), 30, 30)
    train = study.corpus.split(tokens, 20, 0.0, 0, 5000, 100).train
    assert (train.context == train.clean[:, None]).all()


def test_every_loss_of_a_plan_can_be_made(study):
    plans = [plan for parts in study.plans.STUDIES.values() for plan in parts.values()]
    z, y = torch.zeros(2, 10), torch.tensor([0, 3])
    for loss in {run.loss for plan in plans for run in plan([])}:
        terms, scale = study.losses.loss_of(loss, 10, 1e-7)
        assert ak.RobustLoss(terms, class_scale=scale)(z, y).isfinite()


def test_a_run_notes_what_it_did(study):
    run = study.plans.scale_run(1000, "ANL(5,5) auto", study.plans.CLIPPED)
    import class_scale

    result = study.train.train(class_scale.quick(run))
    assert result["steps"] == [3, 6]
    assert result["diverged_at"] is None
    assert 0 < result["start_gradient"] <= result["largest_gradient"]
    assert result["start_logits_gradient"] == pytest.approx(0.27, abs=0.05)


def test_gradients_that_diverge_end_the_run(study, monkeypatch):
    import class_scale

    run = class_scale.quick(study.plans.scale_run(10, "CE", study.plans.PLAIN))
    norms = iter([1.0, 3.0, float("nan")])
    monkeypatch.setattr(study.train, "clip_gradient", lambda model, clip: next(norms))
    result = study.train.train(run)
    assert result["diverged_at"] == 3
    assert result["largest_gradient"] == 3.0
    assert result["top1"] == []


def records_of(study, loss, top1s, **changes):
    run = vars(study.plans.recipe_run(3000, 0.4)) | {"loss": loss} | changes
    return [
        {"run": run | {"seed": seed}, "top1": [0.5, top1], "wrong_fitted": 0.1, "constant": 0.1}
        for seed, top1 in enumerate(top1s)
    ]


def test_differences_are_paired(study):
    records = records_of(study, "GCE(0.7)", [0.20, 0.30, 0.40])
    records += records_of(study, "CE", [0.10, 0.18, 0.29]) + records_of(study, "DFT", [0.3] * 3)
    found = {s.loss: s for s in study.selection.summaries(records)}
    assert found["CE"].difference == pytest.approx(-11)
    assert found["CE"].error == pytest.approx(1 / 3**0.5)
    assert found["CE"].differs
    assert not found["DFT"].differs
    assert found["GCE(0.7)"].deviation == pytest.approx(10)
    assert found["CE"].best == pytest.approx(50)
    assert study.report.verdict(list(found.values())).endswith("not to be told apart: DFT.")


def test_the_best_rate_is_chosen_on_other_windows(study):
    chosen = {"held_out": "choice"}
    records = records_of(study, "CE", [0.2], learning_rate=1e-3, **chosen)
    records += records_of(study, "CE", [0.3], learning_rate=2e-3, **chosen)
    records += records_of(study, "CE", [0.9], learning_rate=3e-3)
    assert study.plans.chosen_rates(records) == {"CE": 2e-3}


def balance_records(study, loss, top1s, optimiser="adamw", **changes):
    run = vars(study.balance.setting(3000, optimiser)) | {"loss": loss} | changes
    return [
        {"run": run | {"seed": seed}, "top1": [0.35, top1], "wrong_fitted": 0.1}
        for seed, top1 in enumerate(top1s)
    ]


def test_standings_are_against_the_best_gce_and_the_best_step_of_ce(study):
    records = balance_records(study, "GCE(0.5)", [0.21, 0.31])
    records += balance_records(study, "GCE(0.7)", [0.20, 0.30])
    records += balance_records(study, "GCE(0.3)", [0.90])  # of one seed alone
    records += balance_records(study, "CE", [0.10, 0.11])
    records += balance_records(study, "ANL(1,1) batch", [0.23, 0.34])
    found = {s.loss: s for s in study.balance_selection.standings(records)}
    anl = found["ANL(1,1) batch"]
    assert (anl.over_rival.mean, anl.over_rival.error) == pytest.approx((2.5, 0.5))
    assert anl.over_rival.in_errors == pytest.approx(5)
    assert not anl.over_rival.differs  # of two pairs
    assert anl.over_watched.mean == pytest.approx(28.5 - 35)
    assert found["GCE(0.5)"].over_rival is None
    assert found["GCE(0.7)"].over_rival.mean == pytest.approx(-1)
    verdict = study.balance_report.verdict(list(found.values()))
    assert "above the best GCE: ANL(1,1) batch; above CE's best step: none" in verdict


def test_a_search_goes_on_where_the_best_rate_is_at_its_edge(study):
    rates = sorted(study.balance.RATES["adamw"])
    records = [
        record
        for loss, lasts in {"CE": (0.3, 0.2, 0.1), "GCE(0.5)": (0.1, 0.3, 0.2)}.items()
        for rate, top1 in zip(rates, lasts, strict=True)
        for record in balance_records(study, loss, [top1], learning_rate=rate, held_out="choice")
    ]
    run = study.balance.setting(3000, "adamw")
    (further,) = study.balance.edges(run, ("CE", "GCE(0.5)", "GCE(0.7)"), records)
    assert (further.loss, further.learning_rate) == ("CE", pytest.approx(rates[0] / 3, rel=1e-2))
    records += balance_records(
        study, "CE", [0.4], learning_rate=further.learning_rate, held_out="choice"
    )
    assert study.balance.edges(run, ("CE", "GCE(0.5)"), records) == [further]
    chosen = study.balance.seeded(run, ("CE", "GCE(0.5)", "GCE(0.7)"), records, range(2))
    assert [(r.loss, r.learning_rate, r.seed, r.held_out) for r in chosen] == [
        (loss, rate, seed, "test")
        for seed in range(2)
        for loss, rate in (("CE", further.learning_rate), ("GCE(0.5)", rates[1]))
    ]


def test_processes_share_the_runs_and_the_file(study, tmp_path):
    import class_scale

    shares = [class_scale.share(f"{number}/3") for number in (1, 2, 3)]
    runs = study.balance.adamw_rates()
    mine = [runs[place::parts] for place, parts in shares]
    assert sorted(map(repr, chain(*mine))) == sorted(map(repr, runs))
    with pytest.raises(argparse.ArgumentTypeError, match="got '3/2'"):
        class_scale.share("3/2")
    first, second = (study.records.Study(tmp_path / "balance.json") for _ in range(2))
    for process, run in zip((first, second, first), map(class_scale.quick, runs), strict=False):
        process.add(run, {"top1": []})
    assert len(study.records.Study(tmp_path / "balance.json").runs) == 3


def test_records_of_before_an_argument_are_of_its_default(study, tmp_path):
    run = study.plans.scale_run(10, "CE", study.plans.PLAIN)
    older = {k: v for k, v in vars(run).items() if k not in ("noise_kind", "network")}
    (tmp_path / "scale.json").write_text(json.dumps({"runs": [{"run": older}]}))
    assert study.records.Study(tmp_path / "scale.json").has(run)


def test_balanced_gradients_are_of_size_one_and_nce_never_lets_a_wrong_label_go(study):
    rows = {
        (r["num_classes"], r["loss"], r["balance"]): r for r in study.gradients.balance_record()
    }
    for K in study.gradients.CLASSES:
        for balance in ("row", "batch"):
            for loss, size in (("NCE", 1), ("NNCE", 1), ("ANL(1,1)", 2)):
                uniform = rows[K, loss, balance]["uniform"]
                assert uniform == pytest.approx(size * ((K - 1) / K) ** 0.5)
        nce, nnce = rows[K, "NCE", "row"], rows[K, "NNCE", "row"]
        assert min(nce["wrong"]) > 0.94
        assert max(nce["right"][1:]) < 0.2
        assert min(r for r in nnce["right"] if r) > 0.99


@pytest.mark.parametrize("name", ["CE", "NCE", "NNCE", "GCE(0.7)", "MAE", "DFT"])
def test_measured_norms_are_the_derived_ones(study, name):
    for K in (10, 2000):
        measured = study.gradients.at_uniform(study.gradients.NAMED[name], K)
        assert measured == pytest.approx(study.gradients.expected_at_uniform(name, K), rel=1e-10)


@pytest.mark.parametrize("K", [10, 2000])
def test_the_largest_norm_of_nnce_is_the_derived_one(study, K):
    largest = study.gradients.largest(ak.NNCE(min_prob=1e-7), K)
    derived = (K * (K - 1)) ** 0.5 / -np.log(1e-7) * (1 - largest["rest"])
    assert largest["norm"] == pytest.approx(derived, rel=1e-3)
