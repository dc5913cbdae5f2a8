"""A ResNet-50 and a ViT-B beside timm and torchgeo: the same features, load time, memory and images/s.

    python -m benchmarks.peers [--output DIR] [--threads N]

All three read one file of random weights in the published layout (13 bands of Sentinel-2), each in a process
of its own. They answer in turn, in rounds, so that what else the machine does meets all of them. torchgeo's
functions only load their own downloads, so its network is built by torchgeo and loaded as its code does, with
``torch.load`` and ``load_state_dict``. *Load* is from the file to a network in memory without the import of
libraries; rsbackbones also hashes the file, as it does for published weights, and checks that all values are
finite. Memory is the peak of the process over what it had before loading.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import memory
from benchmarks.machine import machine
from benchmarks.page import describe
from benchmarks.processes import say, serve, side_by_side
from rsbackbones.files.atomic import write_text
from rsbackbones.files.markdown import markdown_table
from rsbackbones.files.sha256 import sha256_of

PEERS = ("rsbackbones", "timm", "torchgeo")
BANDS, SIZE, BATCH, ROUNDS, TOLERANCE = 13, 224, 8, 5, 1e-5
NETWORKS = {"resnet50": "resnet50", "vit_b16": "vit_base_patch16_224"}
_S2 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One peer with one network, and the file of its weights."""

    peer: str
    network: str
    path: str
    threads: int
    batch: int = BATCH


def build(cell: Cell) -> Any:
    """Return the network of a peer with the weights of the file."""
    path = Path(cell.path)
    if cell.peer == "rsbackbones":
        import rsbackbones as rsb

        sha256_of(path)
        return rsb.create_model(cell.network, checkpoint=path, overrides={"bands": {"s2": _S2}})
    if cell.peer == "timm":
        import timm

        network: Any = timm.create_model(NETWORKS[cell.network], in_chans=BANDS, num_classes=0)
    else:
        import torchgeo.models

        network = getattr(torchgeo.models, NETWORKS[cell.network])(in_chans=BANDS, num_classes=0)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


def images(batch: int) -> torch.Tensor:
    """Return the same images in every process."""
    return torch.rand(batch, BANDS, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def write_weights(network: str, path: Path) -> None:
    """Write random weights, with norms and running statistics that are not trivial."""
    import timm

    torch.manual_seed(0)
    state = timm.create_model(NETWORKS[network], in_chans=BANDS, num_classes=0).state_dict()
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(torch.randn_like(tensor), alpha=0.1)
    torch.save(state, path)


def measure(network: str, threads: int, rounds: int = ROUNDS, batch: int = BATCH) -> dict[str, Any]:
    """Measure all peers in one run.

    Returns:
        By peer seconds to load, the memory for it, images/s of every round, and the largest difference of its
        features from timm's, over the largest feature; or the ``error``.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{network}.pth"
        write_weights(network, path)
        cells = {
            p: Cell(peer=p, network=network, path=str(path), threads=threads, batch=batch) for p in PEERS
        }
        found: dict[str, Any] = {peer: {"rates": []} for peer in PEERS}
        with side_by_side("benchmarks.peers", cells) as processes:
            for peer in PEERS:
                say(f"{network}: {peer}")
                found[peer] |= processes.ask(peer, "load") or {}
            for _ in range(rounds):
                for peer in PEERS:
                    answer = processes.ask(peer, "encode")
                    if answer is not None:
                        found[peer]["rates"].append(answer["rate"])
            features = {peer: processes.ask(peer, "features") for peer in PEERS}
            for peer, error in processes.errors.items():
                found[peer]["error"] = error
    expected = torch.tensor((features["timm"] or {}).get("features", []))
    for peer, answer in features.items():
        if answer is not None and len(expected):
            difference = (torch.tensor(answer["features"]) - expected).abs().max() / expected.abs().max()
            found[peer]["difference"] = float(difference)
    return found


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the results as Markdown; ratios are to timm in the same round."""
    rows = []
    for network, found in results.items():
        for peer, held in found.items():
            if "error" in held:
                rows.append((network, peer, held["error"], "", "", "", ""))
                continue
            rates, reference = held["rates"], found["timm"].get("rates", [])
            ratios = [a / b for a, b in zip(rates, reference, strict=False)]
            rows.append(
                (
                    network,
                    peer,
                    f"{held['difference']:.1e}",
                    f"{held['seconds']:.2f}",
                    f"{held['bytes'] / 2**20:.0f}" if held["bytes"] is not None else "-",
                    f"{statistics.median(rates):.2f}",
                    f"{statistics.median(ratios):.2f}",
                )
            )
    heads = ("network", "peer", "difference", "load, s", "memory, MiB", "images/s", "times timm")
    return markdown_table(heads, rows, "llrrrrr")


def page(found: dict[str, Any]) -> str:
    """Return peers.md."""
    lines = [
        "# Beside timm and torchgeo",
        "",
        f"{BATCH} images of {SIZE} px and {BANDS} bands, fp32, from one file of random weights. *Difference* "
        "is the largest of the features from timm's, over the largest feature. Ratios are medians of rounds "
        "in which all took turns.",
        "",
        table(found["results"]),
        "",
        describe(found),
    ]
    return "\n".join(lines) + "\n"


def answer_for(cell: Cell) -> None:
    """Answer what :func:`measure` asks, the child's side."""
    torch.set_num_threads(cell.threads)
    if cell.peer != "rsbackbones":  # imports are not part of loading
        __import__({"timm": "timm", "torchgeo": "torchgeo.models"}[cell.peer])
    else:
        __import__("timm")
        __import__("rsbackbones")
    held: dict[str, Any] = {"x": images(cell.batch)}

    def answer(what: str) -> dict[str, Any]:
        began = time.perf_counter()
        if what == "load":
            memory.give_back()
            memory.forget_peak()
            before = memory.resident()
            held["model"] = build(cell)
            seconds, peak = time.perf_counter() - began, memory.peak()
            used = None if before is None or peak is None else peak - before
            with torch.inference_mode():
                held["model"](held["x"][:1])  # the first call is another matter
            return {"seconds": seconds, "bytes": used}
        with torch.inference_mode():
            y = held["model"](held["x"])
        if what == "features":
            return {"features": y.tolist()}
        return {"rate": len(held["x"]) / (time.perf_counter() - began)}

    serve(answer)


def main() -> None:
    """Measure, print, and write peers.json and peers.md if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, metavar="DIR")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.output:
        options.output.mkdir(
            parents=True, exist_ok=True
        )  # before minutes of work, whose results would be lost
    on = machine()
    results = {network: measure(network, options.threads) for network in NETWORKS}
    found = {
        "machine": on, "threads": options.threads, "seed": 0, "command": "python -m benchmarks.peers",
        "results": results,
    }  # fmt: skip
    print(table(results))
    if options.output:
        write_text(options.output / "peers.json", json.dumps(found, indent=1) + "\n")
        write_text(options.output / "peers.md", page(found))
    worst = max(held.get("difference", 0.0) for found in results.values() for held in found.values())
    if worst > TOLERANCE:
        sys.exit(f"features differ by {worst:.1e} of the largest, more than {TOLERANCE}")


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        answer_for(Cell(**json.loads(sys.argv[1])))
    else:
        main()
