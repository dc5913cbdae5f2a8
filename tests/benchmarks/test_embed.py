"""The benchmarks of embedding: what they count is right, and the page says what was recorded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rsbackbones as rsb

pytest.importorskip("obstore")
pytest.importorskip("faiss")
pytest.importorskip("sklearn")

from benchmarks import embed, gpu
from benchmarks.embed_page import PAGE, RECORDED, in_docs

ROOT = Path(__file__).parents[2]


def test_the_tables_of_the_page_are_those_of_the_record():
    """`python -m benchmarks.embed --docs-only` writes them."""
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    assert in_docs(page, json.loads((ROOT / RECORDED).read_text())) == page


def test_windows_at_borders_are_those_of_the_tasks(tmp_path):
    pixels = 1104
    scene = embed.write_scene(tmp_path / "scene.tif", pixels, pixels)
    job = rsb.embed.plan(embed.create("croma_vit_tiny"), scene, tmp_path / "e.zarr", shard=128)
    tasks = sum(len(row) for block in job.blocks for row in job.lattice.rows_of_windows(block))
    found = embed.measure_borders(pixels)
    assert found["windows"] == len(job.lattice.tops) * len(job.lattice.lefts)
    assert found["twice"]["128"] == pytest.approx(tasks / found["windows"] - 1)
    assert found["twice"]["128"] > found["twice"]["256"] == 0


def test_what_is_compared_on_a_gpu_agrees_on_the_cpu():
    cpu = torch.device("cpu")
    found = {"attention": gpu.check_attention(cpu, side=6), "bf16": gpu.check_bf16(cpu, gpu.SMALL, 32)}
    assert found["attention"].keys() == {"flex", "blocks", "table"}
    assert not gpu.wrong(found | {"processes": {"refused": "Duplicate GPU detected"}})
    assert len(gpu.wrong(found | {"processes": {"failed": "no answer within 90 s"}})) == 1
    broken = {"attention": {"flex": float("nan")}, "bf16": {"s2": 0.5}, "processes": {"difference": 1.0}}
    assert len(gpu.wrong(broken)) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_machine_without_cuda_is_told_so():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True, cwd=ROOT
    )  # fmt: skip
    assert result.returncode != 0
    assert result.stderr.strip().endswith("--device cpu checks what can be checked without one")
    assert not result.stdout
