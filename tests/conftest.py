"""What several test files need: a small model, and the folder of real samples."""

import gc
import os
from importlib.util import find_spec
from pathlib import Path

# On CPUs with AMX, oneDNN of torch 2.15 gives wrong bfloat16 convolutions (docs/loading.md). This must be set
# before torch is imported.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

import pytest
import torch
from hypothesis import HealthCheck, settings

import rsbackbones as rsb
from rsbackbones.sensors import SENSORS
from tests.cpu_times import function_of, slow_tests

# How fast a machine is says nothing about the code: no test fails for being slow.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
# The workers of pytest-xdist share the cores; more threads each would only make them wait. The same holds for
# processes that tests start, and for those that torch.compile would start.
torch.set_num_threads(1)
os.environ.update({"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"})
# UMAP of 20 points is interpreted in two seconds, and compiled in thirty.
os.environ["NUMBA_DISABLE_JIT"] = "1"


@pytest.fixture(autouse=True)
def _one_thread():
    """Whatever a library did to the number in a test before: sums differ in the last bit with it."""
    torch.set_num_threads(1)


# Files of the core suite whose imports need the extra train, which `make test-oldest` is without.
if find_spec("pydantic") is None:
    collect_ignore = [
        "layers/test_wavelength_tokenizer.py",
        "models/test_contract.py",
        "models/test_processes.py",
        "models/test_training.py",
    ]

# Files whose tests start processes, speak to the Hub of the tests, or belong to the benchmarks.
MARKED = {
    "multiprocess": (
        "test_processes.py", "test_finetune_processes.py", "test_distributed.py", "test_kills.py",
        "test_croma_ranks.py", "test_batch_norm.py", "test_job_runs.py", "test_series.py",
    ),
    "network": ("test_hub_*.py", "test_loopback_hub.py", "test_published_hub.py", "test_weights_folder.py"),
    "bench": ("benchmarks/*",),
}  # fmt: skip


def pytest_xdist_auto_num_workers():
    """One more than cores: tests wait for processes and servers that they start."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items):
    """Mark tests by the file that they are in, and those that are recorded as slow."""
    slow = slow_tests()
    for item in items:
        if function_of(item.nodeid) in slow:
            item.add_marker("slow")
        path = item.path.relative_to(Path(__file__).parent)
        for mark, patterns in MARKED.items():
            if any(path.match(pattern) for pattern in patterns):
                item.add_marker(mark)


def pytest_collection_finish():
    """What was imported stays: the garbage collector need not look through a million objects again."""
    gc.freeze()


def pytest_unconfigure():
    """At the end libraries look for what was leaked, and would say so of all that is frozen."""
    gc.unfreeze()


RECORDED = Path(__file__).parent / "recorded"
# A CNN and a network over series go through the tests of all models.
for family in ("tests.models.toy_cnn", "tests.models.toy_series"):
    rsb.register_family(family)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for rounding: matrix products may differ in the last bit with where their operands lie."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=2e-6)


@pytest.fixture
def tiny() -> rsb.Backbone:
    """A two-sensor model with random weights, the same in every test."""
    torch.manual_seed(0)
    return rsb.create_model("croma_vit_tiny")


@pytest.fixture
def images() -> dict[str, torch.Tensor]:
    """Normalized images for both sensors, two of 32 x 48 pixels."""
    generator = torch.Generator().manual_seed(1)
    return {
        "s2": torch.rand(2, 12, 32, 48, generator=generator),
        "s1": torch.rand(2, 2, 32, 48, generator=generator),
    }


@pytest.fixture(scope="module")
def without_pictures():
    """Drawing takes longer than a small run; the runs of test_trainer.py and a few others draw."""
    from tests.train.training import DRAWN, draw_by, draw_nothing

    draw_nothing()
    yield
    draw_by(*DRAWN)


@pytest.fixture
def own_sensors():
    """What a test registers is forgotten after it."""
    before = dict(SENSORS)
    yield
    SENSORS.clear()
    SENSORS.update(before)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real satellite samples that RSB_DATA names."""
    if "RSB_DATA" not in os.environ:
        pytest.skip("RSB_DATA names no folder of real samples")
    return Path(os.environ["RSB_DATA"])
