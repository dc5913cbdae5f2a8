"""Where the time of a training step goes: every tensor operation timed, by the part of the model it serves.

An operation of the backward pass serves the part whose forward operation made its autograd node. Operations
are timed on the CPU, where they are done when they return; Python and autograd between them are not counted.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

PARTS = (
    "bias", "attention", "encoder matrix products", "encoder, other", "decoder", "masks, targets, losses",
    "optimizer",
)  # fmt: skip

_aten = torch.ops.aten
_PRODUCTS = (_aten.mm.default, _aten.addmm.default)

# Of a matrix product: the sizes and strides of its two factors, and their type.
Product = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], torch.dtype]


class Operations(TorchDispatchMode):
    """Times the operations of ``model`` while it is active.

    Attributes:
        seconds: by part of :data:`PARTS`.
        products: how often each matrix product was computed (of linear layers; attention's are not in it).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.products: Counter[Product] = Counter()
        self._inside = [""]
        self._of_node: dict[int, str] = {}

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Count operations as those of the module (or part) ``name``."""
        self._inside.append(name)
        try:
            yield
        finally:
            self._inside.pop()

    @contextmanager
    def following(self) -> Iterator[None]:
        """Be active, and follow the model from module to module."""
        handles = []
        for name, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._inside.append(name)))
            handles.append(module.register_forward_hook(lambda *_: self._leave()))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self) -> None:
        self._inside.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute an operation and note how long it took."""
        node: Any = torch._C._current_autograd_node()
        if node is None:
            name = self._inside[-1]
            # Autograd makes the node of an operation before the operation gets here.
            self._of_node.setdefault(torch._C._autograd._get_sequence_nr() - 1, name)
        else:
            name = self._of_node.get(node._sequence_nr(), "")
        began = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        self.seconds[_part(name, func)] += time.perf_counter() - began
        if func in _PRODUCTS:
            a, b = args[-2:]
            self.products[tuple(a.shape), a.stride(), tuple(b.shape), b.stride(), a.dtype] += 1
        return out


def _part(name: str, operation: Any) -> str:
    """Return which of :data:`PARTS` an operation in the module ``name`` belongs to."""
    if name in PARTS:
        return name
    if name.startswith("decoder"):
        return "decoder"
    if name.startswith(("backbone.encoders", "backbone.joint")):
        if name.endswith((".attn", ".cross")):
            return "attention"
        return "encoder matrix products" if operation in _PRODUCTS else "encoder, other"
    return "masks, targets, losses"


def product_rate(products: Counter[Product], seconds: float = 0.02) -> float:
    """Measure these matrix products alone, each for some ``seconds``; return their joint rate in FLOP/s."""
    flops = taken = 0.0
    for (shape_a, stride_a, shape_b, stride_b, dtype), count in products.items():
        a, b = (
            torch.empty_strided(shape, stride, dtype=dtype).uniform_(-1, 1)
            for shape, stride in ((shape_a, stride_a), (shape_b, stride_b))
        )
        flops += count * 2.0 * shape_a[0] * shape_a[1] * shape_b[1]
        taken += count * _median_seconds(partial(torch.mm, a, b), seconds)
    return flops / taken


def _median_seconds(call: Callable[[], Tensor], seconds: float) -> float:
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return sorted(times)[len(times) // 2]
