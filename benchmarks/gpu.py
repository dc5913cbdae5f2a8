"""``python -m benchmarks.gpu``: are the CUDA paths right, and how fast are they? At most 8 minutes.

=========  ===================================================================================================
attention  FlexAttention, blocks and the table of ALiBi give the same, forward; by the largest difference
bf16       features in bfloat16 against float32: the smallest cosine of their vectors
processes  two processes on one device sum a gradient (NCCL, where it takes two ranks on one device; else why)
speed      images per second of CROMA-B at 120, 224 and 504 pixels, and its FLOPs over the rate of matrix
           products of the same types, measured alone in the same minutes
waiting    the share of time that ``embed`` waits for pixels
=========  ===================================================================================================

Ends with status 1 if a path is wrong, and where there is no CUDA device. ``--device cpu`` does the first
three with the small model (and gloo). Writes ``gpu.json`` to ``--output``.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import ProcessException, spawn

import rsbackbones as rsb
from benchmarks.embed import write_scene
from benchmarks.flops import encode_flops
from benchmarks.machine import machine
from benchmarks.processes import say
from rsbackbones.files.atomic import write_text
from rsbackbones.layers.alibi import AlibiBias, alibi_bias, grid_positions
from rsbackbones.layers.blockwise_attention import blockwise_attention
from rsbackbones.layers.flex import attend_with_flex

MODEL, SMALL, SEED = "croma_vit_b", "croma_vit_tiny", 0
# Pixels and images of a batch.
SHAPES = ((120, 128), (224, 32), (504, 4))
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# What attention may differ by in float32 (of values of order 1), and the least cosine in bfloat16.
TOLERANCE, COSINE = 2e-5, 0.995
# Seconds after which no further measurement begins; of two processes; of a rate.
LIMIT, PROCESSES_LIMIT, RATE = 390.0, 90, 2.0


def check_attention(device: torch.device, side: int = 24, heads: int = 4) -> dict[str, float]:
    """Return the largest difference of each path of attention to a plain softmax in float64."""
    generator = torch.Generator().manual_seed(SEED)
    q, k, v = (torch.randn(2, side * side, heads, 32, generator=generator).to(device) for _ in range(3))
    places = grid_positions(side, side, device)
    table = alibi_bias(places, places, heads)
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) * 32**-0.5 + table.double()
    right = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v.double())
    bias = AlibiBias(places, places, heads)
    x, y, z = (t.transpose(1, 2) for t in (q, k, v))
    found: dict[str, Tensor] = {
        "flex": attend_with_flex(q, k, v, bias),
        "blocks": blockwise_attention(q, k, v, bias),
        "table": torch.nn.functional.scaled_dot_product_attention(x, y, z, attn_mask=table).transpose(1, 2),
    }
    return {name: float((out.double() - right).abs().max()) for name, out in found.items()}


def create(name: str, device: torch.device, dtype: torch.dtype, size: int) -> rsb.Backbone:
    """Return a model of both sensors with random weights."""
    torch.manual_seed(SEED)
    model: rsb.Backbone = rsb.create_model(name, image_size=size).to(device, dtype)
    return model.eval()


def images_of(model: rsb.Backbone, count: int, size: int) -> dict[str, Tensor]:
    """Return random images on the model's device and in its type."""
    device, dtype = model.device_and_dtype()
    generator = torch.Generator().manual_seed(SEED)
    return {
        m: torch.rand(count, len(bands), size, size, generator=generator).to(device, dtype)
        for m, bands in model.bands.items()
    }


@torch.inference_mode()
def check_bf16(device: torch.device, name: str, size: int = 224) -> dict[str, float]:
    """Return the smallest cosine of the vectors of each stream, bfloat16 to float32."""
    tokens = []
    for dtype in (torch.float32, torch.bfloat16):
        model = create(name, device, dtype, size)
        tokens.append(model.forward_features(images_of(model, 1, size)).tokens)
    cosine = torch.nn.functional.cosine_similarity
    wide, narrow = tokens
    return {s: float(cosine(x, narrow[s].float(), dim=-1).min()) for s, x in wide.items()}


def check_processes(device: torch.device) -> dict[str, Any]:
    """Sum gradients over two processes on one device; return whether the sum is right, or why none was made.

    NCCL refuses two ranks on one device, unless ``NCCL_MULTI_RANK_GPU_ENABLE`` is understood; that is set.
    Its refusal is no failure, all else is.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = spawn(_sum_gradients, args=(str(device), folder), nprocs=2, join=False)
        try:
            ended = time.monotonic() + PROCESSES_LIMIT
            while not context.join(timeout=1):
                if time.monotonic() > ended:
                    return {"failed": f"no answer within {PROCESSES_LIMIT} s"}
        except ProcessException as error:
            kind = "refused" if "Duplicate GPU" in str(error) else "failed"
            return {kind: str(error).strip().splitlines()[-1]}
        finally:
            for process in context.processes:
                process.kill()
        return {"difference": json.loads((Path(folder) / "difference.json").read_text())}


def _sum_gradients(rank: int, device: str, folder: str) -> None:
    """Be one of the processes: the gradient of DDP of half a batch against that of the whole."""
    os.environ["NCCL_MULTI_RANK_GPU_ENABLE"] = "1"
    backend = "nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = create(SMALL, torch.device(device), torch.float32, 64)
    images = images_of(model, 4, 64)
    pooled = model(images)
    pooled.square().mean().backward()
    whole = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    parallel = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    parallel({m: x[2 * rank : 2 * rank + 2] for m, x in images.items()}).square().mean().backward()
    both = zip(model.parameters(), whole, strict=True)
    difference = max(float((p.grad - w).abs().max() / w.abs().max().clamp(min=1e-12))
                     for p, w in both if p.grad is not None and w is not None)  # fmt: skip
    if rank == 0:
        (Path(folder) / "difference.json").write_text(json.dumps(difference))
    dist.destroy_process_group()


# -- speed, on CUDA alone ----------------------------------------------------------------------------------


def seconds_of(work: Callable[[], Any]) -> float:
    """Return the median seconds of something on the device, repeated for a while after a warm-up."""
    for _ in range(2):
        work()
    torch.cuda.synchronize()
    taken: list[float] = []
    while sum(taken) < RATE or len(taken) < 3:
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int = 8192) -> float:
    """Return the FLOP/s of a product of two square matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: a @ b)


@torch.inference_mode()
def measure_speed(device: torch.device, late: Callable[[], bool]) -> list[dict[str, Any]]:
    """Measure CROMA-B with both sensors; float32 is full float32, without TF32."""
    rows: list[dict[str, Any]] = []
    for kind, dtype in TYPES.items():
        rate = matrix_rate(device, dtype)
        for size, count in SHAPES:
            if late():
                return rows
            model = create(MODEL, device, dtype, size)
            images = images_of(model, count, size)
            seconds = seconds_of(partial(model.forward_features, images))
            flops = encode_flops(model.config, (size, size)) * count / seconds
            rows.append({"size": size, "dtype": kind, "batch_size": count, "images_per_s": count / seconds,
                         "of_matrix_rate": flops / rate, "matrix_flop_per_s": rate})  # fmt: skip
            say(f"{size} px, {kind}: {count / seconds:.0f} images a second")
    return rows


def measure_waiting(device: torch.device, folder: Path, pixels: int = 2560) -> dict[str, Any]:
    """Embed a scene with CROMA-B in bfloat16; return what the records say."""
    torch.manual_seed(SEED)
    model = rsb.create_model(MODEL, modalities=("s2",))
    scene = write_scene(folder / "scene.tif", pixels, pixels)
    job = rsb.embed.plan(model, scene, folder / "e.zarr", device=device, dtype="bfloat16", batch_size=64)
    summary = rsb.embed.run(job, progress=False)
    kept = ("windows", "seconds", "model_seconds", "waited_seconds", "waited_share")
    return {"pixels": pixels, **{key: summary[key] for key in kept}}


def measure(device: torch.device) -> dict[str, Any]:
    """Check and, on CUDA, measure."""
    began = time.monotonic()
    on_cuda = device.type == "cuda"
    found: dict[str, Any] = {"device": str(device), "machine": machine()}
    found["attention"] = check_attention(device)
    found["bf16"] = check_bf16(device, MODEL if on_cuda else SMALL, 224 if on_cuda else 64)
    found["processes"] = check_processes(device)
    say("checked")
    if on_cuda:
        with tempfile.TemporaryDirectory() as folder:
            found["waiting"] = measure_waiting(device, Path(folder))
        found["speed"] = measure_speed(device, lambda: time.monotonic() - began > LIMIT)
    found["minutes"] = (time.monotonic() - began) / 60
    return found


def wrong(found: dict[str, Any]) -> list[str]:
    """Return the paths that do not agree; NaN does not."""
    failed = [
        f"attention by {name}: {d:.2g} off" for name, d in found["attention"].items() if not d <= TOLERANCE
    ]
    failed += [f"bf16, {s}: cosine {c:.4f}" for s, c in found["bf16"].items() if not c >= COSINE]
    processes = found["processes"]
    if "failed" in processes:
        failed.append(f"two processes: {processes['failed']}")
    elif "refused" not in processes and not processes["difference"] <= 1e-3:
        failed.append(f"two processes: gradients {processes['difference']:.2g} off")
    return failed


def main() -> None:
    """Check, measure, and write the record."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="cuda or cpu")
    parser.add_argument("--output", type=Path, default=Path("bench"), metavar="DIR", help="default bench")
    options = parser.parse_args()
    if options.device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu: this machine has no CUDA device; --device cpu checks what can be checked without one")
    found = measure(options.device)
    options.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1) + "\n"
    write_text(options.output / "gpu.json", text)
    print(text, end="")
    if failed := wrong(found):
        sys.exit("gpu: " + "; ".join(failed))


if __name__ == "__main__":
    main()
