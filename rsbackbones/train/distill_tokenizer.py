"""``python -m rsbackbones.train.distill_tokenizer``: from a model for some bands to one for any bands.

The model's linear tokenizer is replaced by a :class:`WavelengthTokenizer`; all else is kept. That learns to
give the tokens that the linear one gives for the model's own bands, from whatever bands it is given: all of
them, some of them, or those of a made-up sensor, whose images are interpolated between the model's bands.

The target is always the tokens of *all* the model's bands, not those of a kernel adapted to the bands given
(:mod:`rsbackbones.zoo.adapt`): the blocks that follow know the former only, and a linear map of the bands
given can come nearer to them than the latter does. For all the model's bands nothing is left to learn: there
is always a kernel of the virtual bands that gives the tokens exactly, and the nearest such one is taken in
every step (for at most ``VIRTUAL_BANDS`` bands; beyond, the best one).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from torch import Tensor

from rsbackbones.data.npz_archive import NpzArchive
from rsbackbones.data.simulator import simulate_scene
from rsbackbones.layers.patches import patchify
from rsbackbones.layers.tokenizer import LinearTokenizer
from rsbackbones.layers.wavelength_tokenizer import WavelengthTokenizer
from rsbackbones.models.backbone import Backbone
from rsbackbones.models.vit import ViTBackbone
from rsbackbones.preprocess import create_preprocess
from rsbackbones.sensors import Band, get_sensor
from rsbackbones.train.command import run_command
from rsbackbones.zoo.factory import create_model
from rsbackbones.zoo.registry import find_architecture
from rsbackbones.zoo.saving import resolve_output, save_model

# Shares of the steps: the model's own bands, some of them, a made-up sensor.
_OWN, _SOME = 0.25, 0.375
_MOST_BANDS, _WIDTHS = 64, (5.0, 150.0)
_PATCHES, _RATE, _RIDGE = 256, 3e-3, 1e-3

_FILE = click.Path(path_type=Path)


class Drawn(NamedTuple):
    """The bands of a sensor, in nm, and how its images come from the model's bands: [C', C]."""

    wavelengths: list[float]
    widths: list[float]
    spectra: Tensor


def interpolate(bands: Sequence[Band], wavelengths: Sequence[float], widths: Sequence[float]) -> Drawn:
    """Return a made-up sensor: linear between the centers of ``bands``, averaged over its widths."""
    order = sorted(range(len(bands)), key=lambda i: bands[i].wavelength)
    known = [bands[i].wavelength for i in order]
    spectra = np.empty((len(wavelengths), len(bands)))
    for row, center, width in zip(spectra, wavelengths, widths, strict=True):
        seen = center + width * np.linspace(-0.4, 0.4, 5)
        row[order] = [np.interp(seen, known, one).mean() for one in np.eye(len(bands))]
    return Drawn(list(wavelengths), list(widths), torch.from_numpy(spectra).float())


def draw(bands: Sequence[Band], generator: np.random.Generator) -> Drawn:
    """Draw what a step of the distillation sees: all bands, some of them, or a made-up sensor."""
    kind, count = generator.random(), len(bands)
    if kind < _OWN + _SOME:
        chosen = list(range(count))
        if kind >= _OWN:
            chosen = generator.permutation(count)[: generator.integers(1, count + 1)].tolist()
        picked = [bands[i] for i in chosen]
        return Drawn([b.wavelength for b in picked], [b.width for b in picked], torch.eye(count)[chosen])
    number = round(math.exp(generator.uniform(0, math.log(_MOST_BANDS))))
    ends = min(b.wavelength for b in bands), max(b.wavelength for b in bands)
    centers, widths = (
        np.exp(generator.uniform(math.log(low), math.log(high), number)) for low, high in (ends, _WIDTHS)
    )
    return interpolate(bands, centers.tolist(), widths.tolist())


def agreeing(virtual: Tensor, kernel: Tensor, mixing: Tensor, ridge: float) -> Tensor:
    """Return the kernel of virtual bands nearest to ``virtual`` that amounts to ``kernel``.

    Args:
        virtual: [D, R, p, p].
        kernel: [D, C, p, p], for bands that are mixed by ``mixing``, [R, C].
        ridge: at what squared singular values of ``mixing`` agreement is given up for nearness.
    """
    mixing = mixing.double()
    rest = kernel.double() - torch.einsum("drij,rc->dcij", virtual.double(), mixing)
    gram = mixing.T @ mixing + ridge * torch.eye(mixing.shape[1], device=mixing.device)
    correction = torch.einsum("dcij,cr->drij", rest, torch.linalg.solve(gram, mixing.T))
    return (virtual.double() + correction).to(virtual.dtype)


def distill_tokenizer(
    model: Backbone, images: Tensor, *, modality: str = "s2", steps: int = 1500, seed: int = 0
) -> Backbone:
    """Return a copy of a model that takes any bands of optical sensors.

    Args:
        model: with a linear tokenizer for ``modality``.
        images: normalized images of all the model's bands of ``modality``, [B, C, H, W].
        modality: the optical one.
        steps: each of 256 patches and one draw of bands; 0 gives the tokens of the model's own bands right.
        seed: of the initialization and of all draws.

    Raises:
        ValueError: a radar, a model that takes wavelengths already, or images that are not of its bands.
    """
    if not isinstance(model, ViTBackbone):
        raise ValueError(f"expected a ViT, whose tokenizer can be made from wavelengths, got {type(model)}")
    if modality not in model.modalities:
        raise ValueError(f"no modality {modality!r}; the model has {', '.join(model.modalities)}")
    config = replace(model.config, tokenizer="wavelength")
    if model.config.takes_wavelengths(modality) or not config.takes_wavelengths(modality):
        raise ValueError(
            f"{modality}: expected an optical sensor with a linear tokenizer, got {model.config}"
        )
    sensor = get_sensor(model.config.sensors[modality])
    bands = [sensor.band(name) for name in model.bands[modality]]
    p, name = model.patch_size, model.tokenizer_name(modality)
    if images.ndim != 4 or images.shape[1] != len(bands) or not images.is_floating_point():
        raise ValueError(
            f"{modality}: expected normalized images [B, {len(bands)}, H, W] of "
            f"{', '.join(model.bands[modality])}, got {images.dtype} {list(images.shape)}"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student: Backbone = find_architecture(model.architecture).family.build(
            config, num_classes=model.num_classes
        )
    fixed, learning = model.get_submodule(name), student.get_submodule(name)
    assert isinstance(fixed, LinearTokenizer)
    assert isinstance(learning, WavelengthTokenizer)
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith(f"{name}.")}
    student.load_state_dict(kept | {f"{name}.{k}": v for k, v in learning.state_dict().items()})
    student.architecture, student.inputs, student.pad = model.architecture, model.inputs, model.pad

    patches = patchify(images, p).flatten(0, 1).unflatten(1, (-1, p, p))  # [P, C, p, p]
    with torch.no_grad():
        target = fixed(patches)[:, 0]  # [P, D]
        kernel = fixed.to_kernel(fixed.proj.weight)
        learning.proj.bias.copy_(fixed.proj.bias)
    _learn(learning, bands, patches, target, kernel, steps, seed)
    return student.eval()


def _learn(
    tokenizer: WavelengthTokenizer,
    bands: Sequence[Band],
    patches: Tensor,
    target: Tensor,
    kernel: Tensor,
    steps: int,
    seed: int,
) -> None:
    generator = np.random.default_rng(seed)
    own = tokenizer.features
    weight = tokenizer.proj.weight
    optimizer = torch.optim.Adam([weight, *tokenizer.scores.parameters()], lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps + 1, pct_start=0.1)
    spread = (target - target.mean(0)).square().mean()

    def agreed(ridge: float) -> Tensor:
        tokenizer.features = own
        return tokenizer.from_kernel(agreeing(tokenizer.to_kernel(weight), kernel, tokenizer.mixing(), ridge))

    for _ in range(steps):
        drawn = draw(bands, generator)
        some = torch.from_numpy(generator.integers(len(patches), size=_PATCHES))
        state = {"proj.weight": agreed(_RIDGE)}
        tokenizer.take_bands(drawn.wavelengths, drawn.widths)
        images = torch.einsum("nc,bcij->bnij", drawn.spectra.to(patches), patches[some])
        tokens = torch.func.functional_call(tokenizer, state, (images,))[:, 0]
        # The root: a draw that is nearly right matters as much as one that cannot be.
        loss = ((tokens - target[some]).square().mean() / spread).sqrt()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        weight.copy_(agreed(1e-9))


def read_images(model: Backbone, path: Path | None) -> Tensor:
    """Return normalized Sentinel-2 images for the model's bands, [B, C, H, W].

    ``path`` is a ``.npz`` with ``images`` [B, C, H, W] in digital numbers and the names of their ``bands``;
    ``None`` simulates 24 scenes over the year.

    Raises:
        ValueError: the file cannot be read, lacks one of the two, or as :func:`create_preprocess`.
    """
    if path is None:
        scenes = [simulate_scene(128, 128, seed=i, day_of_year=15 * i + 8) for i in range(24)]
        images, names = np.stack([scene.s2 for scene in scenes]), scenes[0].s2_bands
    else:
        held = NpzArchive(path)
        images, names = held.read("images"), tuple(str(band) for band in held.read("bands"))
    preprocess = create_preprocess(model, bands={"s2": names})
    return preprocess({"s2": images})["s2"]


@click.command(context_settings={"show_default": True})
@click.argument("model")
@click.option(
    "--output", type=_FILE, required=True, metavar="FILE", help="WEIGHTS.safetensors, to be written."
)
@click.option(
    "--checkpoint",
    type=_FILE,
    metavar="FILE",
    show_default="the published weights",
    help="Weights of your own.",
)
@click.option(
    "--images",
    type=_FILE,
    metavar="FILE",
    show_default="simulated scenes",
    help="NAME.npz with images and bands.",
)
@click.option("--steps", type=click.IntRange(min=1), default=1500, help="Optimizer steps.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, help="Seed of the batches and the sampled bands."
)
def command(
    model: str, output: Path, checkpoint: Path | None, images: Path | None, steps: int, seed: int
) -> int:
    """Distill a tokenizer for any bands, and write weights for create_model(checkpoint=...).

    MODEL is a name as for create_model: croma_vit_tiny.
    """
    path = resolve_output(output, (".safetensors",))
    teacher = create_model(model, pretrained=checkpoint is None, checkpoint=checkpoint)
    student = distill_tokenizer(teacher, read_images(teacher, images), steps=steps, seed=seed)
    save_model(student, path)
    print(f"wrote {path}: the tokens of {', '.join(teacher.bands['s2'])} from any bands")
    return 0


if __name__ == "__main__":
    run_command(command, "rsbackbones.train.distill_tokenizer")
