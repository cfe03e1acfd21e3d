"""A small problem with labels that are wrong, and a model that learns it."""

import torch
from torch import nn

NUM_CLASSES, NUM_SAMPLES = 5, 200


def noisy_blobs(noise=0.4, seed=0):
    """(x, given labels, true labels): a cloud of points for each class, labels flipped."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.arange(NUM_SAMPLES) % NUM_CLASSES
    centres = 6 * torch.randn(NUM_CLASSES, 4, generator=generator)
    x = centres[true] + torch.randn(NUM_SAMPLES, 4, generator=generator)
    flipped = torch.rand(NUM_SAMPLES, generator=generator) < noise
    shift = torch.randint(1, NUM_CLASSES, (NUM_SAMPLES,), generator=generator)
    return x, torch.where(flipped, (true + shift) % NUM_CLASSES, true), true


def network(seed=1):
    """From 4 numbers to 5 classes."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, NUM_CLASSES)
    )


def train(model, criterion, x, y, epochs, lr=0.1):
    """Losses of epochs, by SGD over batches of 50 with their places in the training set."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(epochs):
        total = 0.0
        for index in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            loss = criterion(model(x[index]), y[index], index)
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total)
    return losses
