"""What the tests of the training engine share: small data, a small recipe, and runs in real processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from rsbackbones.data.npz import NpzFile
from rsbackbones.input_spec import SSL4EO_S12
from rsbackbones.train import pictures, pretraining
from rsbackbones.train.engine.checkpoint import finished, step_of
from rsbackbones.train.engine.config_io import apply_overrides, to_json
from rsbackbones.train.finetune import run as finetuning
from rsbackbones.train.recipe import Part, Recipe
from rsbackbones.train.recipes import RECIPES
from tests.forked import Forked

BANDS = {m: spec.bands for m, spec in SSL4EO_S12.items()}
SIDE = 32
# For whole runs in other processes: far beyond what one takes on a busy machine.
DEADLINE = 300.0

PAIRED = Part(file=NpzFile(path="paired.npz", images={m: {m: BANDS[m]} for m in ("s2", "s1")}), repeats=2)
OPTICAL = Part(file=NpzFile(path="optical.npz", images={"s2": {"s2": BANDS["s2"]}}))


def write_data(folder: Path, pairs: int = 20, optical: int = 24, seed: int = 0) -> Path:
    """Write ``paired.npz`` and ``optical.npz``: smooth random scenes of 32 pixels."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)

    def scenes(count: int, channels: int) -> np.ndarray:
        coarse = rng.standard_normal((count, channels, 4, 4)).astype(np.float32)
        return coarse.repeat(SIDE // 4, axis=2).repeat(SIDE // 4, axis=3)

    def optical_of(count: int) -> np.ndarray:
        return (2000 + 500 * scenes(count, 12)).clip(1, 9999).astype(np.uint16)

    np.savez(folder / "paired.npz", s2=optical_of(pairs), s1=(-12 + 3 * scenes(pairs, 2)).clip(-40, 5))
    np.savez(folder / "optical.npz", s2=optical_of(optical))
    return folder


def small_recipe(data: Path, out: Path | None = None, **changes: object) -> Recipe:
    """A run of 8 steps an epoch: 5 of pairs and 3 of optical images. Dots in a key are two underscores."""
    recipe = apply_overrides(
        RECIPES["croma_vit_tiny"],
        {
            "overrides": {"dim": 32, "depth": 2, "num_heads": 4},
            "objective": {"decoder_dim": 32},
            "data.mixup": 0.3,
            "data.root": str(data),
            "data.parts": [to_json(part) for part in (PAIRED, OPTICAL)],
            "data.size": SIDE,
            "data.crop": (16, SIDE),
            "data.workers": 0,
            "optim.base_lr": 1e-2,
            "batch_size": 8,
            "epochs": 3,
            "save.every": 1000,
        },
    )
    options = {name.replace("__", "."): value for name, value in changes.items()}
    return apply_overrides(recipe, options | ({"output": str(out)} if out else {}))


DRAWN = pictures.draw_losses, pictures.draw_reconstructions


def draw_by(losses: Callable[..., None], reconstructions: Callable[..., None]) -> None:
    """Have the runs in this process draw by these functions."""
    pretraining.draw_losses = finetuning.draw_losses = losses
    pretraining.draw_reconstructions = reconstructions


def draw_nothing() -> None:
    """Have the runs in this process draw no pictures."""
    draw_by(lambda *_: None, lambda *_: None)


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Have the runs within draw, also where others draw nothing."""
    before = pretraining.draw_losses, pretraining.draw_reconstructions
    draw_by(*DRAWN)
    try:
        yield
    finally:
        draw_by(*before)


def command(recipe: Recipe, file: Path, ranks: int = 0, *, restarts: int = 0) -> list[str]:
    """The command of a run, its recipe saved to ``file``; ``ranks`` 0 is without a launcher."""
    file.write_text(json.dumps(to_json(recipe)))
    launcher = [sys.executable]
    if ranks:
        launcher += [
            *("-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--max-restarts={restarts}"),
            *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
        ]
    return [*launcher, "-m", "rsbackbones.train", f"recipe={file}"]


# What makes restarts of torchrun dependable; it gives its workers this long to end.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "15",
}


def start(
    arguments: list[str], log: Path, limits: Callable[[], object] | None = None, *, fresh: bool = False
) -> Forked | subprocess.Popen[bytes]:
    """Start a command in a session of its own, its output in ``log``; ``limits`` is called in the process.

    ``fresh``: in a new interpreter, as on the command line. A fork of one begins five seconds sooner, and
    draws nothing.
    """
    if not fresh:
        first = partial(_begin, limits)
        return Forked(arguments, log, env=os.environ | ENVIRONMENT, limits=first)
    with log.open("ab") as file:
        return subprocess.Popen(
            arguments, env=os.environ | ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=limits,
        )  # fmt: skip


def _begin(limits: Callable[[], object] | None) -> None:
    draw_nothing()
    if limits:
        limits()


def run(arguments: list[str], log: Path, code: int = 0, *, fresh: bool = False) -> str:
    """Run a command to its end, check its exit code and return what it said."""
    process = start(arguments, log, fresh=fresh)
    try:
        assert process.wait(DEADLINE) == code, log.read_text()[-6000:]
    finally:
        end(process)
    return log.read_text()


def end(process: Forked | subprocess.Popen[bytes]) -> None:
    """Kill a process and all below it."""
    for pid in [*descendants(process.pid), process.pid]:
        kill(pid)
    process.wait()


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def descendants(pid: int) -> list[int]:
    """All processes below ``pid``, the children first."""
    found = children(pid)
    return found + [below for child in found for below in descendants(child)]


def children(pid: int) -> list[int]:
    """The processes that ``pid`` started and has not waited for."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for (a zombie) does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(
    condition, process: Forked | subprocess.Popen[bytes] | None = None, log: Path | None = None
) -> None:
    """Wait for a condition; fail when the process ends before it, or after the deadline."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        said = log.read_text()[-6000:] if log else ""
        assert process is None or process.poll() is None or condition(), f"it ended before:\n{said}"
        assert time.monotonic() < deadline, said
        time.sleep(0.02)


def steps_logged(out: Path) -> int:
    """The number of whole lines in a run's log."""
    file = out / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def curve(out: Path, *names: str) -> list[tuple[float, ...]]:
    """What a run computed at every step: step, loss, norm of the gradient, learning rate."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [tuple(line[n] for n in names or ("step", "loss", "grad_norm", "lr")) for line in lines]


def checkpoints(out: Path) -> list[str]:
    """The names in a run's folder of checkpoints."""
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def newest(out: Path) -> int:
    """The step of the newest checkpoint, 0 where there is none."""
    found = finished(out / "checkpoints")
    return step_of(found[0]) if found else 0


def contents(out: Path, step: int) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint but the generators' states, read by torch's own converter."""
    file = out.with_name(f"{out.name}_{step}.pt")
    dcp_to_torch_save(out / "checkpoints" / f"step_{step:09d}", file)
    held = torch.load(file, weights_only=True)
    held.pop("rng", None)
    return _flat(held)


def _flat(value: object, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {name: value}
    if isinstance(value, dict):
        return {k: t for key, inner in value.items() for k, t in _flat(inner, f"{name}/{key}").items()}
    return {}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Equal bit for bit."""
    assert a.keys() == b.keys()
    differing = [name for name in a if not torch.equal(a[name], b[name])]
    assert len(a) > 50
    assert not differing
