"""One peer of the encoding benchmark at one size and precision, measured in a process of its own.

    python -m benchmarks.encode_cell JSON

The JSON is a :class:`Cell`. It is asked (:mod:`benchmarks.processes`), once it is ``ready``, for the
``first`` result, for ``step`` after step, for its ``memory``, and for the ``breakdown`` of a step. All peers
get the same images, and the same weights by the names of ours (timm's has other names and so others).
"""

import importlib
import json
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import memory
from benchmarks.croma_plain import PlainCroma, looped_bias
from benchmarks.flops import encode_flops, encode_products
from benchmarks.operations import (
    ENCODE_PARTS,
    OUR_BIAS,
    Operations,
    Product,
    encode_part,
    product_rate,
)
from benchmarks.processes import serve
from rsbackbones.models.croma import CHECKPOINT_FORMATS, CromaConfig
from rsbackbones.zoo.factory import create_model
from rsbackbones.zoo.registry import find_architecture

# Those that encode, in the order of the tables: name and what it is called.
PEERS = {
    "ours": "ours",
    "compiled": "ours, compiled",
    "published": "published",
    "torchgeo": "torchgeo",
    "ours_s2": "ours, s2 only",
    "timm": "timm ViT",
}
_PROBE = 20  # patches along a side of the grid whose bias is looped over to predict larger ones
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

# What a peer makes of images: tokens [B, N, D] and embedding [B, D] of its streams.
Streams = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is measured: one of :data:`PEERS`, ``limit`` (:class:`Limit`) or ``loop`` (:class:`Loop`).

    ``size`` is (height, width) in pixels; ``precision`` fp32 or bf16, of weights and images.
    """

    peer: str
    precision: str
    model: str
    size: tuple[int, int]
    batch_size: int
    threads: int
    seed: int

    @property
    def config(self) -> CromaConfig:
        """The configuration of the model that this peer computes."""
        config: CromaConfig = find_architecture(self.model).config
        modalities = ("s2",) if self.peer in ("ours_s2", "timm") else config.modalities
        return replace(config, image_size=self.size, modalities=modalities)


class Encoding:
    """A peer that encodes images, from its construction on."""

    model: nn.Module
    encode: Callable[[], Streams]
    built_peak: int | None

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        if module := {"torchgeo": "torchgeo.models", "timm": "timm"}.get(cell.peer):
            importlib.import_module(module)  # its time is measured elsewhere
        self.imported = memory.resident()
        generator = torch.Generator().manual_seed(cell.seed + 1)
        bands = find_architecture(cell.model).config.bands
        self.images = {
            m: torch.rand(cell.batch_size, len(bands[m]), *cell.size, generator=generator).to(
                _DTYPES[cell.precision]
            )
            for m in ("s2", "s1")
        }

    def first(self) -> dict[str, Any]:
        """Build the peer and encode; the time that its weights take is left out."""
        began = time.perf_counter()
        self.model, self.encode = _BUILD[self.cell.peer](self.cell, self.images)
        self.model.eval()
        built = time.perf_counter() - began
        _fill(self.cell, self.model)
        began = time.perf_counter()
        self.model.to(_DTYPES[self.cell.precision])
        cast = time.perf_counter() - began
        self.built_peak = memory.peak()
        memory.give_back()  # what the loop over a bias leaves would not fit beside another peer's
        memory.forget_peak()
        seconds, streams = self.take()
        return {
            "construct_seconds": built + cast,
            "encode_seconds": seconds,
            "first_seconds": built + cast + seconds,
            "flops": encode_flops(self.cell.config, self.cell.size),
            "output": {
                s: torch.cat((tokens[0, 0], pooled[0])).tolist() for s, (tokens, pooled) in streams.items()
            },
        }

    def take(self) -> tuple[float, Streams]:
        """Encode the images; return how long it took, and the result."""
        began = time.perf_counter()
        with torch.no_grad():
            streams = self.encode()
        return time.perf_counter() - began, streams

    def step(self) -> dict[str, Any]:
        """Encode the images once more."""
        return {"seconds": self.take()[0]}

    def memory(self) -> dict[str, Any]:
        """Return the bytes of the weights, the peak of the process, and that of encoding over the weights.

        What encoding has over the weights is its peak less the weights and what the process had after its
        imports; a table that was made before counts, as do the images.
        """
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        peak = memory.peak()
        if peak is None or self.imported is None or self.built_peak is None:
            return {"weights": weights, "peak": None, "over_weights": None}
        over = peak - self.imported - weights
        return {"weights": weights, "peak": max(peak, self.built_peak), "over_weights": over}

    def breakdown(self) -> dict[str, Any]:
        """Return the seconds of encoding by part."""
        operations = Operations(self.model, ENCODE_PARTS, encode_part)
        with operations.following(), operations.counting(OUR_BIAS, "bias"):
            self.take()
        return {"parts": operations.seconds}


class Limit:
    """The machine's limit: the matrix products of the model's linear layers alone, at its shapes."""

    def __init__(self, cell: Cell) -> None:
        dtype = _DTYPES[cell.precision]
        self.products: Counter[Product] = Counter({
            ((m, k), (k, 1), (k, n), (1, k), dtype): count
            for (m, k, n), count in encode_products(cell.config, cell.size, cell.batch_size).items()
        })  # fmt: skip

    def step(self) -> dict[str, Any]:
        """Measure the rate of the products, in FLOP/s."""
        return {"flop_per_s": product_rate(self.products)}


class Loop:
    """The published way to build the bias, at a small size: what larger ones would take is in proportion."""

    def __init__(self, cell: Cell) -> None:
        self.heads = cell.config.num_heads

    def first(self) -> dict[str, Any]:
        """Return seconds and bytes per pair of patches; no bytes where the system does not say."""
        before, began = memory.resident(), time.perf_counter()
        looped_bias(_PROBE, self.heads)
        seconds, peak = time.perf_counter() - began, memory.peak()
        pairs = _PROBE**4
        held = None if before is None or peak is None else (peak - before) / pairs
        return {"pairs": pairs, "seconds_per_pair": seconds / pairs, "bytes_per_pair": held}


# -- the peers --------------------------------------------------------------------------------------------


def _build_ours(cell: Cell, images: dict[str, Tensor]) -> tuple[nn.Module, Callable[[], Streams]]:
    torch.manual_seed(cell.seed)
    config = cell.config
    model = create_model(cell.model, image_size=cell.size, modalities=config.modalities)
    images = {m: images[m] for m in config.modalities}
    forward = model.forward_features
    if cell.peer == "compiled":
        forward = torch.compile(forward)

    def encode() -> Streams:
        features = forward(images)
        return {stream: (features.tokens[stream], features.pooled[stream]) for stream in features.tokens}

    return model, encode


def _build_published(cell: Cell, images: dict[str, Tensor]) -> tuple[nn.Module, Callable[[], Streams]]:
    model = PlainCroma(cell.config)
    return model, lambda: model(images)


def _build_torchgeo(cell: Cell, images: dict[str, Tensor]) -> tuple[nn.Module, Callable[[], Streams]]:
    from torchgeo.models import CROMA

    config = cell.config
    model = CROMA(
        encoder_dim=config.dim, encoder_depth=config.depth, num_heads=config.num_heads,
        patch_size=config.patch_size, image_size=cell.size[0],
    )  # fmt: skip

    def encode() -> Streams:
        found = model(x_sar=images["s1"], x_optical=images["s2"])
        theirs = {"s2": "optical", "s1": "sar", "joint": "joint"}
        return {s: (found[f"{name}_encodings"], found[f"{name}_GAP"]) for s, name in theirs.items()}

    return model, encode


def _build_timm(cell: Cell, images: dict[str, Tensor]) -> tuple[nn.Module, Callable[[], Streams]]:
    import timm

    config = cell.config
    # Heads of 64 as ViT-B has them; the mean of the tokens rather than a class token, so that N is the same.
    model = timm.create_model(
        "vit_base_patch16_224", patch_size=config.patch_size, img_size=cell.size, num_classes=0,
        in_chans=len(config.bands["s2"]), class_token=False, global_pool="avg", embed_dim=config.dim,
        depth=config.depth, num_heads=max(1, config.dim // 64),
    )  # fmt: skip

    def encode() -> Streams:
        model(images["s2"])
        return {}  # another model: nothing to compare

    return model, encode


_BUILD = {
    "ours": _build_ours, "compiled": _build_ours, "ours_s2": _build_ours, "published": _build_published,
    "torchgeo": _build_torchgeo, "timm": _build_timm,
}  # fmt: skip


def _fill(cell: Cell, model: nn.Module) -> None:
    """Give every parameter random values that follow from the seed and the name that ours has for it."""
    names = {name: name for name, _ in model.named_parameters()}
    if cell.peer == "torchgeo":
        names = CHECKPOINT_FORMATS["croma_official"].to_native(names)
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(cell.seed + zlib.crc32(names[name].encode()))
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
        elif name.endswith(".weight"):  # of a norm
            nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
        else:
            nn.init.normal_(parameter, std=0.1, generator=generator)


def main(argument: str) -> None:
    """Answer for the cell."""
    fields = json.loads(argument)
    cell = Cell(**fields | {"size": tuple(fields["size"])})
    torch.set_num_threads(cell.threads)
    memory.refuse_more_than_available()
    asked: Any = {"limit": Limit, "loop": Loop}.get(cell.peer, Encoding)(cell)
    serve(lambda what: {} if what in ("ready", "end") else getattr(asked, what)())


if __name__ == "__main__":
    main(sys.argv[1])
