"""Where the time goes: every tensor operation timed, by the part of the model or of the work that it serves.

An operation of the backward pass serves the part whose forward operation made its autograd node. Operations
are timed on the CPU, where they are done when they return; Python and autograd between them are not counted.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rsbackbones.layers import alibi, blockwise_attention

STEP_PARTS = (
    "bias", "attention", "encoder matrix products", "encoder, other", "decoder", "masks, targets, losses",
    "optimizer",
)  # fmt: skip
ENCODE_PARTS = ("linear layers", "attention", "bias", "norms", "GELU", "other")
# Where our models compute the bias.
OUR_BIAS = ((alibi, "alibi_bias"), (blockwise_attention, "distances"))

_aten = torch.ops.aten
_PRODUCTS = (_aten.mm.default, _aten.addmm.default)

# Of a matrix product: the sizes and strides of its two factors, and their type.
Product = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], torch.dtype]
# The part of an operation in the module of a name.
PartOf = Callable[[str, Any], str]


class Operations(TorchDispatchMode):
    """Times the operations of ``model`` while it is active.

    Attributes:
        seconds: by part.
        products: how often each matrix product was computed (of linear layers; attention's are not in it).
    """

    def __init__(self, model: nn.Module, parts: Sequence[str], part_of: PartOf) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self.part_of = model, part_of
        self.seconds: dict[str, float] = dict.fromkeys(parts, 0.0)
        self.products: Counter[Product] = Counter()
        self._inside = [""]
        self._of_node: dict[int, str] = {}
        self._computing = False
        self._elsewhere = 0.0

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Count operations as those of the module (or part) ``name``."""
        self._inside.append(name)
        began = time.perf_counter()
        try:
            yield
        finally:
            self._inside.pop()
            if self._computing:  # within an operation of our own, whose inner ones come by no dispatch
                taken = time.perf_counter() - began
                self.seconds[name] += taken
                self._elsewhere += taken

    @contextmanager
    def counting(self, functions: Sequence[tuple[ModuleType, str]], part: str) -> Iterator[None]:
        """Count what some functions, (module, name), compute as ``part``."""

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                with self.inside(part):
                    return original(*args, **options)

            return call

        with ExitStack() as stack:
            for module, name in functions:
                stack.enter_context(mock.patch.object(module, name, counted(getattr(module, name))))
            yield

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
        self._computing, self._elsewhere = True, 0.0
        began = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        self.seconds[self.part_of(name, func)] += time.perf_counter() - began - self._elsewhere
        self._computing = False
        if func in _PRODUCTS:
            a, b = args[-2:]
            self.products[tuple(a.shape), a.stride(), tuple(b.shape), b.stride(), a.dtype] += 1
        return out


def step_part(name: str, operation: Any) -> str:
    """Return which of :data:`STEP_PARTS` an operation of a training step is of."""
    if name in STEP_PARTS:
        return name
    if name.startswith("decoder"):
        return "decoder"
    if name.startswith(("backbone.encoders", "backbone.joint")):
        if name.endswith((".attn", ".cross")):
            return "attention"
        return "encoder matrix products" if operation in _PRODUCTS else "encoder, other"
    return "masks, targets, losses"


def encode_part(name: str, operation: Any) -> str:
    """Return which of :data:`ENCODE_PARTS` an operation of a forward pass is of."""
    if name in ENCODE_PARTS:
        return name
    if operation in _PRODUCTS:
        return "linear layers"
    if operation is _aten.native_layer_norm.default:
        return "norms"
    if operation is _aten.gelu.default:
        return "GELU"
    return "attention" if name.endswith((".attn", ".cross")) else "other"


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
