"""One probe at one learning rate: torch's own layers, optimizer and scheduler, an epoch at a time."""

import math
from itertools import pairwise

import torch
from torch import nn


def train_plain(x, y, sizes, lr, *, seed, warmup, epochs, batch, weight_decay):
    """Return the trained module; ``y`` is [n] classes or [n, K] of several labels."""
    generator = torch.Generator().manual_seed(seed)
    linears = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    with torch.no_grad():
        for linear in linears:  # as nn.Linear does, from the generator
            bound = 1 / math.sqrt(linear.in_features)
            nn.init.uniform_(linear.weight, -bound, bound, generator=generator)
            nn.init.uniform_(linear.bias, -bound, bound, generator=generator)
    model = nn.Sequential(*[m for linear in linears for m in (linear, nn.ReLU())][:-1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.999), weight_decay=weight_decay)
    per_epoch = math.ceil(len(x) / batch)
    rising, all_steps = warmup * per_epoch, (warmup + epochs) * per_epoch

    def factor(done):
        step = done + 1
        if step <= rising:
            return step / rising
        return (1 + math.cos(math.pi * (step - rising) / (all_steps - rising + 1))) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    loss_of = nn.CrossEntropyLoss() if y.ndim == 1 else nn.BCEWithLogitsLoss()
    for _ in range(warmup + epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            loss = loss_of(model(x[rows]), y[rows] if y.ndim == 1 else y[rows].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model
