"""How different the patch encodings of an image are, and how much they know of their place.

Source: Fuller et al., CROMA, NeurIPS 2023, appendix A.2, table 12. Diversity is the mean cosine similarity
between the encodings of patches at different places of one image, averaged over images: near 1 the patches
have become alike and local information is lost. Position probing trains an MLP probe to tell the place of a
patch from its encoding, and reports its cross-entropy: near 0 an encoding tells where it is rather than what
is there; guessing among n places has log(n).

What the paper leaves open: the learning rate of the position probe is the one with the lowest
cross-entropy on a held-out fifth of the training images, and the probe that is scored, on images of the
test split, was trained on the other four fifths. Encodings are the tokens after the last LayerNorm.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rsbackbones.data.labelled.dataset import Array, LabelledDataset
from rsbackbones.eval.batches import frozen_eval, input_batches
from rsbackbones.eval.feature_table import FeatureTable
from rsbackbones.eval.linear_probe import CROMA_OPTIONS, ProbeOptions, Probes, Progress, train_probes
from rsbackbones.eval.probe import hold_out
from rsbackbones.models.backbone import unwrap_model


def mean_pairwise_cosine(x: Tensor) -> Tensor:
    """Return the mean cosine similarity between different vectors of [..., n, D]: [...], float64, on the CPU.

    In closed form: the square of the sum of unit vectors is the sum over all pairs. The similarity to a zero
    vector is 0.

    Raises:
        ValueError: fewer than two vectors.
    """
    count = x.shape[-2]
    if count < 2:
        raise ValueError(f"similarity between vectors needs at least two, got {list(x.shape)}")
    unit = nn.functional.normalize(x.cpu().double(), dim=-1)  # not every device has float64
    pairs = unit.sum(-2).square().sum(-1) - unit.square().sum((-2, -1))
    return pairs / (count * (count - 1))


def patch_similarity(
    model: nn.Module, data: LabelledDataset, *, split: str = "test", batch_size: int = 32
) -> dict[str, float]:
    """Return for every stream the mean cosine similarity between patches of an image, averaged over images.

    Args:
        model: from ``create_model``.
        data: labelled or not; images of one size.
        split: whose images.
        batch_size: images at a time.

    Raises:
        ValueError: no such split, images that the model cannot serve, or of a single patch.
    """
    found: dict[str, list[Tensor]] = {}
    backbone = unwrap_model(model)
    with frozen_eval(model):
        for images in input_batches(model, data, split, batch_size=batch_size):
            for stream, features in backbone.forward_streams(images).items():
                found.setdefault(stream, []).append(mean_pairwise_cosine(features.tokens[stream]))
    return {stream: float(torch.cat(similarities).mean()) for stream, similarities in found.items()}


@dataclass(frozen=True, kw_only=True)
class Positions:
    """What a probe of positions found.

    Attributes:
        cross_entropy: on the test images, in nats.
        guessing: that of knowing nothing, log(n) for n places.
        accuracy: the part of the test patches whose place is told right.
        lr: the chosen learning rate.
    """

    cross_entropy: float
    guessing: float
    accuracy: float
    lr: float


def probe_positions(
    train: Array,
    test: Array,
    *,
    seed: int = 0,
    options: ProbeOptions = CROMA_OPTIONS,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Positions:
    """Train an MLP probe to tell the places of patches, and score it.

    Args:
        train: encodings of images, [images, n, D]; the patch at every place in the same order.
        test: those of others.
        seed: of the first weights, the order of the patches, and which images are held out.
        options: of the probe; fewer ``rates`` take less time.
        device: where it is trained.
        progress: called with the epochs done and all.

    Raises:
        ValueError: shapes that do not fit, fewer than two training images or places, NaN or infinity.
    """
    if train.ndim != 3 or train.shape[1:] != test.shape[1:] or len(train) < 2 or not len(test):
        raise ValueError(
            f"encodings {list(train.shape)} (train) and {list(test.shape)} (test): expected [images, n, D] "
            "of the same places and width, at least two images to train on and one to test"
        )
    places = train.shape[1]
    part, held_out = hold_out(_samples(train), seed)
    probes = train_probes(
        part, classes=places, kind="mlp", seed=seed, options=options, device=device, progress=progress
    )
    lr = min(probes.rates, key=lambda rate: _cross_entropy(probes, held_out, rate)[0])
    cross_entropy, accuracy = _cross_entropy(probes, _samples(test), lr)
    return Positions(cross_entropy=cross_entropy, guessing=math.log(places), accuracy=accuracy, lr=lr)


def position_probing(
    model: nn.Module,
    data: LabelledDataset,
    *,
    streams: Sequence[str] | None = None,
    seed: int = 0,
    options: ProbeOptions = CROMA_OPTIONS,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> dict[str, Positions]:
    """Probe the places of patches, trained on the images of ``train``, scored on those of ``test``.

    Args:
        model: from ``create_model``.
        data: labelled or not; images of one size.
        streams: which; default: all that the set feeds.
        seed, options, device, progress: as for :func:`probe_positions`.
        batch_size: images at a time.

    Raises:
        ValueError: no such split or stream, or images that the model cannot serve.
    """
    splits = {split: _encodings(model, data, split, streams, batch_size) for split in ("train", "test")}
    return {
        stream: probe_positions(
            train, splits["test"][stream], seed=seed, options=options, device=device, progress=progress
        )
        for stream, train in splits["train"].items()
    }


def _encodings(
    model: nn.Module, data: LabelledDataset, split: str, streams: Sequence[str] | None, batch_size: int
) -> dict[str, Array]:
    found: dict[str, list[Array]] = {}
    backbone = unwrap_model(model)
    with frozen_eval(model):
        for images in input_batches(model, data, split, batch_size=batch_size):
            for stream, features in backbone.forward_streams(images, streams).items():
                found.setdefault(stream, []).append(features.tokens[stream].float().cpu().numpy())
    return {stream: np.concatenate(parts) for stream, parts in found.items()}


def _samples(encodings: Array) -> FeatureTable:
    images, places, width = encodings.shape
    return FeatureTable(
        encodings.reshape(-1, width),
        np.tile(np.arange(places), images),
        np.repeat(np.arange(images), places),
    )


def _cross_entropy(probes: Probes, samples: FeatureTable, rate: float) -> tuple[float, float]:
    """Return the cross-entropy and the accuracy of the probe of one learning rate."""
    scores = probes.scores(samples.features, rate)
    right = np.take_along_axis(scores, samples.labels[:, None], axis=1).astype(np.float64)
    # Below is what float32 holds of a probability that has become 0.
    losses = -np.log(np.maximum(right, np.finfo(np.float32).tiny))
    return float(losses.mean()), float((scores.argmax(1) == samples.labels).mean())
