"""What `embed` costs beyond its model: windows per second inside a task over those of the bare model.

    python -m benchmarks.embed --output bench [--quick]

One scene, in one process, in turns: a task (reading, blending, quantizing, writing) and the model alone on
as many windows. Ratios are of CPU time, which others on the machine disturb least. Peak memory is compared
with the bound that the job states. Writes embed.json.
"""

import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import rsbackbones as rsb
from benchmarks import memory
from benchmarks.command import main
from rsbackbones.data.simulator import simulate_scene, write_scene
from rsbackbones.embed.job import Job
from rsbackbones.embed.lattice import batches
from rsbackbones.embed.run import prepare
from rsbackbones.embed.task import compute_shard, done_key
from rsbackbones.files.environment import environment
from rsbackbones.models.backbone import Backbone

ROUNDS, SEED = 3, 0


def measure(output: Path, *, quick: bool) -> str:
    """Measure, write ``embed.json`` and return what it says."""
    name, side, shard = ("croma_vit_tiny", 1024, 128) if quick else ("croma_vit_b", 2048, 256)
    torch.manual_seed(SEED)
    model = rsb.create_model(name, modalities=("s2",))
    with tempfile.TemporaryDirectory() as folder:
        paths = write_scene(simulate_scene(side, side, seed=SEED), folder)
        job = rsb.embed.plan(model, paths[0], Path(folder) / "e.zarr", shard=shard)
        job = prepare(job, None)
        rounds = [{"task": _task(job), "model": _bare(job, model)} for _ in range(1 + ROUNDS)][1:]
        bound = sum(job.memory_bound.values())
    result: dict[str, Any] = {
        "environment": environment(),
        "model": name,
        "scene": [side, side],
        "windows": rounds[0]["task"]["windows"],
        "windows_twice": rounds[0]["task"]["windows"] / (len(job.lattice.tops) * len(job.lattice.lefts)),
        "rounds": rounds,
        "bare_over_embed": statistics.median(r["model"]["cpu_s"] / r["task"]["cpu_s"] for r in rounds),
        "waited_share": statistics.median(r["task"]["waited_share"] for r in rounds),
        "peak_over_bound": max(r["task"]["peak"] for r in rounds) / bound,
        "measured": job.calibration["measured"],
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "embed.json").write_text(json.dumps(result, indent=1) + "\n")
    return (
        f"{name}: the model alone takes {result['bare_over_embed']:.2f} of the CPU time of embed\n"
        f"share of time that it waits for pixels: {result['waited_share']:.1%}\n"
        f"peak memory over the bound: {result['peak_over_bound']:.2f}\n"
        f"windows computed for each of the scene: {result['windows_twice']:.2f}\n"
    )


def _task(job: Job) -> dict[str, float]:
    """Compute all shards again; return windows, CPU seconds, waiting share, and the peak of memory."""
    before = memory.resident() or 0
    memory.forget_peak()
    start, begin = time.process_time(), time.perf_counter()
    windows = waited = busy = 0.0
    for index in range(len(job.blocks)):
        job.records.delete(done_key(index))
        record = compute_shard(replace(job), index)
        windows += record["windows"]
        waited += record["waited_seconds"]
        busy += record["waited_seconds"] + record["model_seconds"]
    return {"windows": windows, "cpu_s": time.process_time() - start, "wall_s": time.perf_counter() - begin,
            "waited_share": waited / busy, "peak": float((memory.peak() or 0) - before)}  # fmt: skip


def _bare(job: Job, model: Backbone) -> dict[str, float]:
    """Run the model alone on as many batches of the same size."""
    side = job.lattice.window * job.cell
    rows = [job.lattice.rows_of_windows(block) for block in job.blocks]
    todo = [batch for windows in rows for batch in batches(windows, job.batch_size)]
    images = {m: torch.rand(job.batch_size, len(b), side, side) for m, b in model.bands.items()}
    start, begin = time.process_time(), time.perf_counter()
    with torch.inference_mode():
        for batch in todo:
            model.forward_features({m: x[: len(batch)] for m, x in images.items()}).maps(job.stream)
    return {"cpu_s": time.process_time() - start, "wall_s": time.perf_counter() - begin}


if __name__ == "__main__":
    main(measure, __doc__)
