"""The callbacks of Lightning, with the real library."""

import importlib
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import anl_kernels as ak
from anl_kernels.recipes import TruncatedGCE

lightning = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings("ignore")

from anl_kernels.integrations.lightning import L1Penalty, RefreshTruncatedGCE  # noqa: E402

FACTOR, CLIP, RATE = 0.3, 0.5, 0.2


def network():
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def data():
    torch.manual_seed(5)
    return torch.randn(12, 3).double(), torch.randint(4, (12,)), torch.arange(12)


class Classifier(lightning.LightningModule):
    def __init__(self, criterion):
        super().__init__()
        self.net, self.criterion = network(), criterion

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        x, y, index = batch
        if isinstance(self.criterion, TruncatedGCE):
            return self.criterion(self(x), y, index)
        return self.criterion(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=RATE)


def loader(batch_size):
    return DataLoader(TensorDataset(*data()), batch_size=batch_size)


def fit(module, batch_size, epochs, callback, **options):
    trainer = lightning.Trainer(
        max_epochs=epochs,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, loader(batch_size))
    return trainer


def test_l1_is_clipped_with_the_rest_and_enters_once_a_step():
    module, net = Classifier(ak.RobustLoss(ak.NCE())), network()
    fit(module, 4, 2, L1Penalty(FACTOR), gradient_clip_val=CLIP, accumulate_grad_batches=3)
    optimiser = torch.optim.SGD(net.parameters(), lr=RATE)
    x, y, _ = data()
    for _ in range(2):
        loss = ak.nce(net(x), y) + FACTOR * sum(p.abs().sum() for p in net.parameters())
        optimiser.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        assert norm > CLIP
        optimiser.step()
    for ours, wanted in zip(module.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours, wanted)


def test_l1_refuses_gradients_that_stay_scaled():
    callback, module = L1Penalty(FACTOR), Classifier(ak.RobustLoss(ak.NCE()))
    optimiser = torch.optim.Adam(module.parameters(), fused=True)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.precision_plugin.scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(RuntimeError, match="give that fused=False"):
        callback.on_before_optimizer_step(trainer, module, optimiser)


def test_truncation_is_refreshed_when_it_is_time():
    criterion = TruncatedGCE(12, k=0.25)
    module = Classifier(criterion)
    fit(module, 12, 2, RefreshTruncatedGCE(criterion, loader(5), first=2, every=2))
    assert criterion.sample_weight.tolist() == [1] * 12
    before = {name: value.clone() for name, value in module.net.state_dict().items()}
    fit(module, 12, 1, RefreshTruncatedGCE(criterion, loader(5), first=0, every=2))
    x, y, _ = data()
    p_y = F.softmax(torch.func.functional_call(module.net, before, (x,)), -1)[range(12), y]
    assert criterion.sample_weight.tolist() == (p_y > 0.25).tolist()
    assert 0 < criterion.sample_weight.sum() < 12


@pytest.mark.parametrize(("first", "every"), [(-1, 10), (0, 0)])
def test_refusals(first, every):
    with pytest.raises(ValueError, match="first must be at least 0 and every at least 1"):
        RefreshTruncatedGCE(TruncatedGCE(3), [], first, every)


NAMES = "lightning.pytorch", "pytorch_lightning"


@pytest.mark.parametrize("name", NAMES)
def test_names(monkeypatch, name):
    """The package is taken by the name under which it is there."""
    there = importlib.import_module(name)
    for other in NAMES:
        monkeypatch.setitem(sys.modules, other, there if other == name else None)
    module = "anl_kernels.integrations.lightning"
    monkeypatch.delitem(sys.modules, module)
    assert issubclass(importlib.import_module(module).L1Penalty, there.Callback)


def test_without_lightning(monkeypatch):
    for name in NAMES:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "anl_kernels.integrations.lightning")
    with pytest.raises(ImportError, match=r"pip install anl-kernels\[lightning\]"):
        importlib.import_module("anl_kernels.integrations.lightning")
