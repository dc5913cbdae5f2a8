"""Linear and MLP probes, trained for all learning rates of a sweep at once.

The probes of R learning rates see the same batches and start from the same weights, so they are one problem:
weights have a leading axis of rates, a batch goes through all of them in one product, and AdamW, whose step
is linear in the learning rate, updates all at once. MLPs go in parts, as memory allows, and caches.

Shapes: n samples, B of a batch, D dimensions, H hidden ones, K classes, R learning rates.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rsbackbones.data.labelled.dataset import Array
from rsbackbones.device import choose_device
from rsbackbones.eval.feature_table import FeatureTable, validate_table

RATES = tuple(float(f"{digit}e{power}") for power in (-4, -3, -2) for digit in range(1, 10))
_BETAS, _EPS = (0.9, 0.999), 1e-8
# How many numbers the probes that are trained at once may hold: 512 MB; on a CPU, what its caches hold. There
# an MLP probe alone fills them, and more at once take longer than one by one (benchmarks/probe_sweep.py).
_AT_ONCE, _IN_CACHES = 2**27, 2**23

# One layer; or a hidden one and ReLU before it.
ProbeType = Literal["linear", "mlp"]
# Called with the epochs done and those in all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """How probes are trained; the defaults are CROMA's (appendix A.4.2; the hidden size: section 3.1).

    Attributes:
        hidden: size of the hidden layer of an MLP probe.
        rates: the learning rates.
        warmup: epochs in which they rise linearly.
        epochs: those after, in which they fall along a cosine.
        batch: samples of a batch; a smaller set is one batch, and an epoch's last batch is what is left.
        weight_decay: of AdamW, on weights and biases.
        standardize: take off the mean and divide by the deviation of the training features.
    """

    hidden: int = 2048
    rates: tuple[float, ...] = RATES
    warmup: int = 5
    epochs: int = 100
    batch: int = 1024
    weight_decay: float = 0.01
    standardize: bool = False

    def __post_init__(self) -> None:
        if not self.rates or min(self.rates) <= 0 or len(set(self.rates)) < len(self.rates):
            raise ValueError(f"rates={self.rates}: expected learning rates above 0, at least one, each once")
        if self.warmup < 0 or min(self.hidden, self.epochs, self.batch) < 1:
            raise ValueError(
                f"hidden={self.hidden}, warmup={self.warmup}, epochs={self.epochs}, batch={self.batch}: "
                "expected at least 1, and a warm-up of at least 0"
            )


CROMA_OPTIONS = ProbeOptions()


@dataclass(frozen=True, kw_only=True)
class Probes:
    """Trained probes, one for each learning rate.

    Attributes:
        rates: those.
        layers: of each the weights [R, out, in] and the biases [R, out].
        mean: what is taken off the features, [D] (zeros where they are not standardized).
        scale: what they are then divided by, [D].
        multilabel: whether scores are those of several labels.
    """

    rates: tuple[float, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]
    mean: Tensor
    scale: Tensor
    multilabel: bool

    def scores(self, features: Array, rate: float) -> Array:
        """Return the probabilities [n, K] of the probe of one learning rate for features [n, D].

        Raises:
            ValueError: the features have another number of dimensions, or no probe had this rate.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features {list(features.shape)}: these probes take [n, {len(self.mean)}]")
        if rate not in self.rates:
            raise ValueError(f"no probe was trained at the learning rate {rate}; there are {self.rates}")
        number = self.rates.index(rate)
        layers = [(weight[number, None], bias[number, None]) for weight, bias in self.layers]
        scores = np.empty((len(features), layers[-1][1].shape[1]), np.float32)
        block = max(1, _AT_ONCE // 16 // sum(sum(weight.shape) for weight, _ in layers))
        for start in range(0, len(features), block):
            rows = torch.from_numpy(np.ascontiguousarray(features[start : start + block], np.float32))
            logits = _forward(layers, (rows.to(self.mean.device) - self.mean) / self.scale)[0]
            given = logits.sigmoid() if self.multilabel else logits.softmax(1)
            scores[start : start + block] = given.cpu().numpy()
        return scores


def train_probes(
    train: FeatureTable,
    *,
    classes: int,
    kind: ProbeType = "linear",
    seed: int = 0,
    options: ProbeOptions = CROMA_OPTIONS,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Probes:
    """Train a probe for each learning rate.

    The loss is cross-entropy, or of several labels binary cross-entropy, the mean over samples and classes.
    ``seed`` is that of the first weights (as those of ``torch.nn.Linear``) and of the order of the samples.

    Raises:
        ValueError: samples or labels are not as they should be, or ``kind`` is unknown.
    """
    if kind not in ("linear", "mlp"):
        raise ValueError(f"kind={kind!r}: expected 'linear' or 'mlp'")
    train = validate_table("train", train, classes)
    device = choose_device(device)
    x, y = torch.from_numpy(train.features).to(device), torch.from_numpy(train.labels).to(device)
    mean, scale = torch.zeros_like(x[0]), torch.ones_like(x[0])
    if options.standardize:
        scale, mean = torch.std_mean(x, dim=0, correction=0)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        x = (x - mean) / scale
    sizes = [x.shape[1], options.hidden, classes] if kind == "mlp" else [x.shape[1], classes]
    # Of one rate: parameters, gradients and moments, and what passes through a batch and back.
    rows = min(len(x), options.batch)
    numbers = sum(6 * wide * out + 4 * rows * out for wide, out in pairwise(sizes))
    room = min(_AT_ONCE, _IN_CACHES) if x.device.type == "cpu" else _AT_ONCE
    together = max(1, room // numbers)
    parts = [options.rates[i : i + together] for i in range(0, len(options.rates), together)]
    epochs = options.warmup + options.epochs
    trained = []
    for number, rates in enumerate(parts):

        def report(done: int, before: int = number * epochs) -> None:
            if progress is not None:
                progress(before + done, len(parts) * epochs)

        trained.append(_train(x, y, sizes, rates, seed, options, report))
    layers = tuple(
        (torch.cat([weight for weight, _ in layer]), torch.cat([bias for _, bias in layer]))
        for layer in zip(*trained, strict=True)
    )
    return Probes(rates=options.rates, layers=layers, mean=mean, scale=scale, multilabel=y.ndim == 2)


def _train(
    x: Tensor,
    y: Tensor,
    sizes: Sequence[int],
    rates: Sequence[float],
    seed: int,
    options: ProbeOptions,
    report: Callable[[int], None],
) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    parameters = []
    for wide, out in pairwise(sizes):
        for shape in ((out, wide), (out,)):
            first = torch.empty(shape).uniform_(-(wide**-0.5), wide**-0.5, generator=generator)
            parameters.append(first.to(x.device).expand(len(rates), *shape).clone().requires_grad_())
    layers = list(zip(parameters[::2], parameters[1::2], strict=True))
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    peaks = torch.tensor(rates, device=x.device)
    per_epoch = math.ceil(len(x) / options.batch)
    warmup, steps = options.warmup * per_epoch, (options.warmup + options.epochs) * per_epoch
    for step in range(1, steps + 1):
        place = (step - 1) % per_epoch * options.batch
        if place == 0:
            order = torch.randperm(len(x), generator=generator).to(x.device)
        rows = order[place : place + options.batch]
        logits = _forward(layers, x[rows])  # [R, B, K]
        # The mean over the batch of each rate, summed over the rates: none touches another's gradient.
        if y.ndim == 1:
            total = F.cross_entropy(logits.flatten(0, 1), y[rows].repeat(len(rates)), reduction="sum")
            loss = total / len(rows)
        else:
            wanted = y[rows].float().expand_as(logits)
            loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / wanted[0].numel()
        gradients = torch.autograd.grad(loss, parameters)
        _adamw(
            parameters, gradients, moments, step, peaks * _factor(step, warmup, steps), options.weight_decay
        )
        if step % per_epoch == 0:
            report(step // per_epoch)
    return [(weight.detach(), bias.detach()) for weight, bias in layers]


def _forward(layers: Sequence[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """Give the logits [R, B, K] of all probes for [B, D]."""
    weight, bias = layers[0]
    # All rates take the same input, so the first layers are one product, [B, D] x [D, R * out].
    out: Tensor = F.linear(x, weight.flatten(0, 1), bias.flatten()).unflatten(1, bias.shape).movedim(1, 0)
    for weight, bias in layers[1:]:
        out = torch.baddbmm(bias.unsqueeze(1), out.relu(), weight.transpose(1, 2))
    return out


def _factor(step: int, warmup: int, steps: int) -> float:
    """Of the learning rate at a step, counted from 1: up to 1 linearly, then down along a cosine, never 0."""
    if step <= warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup + 1)))


@torch.no_grad()
def _adamw(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    moments: Sequence[tuple[Tensor, Tensor]],
    step: int,
    rates: Tensor,
    weight_decay: float,
) -> None:
    """A step of ``torch.optim.AdamW``, which takes one learning rate; here the leading axis has one each."""
    for parameter, gradient, (first, second) in zip(parameters, gradients, moments, strict=True):
        rate = rates.view(-1, *[1] * (parameter.ndim - 1))
        first.lerp_(gradient, 1 - _BETAS[0])
        second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        update = second.sqrt().div_(math.sqrt(1 - _BETAS[1] ** step)).add_(_EPS)
        torch.div(first, update, out=update)
        parameter.mul_(1 - rate * weight_decay)
        parameter.sub_(update.mul_(rate / (1 - _BETAS[0] ** step)))
