"""``--dry-run``: everything is built and two steps are run; what they took is printed."""

import sys
import time
from typing import TextIO

import torch
from torch.utils.flop_counter import FlopCounterMode

from rsbackbones.train.engine.distributed import DistributedContext, destroy
from rsbackbones.train.initialize import check_stages, with_statistics
from rsbackbones.train.pretraining import PretrainRun
from rsbackbones.train.recipe import Recipe


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory of the GPU, or else of the process, in bytes; ``None`` on Windows (CPU)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes * (1 if sys.platform == "darwin" else 1024)


def dry_run(recipe: Recipe, processes: DistributedContext, print_to: TextIO | None) -> None:
    """Build a run, take two steps, write nothing to ``recipe.output``, and print what was measured.

    FLOPs are those of forward and backward pass, counted by torch, per sample. The estimated duration is
    that of the second step times the number of steps: the first one warms up. Of several stages each is run,
    all but the first with random weights.
    """
    recipe = with_statistics(recipe)
    check_stages(recipe)
    stages = recipe.resolve_stages()
    for i, stage in enumerate(stages):
        if print_to is not None and len(stages) > 1:
            print(f"stage {i + 1}:", file=print_to)
        _two_steps(stage, processes, print_to)
    destroy(processes)


def _two_steps(recipe: Recipe, processes: DistributedContext, print_to: TextIO | None) -> None:
    run = PretrainRun(recipe, processes)
    steps = min(2, run.total_steps)
    batches = run.batches(0, steps)
    seconds, loss = 0.0, 0.0
    for step in range(steps):
        began = time.perf_counter()
        of_step = [next(batches) for _ in range(recipe.accumulate)]
        parts, norm = run.forward_backward(of_step)
        run.update(of_step, run.step(step), norm)
        loss = parts["loss"].item()  # waits for the GPU
        seconds = time.perf_counter() - began
    with FlopCounterMode(display=False) as counter:
        run.forward_backward(of_step)
    samples = sum(len(batch) for batch in of_step)
    total = sum(p.numel() for p in run.objective.parameters())
    encoder = sum(p.numel() for p in run.objective.export_backbone().parameters())
    peak = peak_memory(processes.device)
    hours = seconds * run.total_steps / 3600
    lines = {
        "parameters": f"{total / 1e6:.2f} M, of which the encoder's {encoder / 1e6:.2f} M",
        "peak memory": "not measured on Windows" if peak is None else f"{peak / 2**30:.2f} GiB per process",
        "FLOPs": f"{counter.get_total_flops() / samples / 1e9:.2f} G per sample, forward and backward",
        "step": f"{seconds:.2f} s, {recipe.batch_size / seconds:.1f} samples/s, loss {loss:.4f}",
        "run": f"{run.total_steps} steps of {recipe.batch_size}; an epoch has {run.plan.steps_per_epoch}",
        "estimated duration": f"{hours:.2f} h on {processes.world_size} process(es) like this one",
    }
    for stream in run.streams:
        bands = ", ".join(f"{m} {len(spec.bands)} bands" for m, spec in stream.preprocess.specs.items())
        name = f"source {stream.source.name}" + (f", task {stream.task}" if stream.task else "")
        lines[name] = f"{len(stream)} samples x {stream.repeat} an epoch, {bands}"
    if print_to is not None:
        for name, value in lines.items():
            print(f"{name}: {value}", file=print_to)
