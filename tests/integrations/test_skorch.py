"""skorch's classifier, which tells by the criterion's class what makes probabilities of outputs."""

import numpy as np
import pytest
import torch
from torch import nn

import anl_kernels as ak

skorch = pytest.importorskip("skorch")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=96)
    points = np.eye(3)[labels] + 0.1 * generator.standard_normal((96, 3))
    return points.astype(np.float32), labels


def classifier(**options):
    torch.manual_seed(0)
    return skorch.NeuralNetClassifier(
        nn.Linear(3, 3),
        criterion=ak.RobustLoss,
        criterion__terms=ak.GCE(q=0.7),
        max_epochs=40,
        lr=1.0,
        verbose=0,
        **options,
    )


def test_with_the_nonlinearity_named(data):
    points, labels = data
    net = classifier(predict_nonlinearity=nn.Softmax(dim=-1)).fit(points, labels)
    probabilities = net.predict_proba(points)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    logits = net.forward(points)
    np.testing.assert_allclose(probabilities, logits.softmax(1).numpy(), rtol=1e-5)
    assert net.score(points, labels) > 0.9
    wanted = ak.robust_loss(logits, torch.from_numpy(labels), ak.GCE(q=0.7))
    found = net.get_loss(logits, torch.from_numpy(labels))
    torch.testing.assert_close(found, wanted)


def test_without_it_predict_proba_returns_logits(data):
    """What the document warns of: if skorch mends this, so may we."""
    points, labels = data
    net = classifier().fit(points, labels)
    np.testing.assert_allclose(net.predict_proba(points), net.forward(points).numpy())
