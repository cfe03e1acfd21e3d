import pytest
import torch

import anl_kernels as ak
from anl_kernels import presets

NUM_CLASSES = {"mnist": 10, "cifar10": 10, "cifar100": 100, "webvision": 50, "clothing1m": 14}
BY_NOISE = {
    *(f"cifar10-{kind}" for kind in ("symmetric", "asymmetric", "instance")),
    *(f"cifar100-symmetric-{rate}" for rate in (0.0, 0.2, 0.4, 0.6, 0.8)),
    *(f"cifar100-asymmetric-{rate}" for rate in (0.1, 0.2, 0.3, 0.4)),
}
DATASETS = {
    "anl_ce": set(NUM_CLASSES),
    "anl_ce_er": {"cifar10", "cifar100"},
    "anl_fl": set(NUM_CLASSES) - {"webvision"},
    "nce_rce": set(NUM_CLASSES),
    "nfl_rce": set(NUM_CLASSES) - {"clothing1m"},
    "nce_mae": set(NUM_CLASSES) - {"clothing1m"},
    "nfl_mae": set(NUM_CLASSES) - {"clothing1m"},
    "sce": set(NUM_CLASSES),
    "gce": set(NUM_CLASSES),
    "nce_agce": set(NUM_CLASSES),
    "nce_aul": {"mnist", "cifar10", "cifar100"},
    "nce_ael": {"mnist", "cifar10", "cifar100"},
    "nce_amse": set(NUM_CLASSES) - {"mnist"},
    "nfl_amse": set(NUM_CLASSES) - {"mnist"},
    "eps_ce_mae": BY_NOISE | {"webvision", "clothing1m"},
    "eps_fl_mae": BY_NOISE | {"webvision", "clothing1m"},
}


def test_the_table_is_complete():
    found = [(preset.name, preset.dataset) for preset in presets.list()]
    assert len(found) == len(set(found))
    assert set(found) == {(name, dataset) for name in DATASETS for dataset in DATASETS[name]}


@pytest.mark.parametrize("preset", presets.list(), ids=lambda p: f"{p.name}-{p.dataset}")
def test_loss_and_gradient_are_finite(preset, device):
    criterion = getattr(presets, preset.name)(preset.dataset)
    assert getattr(criterion, "criterion", criterion).terms == preset.terms
    assert getattr(criterion, "weight", None) == (preset.entropy_weight or None)
    num_classes = NUM_CLASSES[preset.dataset.partition("-")[0]]
    logits = (3 * torch.randn(16, num_classes, device=device)).requires_grad_()
    loss = criterion(logits, torch.randint(num_classes, (16,), device=device))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert logits.grad.any()
    assert preset.num_classes == num_classes
    assert preset.source
    assert preset.note


@pytest.mark.parametrize(
    ("name", "dataset", "terms"),
    [
        ("anl_ce", "cifar100", 10.0 * ak.NCE() + 1.0 * ak.NNCE(1e-7)),
        ("anl_ce", "webvision", 20.0 * ak.NCE() + 1.0 * ak.NNCE(1e-7)),
        ("anl_ce_er", "cifar100", 10.0 * ak.NCE() + 1.0 * ak.NNCE(1e-7, 1 - 1e-7)),
        ("anl_fl", "cifar10", 5.0 * ak.NFL(0.5) + 5.0 * ak.NNFL(0.5, 1e-7)),
        ("nce_rce", "mnist", 1.0 * ak.NCE() + 10.0 * ak.RCE()),
        ("nfl_rce", "webvision", 50.0 * ak.NFL(0.5) + 0.1 * ak.RCE()),
        ("nce_mae", "cifar100", 10.0 * ak.NCE() + 0.1 * ak.MAE()),
        ("nfl_mae", "cifar100", 10.0 * ak.NFL(0.5) + 1.0 * ak.MAE()),
        ("sce", "cifar100", 6.0 * ak.CE() + 0.1 * ak.RCE()),
        ("gce", "clothing1m", 1.0 * ak.GCE(0.6)),
        ("nce_agce", "cifar100", 10.0 * ak.NCE() + 0.1 * ak.AGCE(1.8, 3)),
        ("nce_aul", "cifar10", 1.0 * ak.NCE() + 4.0 * ak.AUL(6.3, 1.5)),
        ("nce_ael", "cifar10", 1.0 * ak.NCE() + 4.0 * ak.AEL(5)),
        ("nce_amse", "clothing1m", 5.0 * ak.NCE() + 0.1 * ak.AMSE(5)),
        ("nfl_amse", "cifar100", 5.0 * ak.NFL(0.5) + 1.0 * ak.AMSE(20)),
        ("nfl_amse", "webvision", 50.0 * ak.NFL(0.5) + 1.0 * ak.AMSE(30)),
        (
            "eps_ce_mae",
            "cifar10-symmetric",
            0.01 * ak.EpsilonCE(1e5, min_prob=1e-8) + 10.0 * ak.MAE(),
        ),
        (
            "eps_fl_mae",
            "cifar100-asymmetric-0.3",
            0.005 * ak.EpsilonFL(1e2, gamma=0.1, min_prob=1e-8) + 2.0 * ak.MAE(),
        ),
        ("eps_ce_mae", "webvision", 0.015 * ak.EpsilonCE(1e3, 1e-8) + 0.6 * ak.MAE()),
        # alpha is 0: the other term alone
        ("nce_agce", "mnist", 1.0 * ak.AGCE(4, 0.2)),
        ("nce_aul", "mnist", 1.0 * ak.AUL(3, 0.1)),
        ("nce_ael", "mnist", 1.0 * ak.AEL(3.5)),
    ],
)
def test_published_values(name, dataset, terms):
    assert presets.get(name, dataset).terms == terms


def test_l1_factors():
    anl = {"mnist": 1e-6, "cifar10": 5e-5, "cifar100": 5e-7, "webvision": 5e-6}
    jal = {"cifar10": 5e-5, "cifar100": 5e-6, "webvision": 0, "clothing1m": 0}
    for preset in presets.list():
        kind = preset.name.partition("_")
        factors = anl if kind[0] == "anl" else jal if kind[2] == "amse" else {preset.dataset: 0}
        assert preset.l1 == factors.get(preset.dataset)
        assert ("weight decay 0;" in preset.note) == bool(preset.l1)


def test_of_clothing1m_the_source_says_what_follow_up_papers_do_not():
    assert "follow-up papers" in presets.get("anl_ce", "clothing1m").note
    assert presets.get("nfl_amse", "clothing1m").note == "weight decay 0.001"


def test_factors_of_the_entropy_regulariser():
    factors = {("anl_ce_er", "cifar10"): 2.0, ("anl_ce_er", "cifar100"): 0.01}
    for preset in presets.list():
        assert preset.entropy_weight == factors.get((preset.name, preset.dataset), 0.0)
    criterion = presets.anl_ce_er("cifar10", ignore_index=255)
    assert criterion.criterion.options == {"ignore_index": 255}
    with pytest.raises(TypeError, match="process_group"):
        presets.anl_ce_er("cifar10", process_group="data")


def test_options_reach_the_loss():
    criterion = presets.jal_ce("cifar10", ignore_index=255, reduction="none")
    loss = criterion(torch.randn(2, 10), torch.tensor([3, 255]))
    assert loss.shape == (2,)
    assert loss[1] == 0


@pytest.fixture
def nobody_warned(monkeypatch):
    monkeypatch.setattr(presets, "_warned", set())


def call(criterion, num_classes, rows=4):
    return criterion(torch.randn(rows, num_classes), torch.arange(rows) % num_classes)


@pytest.mark.usefixtures("nobody_warned")
@pytest.mark.parametrize("num_classes", [41, 1000, 2])
def test_far_from_its_classes_a_preset_warns_once(num_classes):
    told = rf"presets.anl_ce\('cifar10'\) .* 10 classes, .* have {num_classes}: .*many_classes.md"
    with pytest.warns(UserWarning, match=told):
        call(presets.anl_ce("cifar10"), num_classes)
    call(presets.anl_ce("cifar10"), num_classes)  # once: warnings are errors here
    with pytest.warns(UserWarning, match=rf"presets.sce\('mnist'\) .* have {num_classes}"):
        call(presets.sce("mnist"), num_classes)


@pytest.mark.usefixtures("nobody_warned")
def test_the_regularised_preset_warns_too():
    with pytest.warns(UserWarning, match=r"presets.anl_ce_er\('cifar100'\) .* have 1000"):
        call(presets.anl_ce_er("cifar100"), 1000)


@pytest.mark.usefixtures("nobody_warned")
@pytest.mark.parametrize("num_classes", [3, 5, 10, 14, 40])
def test_near_its_classes_a_preset_says_nothing(num_classes):
    for preset in presets.list():
        if preset.num_classes == 10:
            call(getattr(presets, preset.name)(preset.dataset), num_classes)


@pytest.mark.usefixtures("nobody_warned")
def test_padding_does_not_count():
    call(presets.anl_ce("cifar10", num_classes=10), 64)
    call(ak.RobustLoss(presets.get("anl_ce", "cifar10").terms), 1000)


@pytest.mark.usefixtures("nobody_warned")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_code_is_one_graph_without_a_warning():
    torch.compiler.reset()
    criterion = presets.anl_ce("cifar10")
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    assert call(compiled, 1000).isfinite()
    assert repr(criterion).startswith("RobustLoss(")


def test_unknown_names_are_answered_with_the_known():
    with pytest.raises(ValueError, match="mnist, cifar10, cifar100 for nce_ael, got 'imagenet'"):
        presets.nce_ael("imagenet")
    with pytest.raises(ValueError, match="anl_ce, anl_ce_er, anl_fl, nce_rce"):
        presets.get("anl", "cifar10")


def test_for_many_classes():
    criterion = presets.large_vocabulary(reduction="sum")
    assert criterion.terms.terms == (ak.RelativeGCE(q=0.7),)
    assert criterion.options == {"reduction": "sum"}
    assert criterion(torch.zeros(2, 5000), torch.tensor([0, 4999])).isfinite()
