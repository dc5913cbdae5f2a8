"""``python -m benchmarks.train``: CROMA's pretraining step, ours against the published one.

The published method is written plainly (:mod:`benchmarks.croma_plain`). Every variant runs in a process of
its own. The two of a row live side by side and take their steps in turn, so that whatever else the machine
does meets both; while one computes, the other waits. A step is forward, backward and AdamW. Times are
medians; a ratio is the median of the ratios of neighboring steps.

Memory is what the process had at most in a step after warming up, less what it had after its imports:
weights, gradients, optimizer, activations and what the allocator keeps of them. (Linux only: VmHWM, which is
reset before. In an eager process nothing else adds to it; in a compiled one, what the compiler has left.)
"""

import json
import statistics
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.bars import Panel, draw_bars
from benchmarks.data_wait import measure_data_wait
from benchmarks.machine import all_cores, machine
from benchmarks.page import describe, number, part_rows
from benchmarks.processes import say, side_by_side
from benchmarks.train_cell import VARIANTS, Cell
from rsbackbones.files.atomic import write_text
from rsbackbones.files.markdown import markdown_table

SEED = 0


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured: ``steps`` of every variant after ``warmup``; ``wait_steps`` with a loader."""

    model: str
    batch_size: int
    side: int
    warmup: int
    steps: int
    wait_steps: int


FULL = Size(model="croma_vit_s", batch_size=16, side=120, warmup=3, steps=7, wait_steps=12)
QUICK = Size(model="croma_vit_tiny", batch_size=8, side=120, warmup=1, steps=3, wait_steps=6)


def bench_train(output: Path, *, quick: bool) -> str:
    """Measure, write ``train.json``, ``.md`` and ``.png`` to ``output``, and return the Markdown."""
    size = QUICK if quick else FULL
    output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "command": "python -m benchmarks.train" + (" --quick" if quick else ""),
        "machine": machine(), "threads": all_cores(), "seed": SEED, "size": asdict(size), "rows": [],
    }  # fmt: skip
    for compiled in (False,) if quick else (False, True):  # compiling takes minutes
        for precision in ("fp32", "bf16"):
            cell = Cell(
                variant="", precision=precision, compiled=compiled, model=size.model,
                batch_size=size.batch_size, side=size.side, threads=all_cores(), seed=SEED,
                breakdown=not compiled,
            )  # fmt: skip
            found["rows"].append(_measure_row(cell, size))
            say(f"{precision}, {'compiled' if compiled else 'eager'}: done")
    with tempfile.TemporaryDirectory() as folder:
        try:
            found["data_wait"] = measure_data_wait(
                Path(folder), model=size.model, batch_size=size.batch_size, side=size.side,
                steps=size.wait_steps, seed=SEED,
            )  # fmt: skip
        except ValueError as error:
            found["data_wait"] = {"error": str(error)}
    text = markdown(found)
    write_text(output / "train.json", json.dumps(found, indent=1) + "\n")
    write_text(output / "train.md", text)
    draw(found, output / "train.png")
    return text


def _measure_row(cell: Cell, size: Size) -> dict[str, Any]:
    """Measure both variants of a precision and a mode; one that fails does not stop the other."""
    times: dict[str, list[float]] = {v: [] for v in VARIANTS}
    found: dict[str, dict[str, Any]] = {}
    cells = {v: replace(cell, variant=v) for v in VARIANTS}
    with side_by_side("benchmarks.train_cell", cells) as processes:
        for number in range(size.warmup + size.steps):
            for variant in VARIANTS:
                if number == size.warmup:
                    processes.ask(variant, "memory")
                if answer := processes.ask(variant, "step"):
                    times[variant].append(answer["seconds"])
        for variant in VARIANTS:
            if answer := processes.ask(variant, "end"):
                steps = times[variant][size.warmup :]
                median = statistics.median(steps)
                found[variant] = answer | {
                    "first_step_seconds": times[variant][0], "step_seconds": steps, "median_seconds": median,
                    "samples_per_s": size.batch_size / median,
                }  # fmt: skip
                if "flops" in answer:
                    rate = answer["products_flop_per_s"]
                    found[variant]["ceiling_samples_per_s"] = rate / answer["flops"] * size.batch_size
    row: dict[str, Any] = {"precision": cell.precision, "compiled": cell.compiled}
    row |= {v: found.get(v, {"error": processes.errors.get(v)}) for v in VARIANTS}
    if len(found) == 2:
        ours, published = (found[v] for v in VARIANTS)
        pairs = zip(published["step_seconds"], ours["step_seconds"], strict=True)
        row["speed_ratio"] = statistics.median(p / o for p, o in pairs)
        if ours["memory"] and published["memory"]:
            row["memory_ratio"] = ours["memory"] / published["memory"]
    return row


# -- what is said of it -------------------------------------------------------------------------------


def markdown(found: dict[str, Any]) -> str:
    """Return the report of what was measured."""
    size = found["size"]
    names = ["precision", "mode", "ours, samples/s", "published, samples/s", "speed, ours / published",
             "ours, MiB", "published, MiB", "memory, ours / published"]  # fmt: skip
    rows = []
    for row in found["rows"]:
        cells = [row["precision"], "compiled" if row["compiled"] else "eager"]
        cells += [number(row[v], "samples_per_s", "{:.2f}") for v in VARIANTS]
        cells += [number(row, "speed_ratio", "{:.2f}")]
        cells += [number(row[v], "memory", "{:.0f}", 2**20) for v in VARIANTS]
        cells += [number(row, "memory_ratio", "{:.2f}")]
        rows.append(cells)
    lines = [
        f"# The pretraining step of {size['model']}",
        "",
        f"Batch {size['batch_size']} of {size['side']} x {size['side']} pixels, both sensors; forward, "
        f"backward, AdamW. {describe(found)}",
        "",
        "Ours against the published method written plainly (`benchmarks/croma_plain.py`), median of "
        f"{size['steps']} steps each, taken in turn."
        + ("" if any(row["compiled"] for row in found["rows"]) else " Without compiled steps (--quick)."),
        "",
        markdown_table(names, rows, "ll" + "r" * 6),
    ]
    for row in found["rows"]:
        for v in (v for v in VARIANTS if "error" in row[v]):
            mode = "compiled" if row["compiled"] else "eager"
            lines += ["", f"{v}, {row['precision']}, {mode} did not run: {row[v]['error']}"]
    return "\n".join([*lines, *_breakdown_lines(found), *_wait_lines(found["data_wait"])]) + "\n"


def _breakdown_lines(found: dict[str, Any]) -> list[str]:
    cells = {
        f"{v}, {row['precision']}": row[v]
        for row in found["rows"] for v in VARIANTS if "seconds" in row[v]
    }  # fmt: skip
    if not cells:
        return []
    patches, held = found["size"]["batch_size"], list(cells.values())
    rows = [
        *part_rows([c["seconds"] for c in held]),
        ["step, not profiled", *(f"{1e3 * c['median_seconds']:.0f}" for c in held)],
        ["GFLOP per sample", *(f"{c['flops'] / patches / 1e9:.2f}" for c in held)],
        ["matrix products, GFLOP/s", *(f"{c['products_flop_per_s'] / 1e9:.0f}" for c in held)],
        ["ceiling, samples/s", *(f"{c['ceiling_samples_per_s']:.2f}" for c in held)],
        ["reached of the ceiling", *(f"{c['samples_per_s'] / c['ceiling_samples_per_s']:.0%}" for c in held)],
    ]
    return [
        "",
        "## Where the time goes (eager)",
        "",
        "Milliseconds of one step in tensor operations, forward and backward, and their share. The ceiling "
        "is the speed if a step were its FLOPs at the rate of its linear layers' matrix products, measured "
        "alone.",
        "",
        markdown_table(["", *cells], rows, "l" + "r" * len(cells)),
    ]


def _wait_lines(wait: dict[str, Any]) -> list[str]:
    if "error" in wait:
        return ["", "## Waiting for data", "", f"Not measured: {wait['error']}"]
    return [
        "",
        "## Waiting for data",
        "",
        f"A run from packed shards ({wait['scenes']} simulated scenes of {wait['pixels']} pixels, "
        f"{wait['bytes'] / 2**20:.0f} MiB), {wait['workers']} loader workers beside it on the same cores, "
        f"fp32, eager, {wait['steps']} steps: {wait['data_wait']:.1%} of the time was spent waiting for a "
        f"batch, at {wait['samples_per_s']:.2f} samples/s.",
    ]  # fmt: skip


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw samples/s and memory of all variants as bars."""
    groups = [f"{r['precision']}\n{'compiled' if r['compiled'] else 'eager'}" for r in found["rows"]]
    panels = [
        Panel(title=title, values={v: [(r[v].get(key) or 0) / unit for r in found["rows"]] for v in VARIANTS})
        for title, key, unit in (("samples/s", "samples_per_s", 1), ("peak memory, MiB", "memory", 2**20))
    ]
    draw_bars(panels, groups, f"{found['size']['model']}, batch {found['size']['batch_size']}", path)


if __name__ == "__main__":
    command.main(bench_train, __doc__)
