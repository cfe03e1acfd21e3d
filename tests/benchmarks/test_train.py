from dataclasses import asdict, replace

import pytest
import torch

from benchmarks.cases import memory, timed
from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.train import Trainee, trainee
from benchmarks.gate import gate
from benchmarks.inputs import make_inputs
from benchmarks.problems import Problem
from benchmarks.run import jobs
from benchmarks.suites.train import MAIN, TRAIN
from benchmarks.timing import Budget
from tests.benchmarks.records import options
from tests.helpers import error

HERE = [name for name in MAIN if "cpu" in CONTENDERS[name].devices and name != "train_compiled"]


@pytest.fixture
def problem(device):
    return Problem(64, 300, sigma=3.0, device=device.type, hidden=32, layers=2)


@pytest.fixture
def inputs(problem):
    trainee.cache_clear()
    return make_inputs(problem)


@pytest.fixture
def gradients(monkeypatch, inputs):
    """Of all parameters, by a contender's step, which then leaves the model as it was."""

    def of(name):
        found = []

        def update(one):
            found.extend(parameter.grad for parameter in one.model.parameters())
            one.optimizer.zero_grad()

        with monkeypatch.context() as patch:
            patch.setattr(Trainee, "update", update)
            CONTENDERS[name].build(inputs)(0)()
        return found

    trainee(inputs.problem)  # made with the real update
    return of


def small_specs(problem, **arguments):
    """What the suite measures, of a problem in place of its own; without the compiler."""
    specs = TRAIN.specs(options("train", problem.device, contenders=HERE, **arguments))
    return [replace(spec, problem=problem) for spec in specs]


@pytest.mark.parametrize("name", ["train_ours", "train_ours_inplace", "train_careful"])
def test_contenders_take_the_same_step(name, gradients):
    for mine, official in zip(gradients(name), gradients("train_official"), strict=True):
        assert error(mine, official) <= 1e-4


def test_cross_entropy_takes_another_step(gradients):
    both = zip(gradients("train_cross_entropy"), gradients("train_official"), strict=True)
    assert all(error(mine, official) > 0.1 for mine, official in both)


def test_the_roofline_has_a_gradient_for_every_parameter(gradients):
    assert all(gradient.norm() > 0 for gradient in gradients("train_no_loss"))


def test_logits_are_those_of_the_problem(inputs):
    logits = trainee(inputs.problem).logits(inputs.leaves[0][0])
    assert logits.shape == (64, 300)
    assert logits.std().item() == pytest.approx(3.0, rel=0.1)


def test_the_model_looks_at_no_later_token(inputs):
    tokens = inputs.leaves[0][0]
    changed = tokens.view(8, 8).clone()
    changed[:, 4] = (changed[:, 4] + 1) % 300
    one = trainee(inputs.problem)
    before, after = (one.logits(t).view(8, 8, 300) for t in (tokens, changed.view(-1)))
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.isclose(before[:, 4:], after[:, 4:]).all(dim=-1).any()


@pytest.mark.parametrize("name", HERE)
def test_a_step_trains_the_model_of_all(name, inputs):
    one = trainee(inputs.problem)
    parameters = dict(one.model.named_parameters())
    before = {k: parameter.detach().clone() for k, parameter in parameters.items()}
    CONTENDERS[name].build(inputs)(0)()
    assert [k for k, parameter in parameters.items() if torch.equal(parameter, before[k])] == []
    assert all(parameter.grad is None for parameter in parameters.values())
    assert trainee(inputs.problem) is one


def test_every_contender_is_measured_beside_the_roofline(problem):
    (spec,) = small_specs(problem, tables=["main"])
    case = timed(spec, Budget(0.01, 2))
    assert [(m.contender, m.error) for m in case.measurements] == [(name, None) for name in HERE]
    assert case.share_of_roofline(case["train_no_loss"]) == pytest.approx(1)
    assert all(case.share_of_roofline(m) and case.over_ours(m) for m in case.measurements)


def test_memory_is_measured_in_a_process_for_each_contender(problem):
    specs = small_specs(problem, tables=["memory"])
    arguments = options("train", contenders=HERE)
    assert [job.arguments["specs"][0]["contenders"] for job in jobs(specs, arguments)] == [
        (name,) for name in HERE
    ]
    (case,) = memory([asdict(replace(specs[0], contenders=("train_ours",)))])
    (measured,) = case.measurements
    if "OSError" in (measured.error or ""):
        pytest.skip(measured.error)
    assert measured.error is None
    assert measured.ratios["logits"] >= 0


def test_the_gate_checks_the_loss_on_logits_of_the_size(problem):
    checks = list(gate(small_specs(problem)))
    assert [check.what for check in checks if not check.passed] == []
    assert {str(check.what).split(", 64 x 300 ")[0] for check in checks} == {
        "anl_kernels",
        "anl_kernels, inplace=True",
    }
    assert len(checks) == 4


def test_sizes_are_tokens_width_and_vocabulary():
    first = TRAIN.specs(options("train", "cuda", shapes=[(16, 8, 100)]))[0]
    problem = first.problem
    assert (problem.rows, problem.hidden, problem.classes, problem.layers) == (16, 8, 100, 4)
    assert "train_liger" in first.contenders
    assert problem.shape == "16 x 8 x 100"
