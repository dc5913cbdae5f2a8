"""``python -m benchmarks.encode``: how fast a model encodes, against its peers and the machine's limit.

Peers are the published algorithm written plainly, torchgeo's CROMA where it is installed, and, for one
sensor, timm's ViT of the same blocks and tokens. The limit is the rate of the matrix products of the model's
linear layers, measured alone at their own shapes.

Every peer, size and precision has a process of its own. Those of a row live side by side and encode in turn,
so that whatever else the machine does meets all; while one computes, the others wait. The first result is the
warm-up; speeds are of medians of at least three rounds that follow. A peer whose encoding took longer than
``LONG`` is not repeated: it has a memory and a first result, but no speed. bf16 is the type of weights and
images of all peers, without autocast.
"""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks import command, memory
from benchmarks.encode_cell import PEERS, Cell
from benchmarks.encode_page import draw, markdown
from benchmarks.load_cell import measure_load
from benchmarks.machine import all_cores, machine
from benchmarks.processes import say, side_by_side
from rsbackbones.device import has_bfloat16
from rsbackbones.files.atomic import write_text

SEED = 0
LIMIT = 600.0  # seconds of a cell
LONG = 90.0  # seconds of encoding that are not repeated
# What peers with the same weights may differ by, relative; rounding differs, and a wrong model is far off.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.03}
_MODULE = "benchmarks.encode_cell"
_SPLIT_UP = ("ours", "published")  # whose time is split up by part


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured.

    Attributes:
        model: the architecture.
        shapes: (height, width) in pixels, and the images of a batch, the same for all peers.
        compiled: where ours is also measured compiled.
        torchgeo: where torchgeo is measured; its algorithm is the published one, whose loop takes minutes.
        fewest, rounds: so many rounds after the first result, more than the fewest as long as they take no
            more than ``round_seconds``: a single one says as much of the machine's minute as of the code.
        load_model, load_repeats: whose loading is measured, and how often.
        import_repeats: how often imports are measured.
        seconds: rows that would begin later than this are left out.
    """

    model: str
    shapes: tuple[tuple[tuple[int, int], int], ...]
    compiled: tuple[tuple[int, int], ...]
    torchgeo: tuple[tuple[int, int], ...]
    fewest: int
    rounds: int
    round_seconds: float
    load_model: str
    load_repeats: int
    import_repeats: int
    seconds: float


FULL = Plan(
    model="croma_vit_b",
    shapes=(((120, 120), 4), ((224, 224), 2), ((96, 480), 2), ((504, 504), 1), ((1024, 1024), 1)),
    compiled=((120, 120),), torchgeo=((120, 120), (224, 224), (96, 480), (1024, 1024)),
    fewest=3, rounds=7, round_seconds=60.0, load_model="croma_vit_l", load_repeats=3, import_repeats=3,
    seconds=2400.0,
)  # fmt: skip
QUICK = Plan(
    model="croma_vit_tiny", shapes=(((120, 120), 8), ((96, 480), 4)), compiled=(),
    torchgeo=((120, 120), (96, 480)),
    fewest=3, rounds=5, round_seconds=15.0, load_model="croma_vit_tiny", load_repeats=1, import_repeats=1,
    seconds=300.0,
)  # fmt: skip


def bench_encode(output: Path, *, quick: bool) -> str:
    """Measure, write ``encode.json``, ``.md`` and ``.png`` to ``output``, and return the Markdown."""
    said = "python -m benchmarks.encode" + (" --quick" if quick else "")
    return measure(QUICK if quick else FULL, output, said)


def measure(plan: Plan, output: Path, said: str) -> str:
    """Measure a plan, ``said`` by a command; see :func:`bench_encode`."""
    output.mkdir(parents=True, exist_ok=True)
    began, threads = time.monotonic(), all_cores()
    found: dict[str, Any] = {
        "command": said, "machine": machine(), "threads": threads, "seed": SEED, "model": plan.model,
        "imports": measure_imports(plan.import_repeats),
    }  # fmt: skip
    found["load"] = measure_load(
        output, model=plan.load_model, threads=threads, repeats=plan.load_repeats, seconds=LIMIT
    )
    base = Cell(
        peer="loop", precision="fp32", model=plan.model, size=plan.shapes[0][0], batch_size=1,
        threads=threads, seed=SEED,
    )  # fmt: skip
    found["loop"] = measure_loop(base)
    found["rows"] = []
    for size, batch_size in plan.shapes:
        for precision in ("fp32", "bf16"):
            cell = replace(base, size=size, batch_size=batch_size, precision=precision)
            late = time.monotonic() - began > plan.seconds
            why = f"left out: {plan.seconds / 60:g} minutes were over" if late else None
            if precision == "bf16" and not has_bfloat16(torch.device("cpu")):
                why = "left out: the processor has no bfloat16 instructions, and takes minutes a batch"
            found["rows"].append(measure_row(cell, plan, found["loop"], left_out=why))
            say(f"{size[0]} x {size[1]} px, {precision}: done")
            found["minutes"] = (time.monotonic() - began) / 60
            write_text(output / "encode.json", json.dumps(found, indent=1) + "\n")
    text = markdown(found)
    write_text(output / "encode.md", text)
    draw(found, output / "encode.png")
    return text


def measure_imports(repeats: int) -> dict[str, float]:
    """Return the seconds of imports in fresh processes, taken in turn; of what can be imported."""
    code = "import time; began = time.perf_counter(); import {}; print(time.perf_counter() - began)"
    seconds: dict[str, list[float]] = {n: [] for n in ("torch", "rsbackbones", "timm", "torchgeo.models")}
    for _ in range(repeats):
        for name, values in seconds.items():
            ended = subprocess.run([sys.executable, "-c", code.format(name)], capture_output=True, text=True)
            if ended.returncode == 0:
                values.append(float(ended.stdout.split()[-1]))
    return {name: statistics.median(values) for name, values in seconds.items() if values}


def measure_loop(cell: Cell) -> dict[str, Any]:
    """Return what the published loop over pairs of patches takes of time and memory, per pair."""
    with side_by_side(_MODULE, {"loop": cell}, seconds=LIMIT) as processes:
        found = processes.ask("loop", "first")
    if found is None:
        raise ValueError(f"the published bias could not be built even for a small grid: {processes.errors}")
    return found


def refusal(peer: str, cell: Cell, loop: dict[str, Any], free: int | None) -> str | None:
    """Say why a peer cannot run a cell on a machine with ``free`` bytes, where that is known before."""
    config, (height, width) = cell.config, cell.size
    if peer == "torchgeo":
        if find_spec("torchgeo") is None:
            return "torchgeo is not installed"
        if config.num_heads != 16:
            return f"torchgeo's encoders have 16 heads; {cell.model} has {config.num_heads}"
    if peer not in ("published", "torchgeo"):
        return None
    if height != width:
        return "shape: it takes square images only"
    pairs = ((height // config.patch_size) * (width // config.patch_size)) ** 2
    reasons = []
    if (seconds := pairs * loop["seconds_per_pair"]) > LIMIT:
        reasons.append(f"time: the loop over its bias would take {seconds / 60:.0f} minutes")
    needed = pairs * (loop["bytes_per_pair"] or 0)
    if free is not None and needed > free:
        reasons.append(f"memory: that loop would need {needed / 1e9:.0f} GB of {free / 1e9:.0f} free")
    return "; ".join(reasons) + " (predicted from a small grid)" if reasons else None


def measure_row(
    cell: Cell, plan: Plan, loop: dict[str, Any], *, left_out: str | None = None
) -> dict[str, Any]:
    """Measure all peers at a size and a precision; ``left_out`` says why none is."""
    peers = [p for p in PEERS if p != "compiled" or cell.size in plan.compiled]
    row: dict[str, Any] = {"size": cell.size, "precision": cell.precision, "batch_size": cell.batch_size}
    free = memory.available()
    errors = {p: why for p in peers if (why := left_out or refusal(p, cell, loop, free)) is not None}
    if cell.size not in plan.torchgeo:
        errors.setdefault("torchgeo", "left out for time: its algorithm is the published one")
    running = [p for p in peers if p not in errors]
    cells = {p: replace(cell, peer=p) for p in (*running, "limit") if running}
    found: dict[str, dict[str, Any]] = {}
    rates: list[float] = []
    with side_by_side(_MODULE, cells, seconds=LIMIT) as processes:
        for peer in cells:
            processes.ask(peer, "ready")
        for peer in running:
            if (answer := processes.ask(peer, "first")) is not None:
                found[peer] = answer | {"seconds": []}
        # The first result of a compiled model holds the compilation.
        repeated = [p for p in found if p == "compiled" or found[p]["encode_seconds"] <= LONG]
        began = time.monotonic()
        for number in range(plan.rounds if cells else 0):
            if number >= plan.fewest and time.monotonic() - began > plan.round_seconds:
                break
            if (answer := processes.ask("limit", "step")) is not None:
                rates.append(answer["flop_per_s"])
            for peer in repeated:
                if (answer := processes.ask(peer, "step")) is not None:
                    found[peer]["seconds"].append(answer["seconds"])
        for peer in found:
            found[peer] |= processes.ask(peer, "memory") or {}
            if peer in _SPLIT_UP and peer in repeated:
                found[peer] |= processes.ask(peer, "breakdown") or {}
    errors |= {p: why for p, why in processes.errors.items() if p in peers}
    expected = found["ours"].pop("output") if "ours" in found else {}
    for peer, held in found.items():
        difference = _difference(held.pop("output", {}), expected)
        if difference is not None and not difference <= TOLERANCE[cell.precision]:
            errors[peer] = f"it computes something else than ours: {difference:.2g} apart"
        held["difference"] = difference
        if len(held["seconds"]) >= plan.fewest:
            held["images_per_s"] = cell.batch_size / statistics.median(held["seconds"])
        if rates and "images_per_s" in held:
            held["of_limit"] = held["flops"] * held["images_per_s"] / statistics.median(rates)
    row["limit"] = {"flop_per_s": statistics.median(rates)} if rates else {}
    return row | {p: {"error": errors[p]} if p in errors else found[p] for p in peers}


def _difference(output: dict[str, list[float]], expected: dict[str, list[float]]) -> float | None:
    """Return the largest relative difference of the streams that both have; nothing without one."""
    largest = None
    for stream in output.keys() & expected.keys():
        a, b = torch.tensor(output[stream]), torch.tensor(expected[stream])
        difference = float((a - b).norm() / b.norm())
        # Not max(): a NaN must stay one.
        largest = difference if largest is None or not difference <= largest else largest
    return largest


if __name__ == "__main__":
    command.main(bench_encode, __doc__)
