"""Every loss as its paper or official code writes it, in naive PyTorch.

An oracle that shares nothing with the package: what the terms are checked against in float64, and
whose error in a narrower dtype theirs may not exceed.
"""

import math

import torch
import torch.nn.functional as F

FORMULAS = {}
DENOMINATORS = {}


def formula(function):
    FORMULAS[function.__name__] = function
    return function


def denominator(name):
    """A normalised term's sum over the classes."""

    def register(function):
        DENOMINATORS[name] = function
        return function

    return register


def evaluate(terms, logits, target):
    """The loss of every row of (..., K) logits."""
    row = _Row(logits, target)
    return sum(weight * FORMULAS[type(term).__name__](term, row) for weight, term in terms)


def denominators(terms, logits, target):
    """What each term of every row of (..., K) logits is divided by, T first: 1 if nothing."""
    row = _Row(logits, target)
    one = torch.ones_like(row.p_y)
    made = [DENOMINATORS.get(type(term).__name__, lambda *_: one)(term, row) for _, term in terms]
    return torch.stack(made).detach()


class _Row:
    def __init__(self, logits, target):
        self.logits = logits
        self.y = target.long().unsqueeze(-1)
        self.l = logits.log_softmax(-1)
        self.p = logits.softmax(-1)
        self.num_classes = logits.shape[-1]

    def at_y(self, values):
        return values.gather(-1, self.y).squeeze(-1)

    @property
    def p_y(self):
        return self.at_y(self.p)

    @property
    def l_y(self):
        return self.at_y(self.l)


@formula
def CE(term, row):
    smooth = -row.l.mean(-1)
    return -(1 - term.label_smoothing) * row.l_y + term.label_smoothing * smooth


@formula
def NCE(term, row):
    return row.l_y / row.l.sum(-1)


@denominator("NCE")
def _sum_of_ce(term, row):
    return -row.l.sum(-1)


def _negative_ce(term, row):
    return row.l.clamp(math.log(term.min_prob), math.log(term.prob_max)) - math.log(term.min_prob)


@formula
def NNCE(term, row):
    u = _negative_ce(term, row)
    return 1 - row.at_y(u) / u.sum(-1)


@denominator("NNCE")
def _sum_of_negative_ce(term, row):
    return _negative_ce(term, row).sum(-1)


def _focal(term, l, p):
    weight = (1 - p) ** term.gamma
    return -(weight.detach() if term.detach_weight else weight) * l


@formula
def FL(term, row):
    return row.at_y(_focal(term, row.l, row.p))


@formula
def NFL(term, row):
    focal = _focal(term, row.l, row.p)
    return row.at_y(focal) / focal.sum(-1)


@denominator("NFL")
def _sum_of_focal(term, row):
    return _focal(term, row.l, row.p).sum(-1)


def _negative_focal(term, row):
    l = row.l.clamp(min=math.log(term.min_prob))
    largest = -((1 - term.min_prob) ** term.gamma) * math.log(term.min_prob)
    return largest - _focal(term, l, l.exp())


@formula
def NNFL(term, row):
    u = _negative_focal(term, row)
    return 1 - row.at_y(u) / u.sum(-1)


@denominator("NNFL")
def _sum_of_negative_focal(term, row):
    return _negative_focal(term, row).sum(-1)


@formula
def MAE(term, row):
    return 1 - row.p_y


@formula
def GCE(term, row):
    return (1 - row.p_y.clamp(min=term.min_prob) ** term.q) / term.q


@formula
def RCE(term, row):
    clamped = row.p.clamp(min=term.min_prob)
    return -math.log(term.log_clip) * clamped.scatter(-1, row.y, 0).sum(-1)


@formula
def AGCE(term, row):
    return ((term.a + 1) ** term.q - (term.a + row.p_y) ** term.q) / term.q


@formula
def AUL(term, row):
    return ((term.a - row.p_y) ** term.q - (term.a - 1) ** term.q) / term.q


@formula
def AEL(term, row):
    return torch.exp(-row.p_y / term.a)


@formula
def DFT(term, row):
    return -row.p_y.detach() * row.l_y


def _gce(term, row):
    return 1 - row.p.clamp(min=term.min_prob) ** term.q


@formula
def NGCE(term, row):
    v = _gce(term, row)
    return row.at_y(v) / v.sum(-1)


@denominator("NGCE")
def _sum_of_gce(term, row):
    return _gce(term, row).sum(-1)


@formula
def AMSE(term, row):
    one_hot = F.one_hot(row.y.squeeze(-1), row.num_classes)
    return (row.p - term.a * one_hot).square().mean(-1)


@formula
def RelativeGCE(term, row):
    return -((row.p_y / row.p.amax(-1)) ** term.q).detach() * row.l_y


def _epsilon_log_prob(term, row):
    top = F.one_hot(row.p.argmax(-1), row.num_classes)
    return ((row.p + term.m * top) / (1 + term.m)).clamp(min=term.min_prob).log()


@formula
def EpsilonCE(term, row):
    return -row.at_y(_epsilon_log_prob(term, row))


@formula
def EpsilonFL(term, row):
    l = row.at_y(_epsilon_log_prob(term, row))
    return -((1 - l.exp()) ** term.gamma).detach() * l


@formula
def OnlyTopP(term, row):
    return torch.where(row.p_y >= term.threshold, 1 - row.p_y, 0)


@formula
def OnlyBottomP(term, row):
    return torch.where(row.p_y <= term.threshold, 1 - row.p_y, 0)


@formula
def OnlyTopLogP(term, row):
    return torch.where(row.p_y >= term.threshold, -row.l_y, 0)


@formula
def OnlyBottomLogP(term, row):
    return torch.where(row.p_y <= term.threshold, -row.l_y, 0)


@formula
def EAFT(term, row):
    entropy = torch.special.entr(row.p).sum(-1)
    return -((entropy / term.unit) ** term.alpha).detach() * row.l_y


@formula
def DEFT(term, row):
    q = row.p.square().sum(-1).detach()
    return (1 - row.p_y**q) / q


@formula
def ZLoss(term, row):
    return row.logits.logsumexp(-1).square()
