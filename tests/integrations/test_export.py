"""torch.compile, torch.export, ONNX: one graph for all batches and sizes, and the features of eager mode."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.export import Dim

import rsbackbones as rsb
from rsbackbones.layers import alibi
from rsbackbones.zoo.registry import find_architecture
from tests.test_precision import NO_TABLES, SMALL, outputs, small, some_images

# Batch, height and width; patches are 8 pixels.
# The first numbers differ from each other and from those of bands: torch.compile takes equal ones for one.
SIZES = [(5, 32, 48), (3, 64, 24), (2, 40, 40), (4, 96, 120)]


def model_of(kind, **arguments):
    if kind == "vit_s16":  # a class token, and timm's interpolation of a table
        return rsb.create_model(kind, overrides=dict(find_architecture(kind).small), **arguments)
    if kind.startswith("seamo"):  # positions that are interpolated to the grid at hand
        changes = {**SMALL, "positions": kind.removeprefix("seamo ")}
        return rsb.create_model("seamo_vit_tiny", overrides=changes, **arguments)
    sensors, _, maps = kind.partition(" ")
    return small(sensors, features_only=bool(maps), **arguments)


def images_of(model, batch, height, width):
    return some_images(getattr(model, "backbone", model), height, width, batch)


def assert_same(got, expected, tolerance=1e-5):
    assert got.keys() == expected.keys()
    for name, x in expected.items():
        torch.testing.assert_close(got[name], x, rtol=0, atol=tolerance)


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


# -- torch.compile --------------------------------------------------------------------------------------

CASES = {
    "two sensors": ("both", torch.float32, True),
    "maps": ("s2 maps", torch.float32, True),
    "no table": ("both", torch.float32, False),
    "bfloat16": ("both", torch.bfloat16, True),
    "seamo": ("seamo sincos", torch.float32, True),
    "class token": ("vit_s16", torch.float32, True),
}


@pytest.mark.parametrize("case", CASES)
def test_one_graph_serves_all_batches_and_sizes(case, monkeypatch):
    kind, dtype, tables = CASES[case]
    if not tables:
        monkeypatch.setattr(alibi, "LARGEST_TABLE", NO_TABLES)
    model = model_of(kind).to(dtype)
    counter = CompileCounter()
    compiled = torch.compile(outputs, fullgraph=True, dynamic=True, backend=counter)
    with torch.no_grad():
        for size in SIZES:
            x = {m: v.to(dtype) for m, v in images_of(model, *size).items()}
            assert_same(compiled(model, x), outputs(model, x), 1e-5 if dtype == torch.float32 else 0.05)
    assert counter.frame_count == 1


@pytest.mark.parametrize("checkpointed", [False, True])
def test_one_graph_serves_training_too(checkpointed):
    model = small(num_classes=3).train()
    model.set_grad_checkpointing(checkpointed)
    counter = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for size in SIZES:
        assert_same(gradients(compiled, model, size), gradients(model, model, size))
    assert counter.frame_count == 1


def test_autocast_and_padding_compile():
    model = small(pad=True)
    counter = CompileCounter()
    compiled = torch.compile(outputs, fullgraph=True, dynamic=True, backend=counter)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for size in [(5, 31, 45), (3, 64, 20), (2, 50, 50)]:
            x = images_of(model, *size)
            assert_same(compiled(model, x), outputs(model, x), 0.05)
    assert counter.frame_count == 1


def test_the_compiler_itself_gives_what_eager_mode_gives():
    """The tests above count graphs, and run them as they are; this one translates them to C++, both ways.

    The encoder of radar is one block. The C++ is not vectorized, which is torch's own and takes gcc longer.
    """
    model = small("s1", num_classes=3).train()
    model.set_grad_checkpointing()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch._inductor.config.patch({"cpp.simdlen": 1}):
        for size in SIZES:
            assert_same(gradients(compiled, model, size), gradients(model, model, size))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def gradients(call, model, size):
    model.zero_grad()
    call(images_of(model, *size)).square().mean().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


# -- torch.export ---------------------------------------------------------------------------------------


class AllFeatures(nn.Module):
    """``forward_features`` as the forward method, which is what torch.export takes."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model.forward_features(images)


def free_shapes(images, pad=False):
    """At least two patches high and wide: of one, torch makes a program of its own."""
    rows, columns = (Dim(name, min=9 if pad else 2) for name in ("rows", "columns"))
    free = {0: Dim("batch"), 2: rows if pad else 8 * rows, 3: columns if pad else 8 * columns}
    return (dict.fromkeys(images, free),)


@pytest.mark.parametrize(
    ("kind", "strict"),
    [
        ("logits", False), ("both maps", True), ("seamo sincos", False), ("seamo learned", True),
        ("vit_s16", False), ("s1", True),
    ],
)  # fmt: skip
def test_a_model_exports_with_free_batch_and_size(kind, strict):
    model = small(num_classes=3) if kind == "logits" else model_of(kind)
    example = images_of(model, *SIZES[0])
    with torch.no_grad():  # where attention by blocks, an operator of our own, would be faster
        program = torch.export.export(model, (example,), dynamic_shapes=free_shapes(example), strict=strict)
    assert not [node for node in program.graph.nodes if "rsbackbones" in str(node.target)]
    for size in [(1, 16, 16), *SIZES]:
        x = images_of(model, *size)
        torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("sensors", "pad", "strict"), [("s2", False, True), ("both", True, False)])
def test_features_export_as_features(sensors, pad, strict, tmp_path):
    model = small(sensors, pad=pad)
    example = images_of(model, *SIZES[0])
    shapes = free_shapes(example, pad)
    program = torch.export.export(AllFeatures(model), (example,), dynamic_shapes=shapes, strict=strict)
    torch.export.save(program, tmp_path / "features.pt2")
    program = torch.export.load(tmp_path / "features.pt2")
    for size in [(1, 11, 17), (4, 50, 30)] if pad else SIZES:
        x = images_of(model, *size)
        got, expected = program.module()(x), model.forward_features(x)
        assert (got.grid, got.size) == (expected.grid, expected.size)
        assert got.default_stream == expected.default_stream
        assert_same(got.tokens, expected.tokens)
        assert_same(got.pooled, expected.pooled)
        assert got.maps().shape[-2:] == expected.grid


def test_a_program_refuses_sizes_that_are_no_multiple_of_the_patch():
    model = small("s2")
    program = rsb.export_program(model)
    with pytest.raises((ValueError, RuntimeError, AssertionError)):
        program.module()(images_of(model, 2, 33, 48))


# -- ONNX -----------------------------------------------------------------------------------------------


def run_onnx(path, images):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    results = session.run(names, {m: x.numpy() for m, x in images.items()})
    return dict(zip(names, map(torch.from_numpy, results), strict=True)), session


@pytest.mark.parametrize("kind", ["both", "s2 maps", "padded", "seamo sincos", "vit_s16"])
def test_onnx_gives_the_features_of_eager_mode(kind, tmp_path):
    pytest.importorskip("onnxscript", reason="pip install 'rsbackbones[onnx]'")
    if kind == "padded":
        model, method = small("s1", pad=True, num_classes=3), "forward"
    else:
        model, method = model_of(kind), "forward" if kind.endswith("maps") else "forward_features"
    path = rsb.export_onnx(model, tmp_path / "model.onnx", method=method)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    for size in (
        [(2, 16, 24), (1, 31, 45), (3, 20, 64)] if kind == "padded" else [(2, 16, 24), (1, 16, 16), *SIZES]
    ):
        x = images_of(model, *size)
        got, session = run_onnx(path, x)
        assert_same(got, named_outputs(kind, model, x), 1e-4)
    metadata = session.get_modelmeta().custom_metadata_map["rsbackbones"]
    said = json.loads(metadata)
    backbone = getattr(model, "backbone", model)
    assert said["architecture"] == backbone.architecture
    assert said["config"]["bands"] == {m: list(bands) for m, bands in backbone.bands.items()}
    assert said["inputs"].keys() == backbone.bands.keys()
    assert all(contract["mean"] for contract in said["inputs"].values())


def named_outputs(kind, model, x):
    if kind.endswith("maps"):
        return {f"maps_{i}": maps for i, maps in zip(model.indices, model(x), strict=True)}
    if kind == "padded":
        return {"logits": model(x)}
    features = model.forward_features(x)
    maps = {f"maps_{stream}": features.maps(stream) for stream in features.pooled}
    return maps | {f"pooled_{stream}": v for stream, v in features.pooled.items()}


def test_bad_exports_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no method forward_features: leave out method="):
        rsb.export_program(small(features_only=True), method="forward_features")
    with pytest.raises(ValueError, match="forward or forward_features, got 'tokens'"):
        rsb.export_program(small(), method="tokens")
    with pytest.raises(ValueError, match=r"ends in \.onnx"):
        rsb.export_onnx(small(), tmp_path / "model.pt")


def test_onnx_without_its_packages_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'rsbackbones\[onnx\]'"):
        rsb.export_onnx(small(), tmp_path / "model.onnx")


def test_the_lines_of_the_page_run(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    # The small model, and graphs run as they are rather than translated to C++.
    for theirs, ours in [
        ('"croma_vit_b", pretrained=True', f'"croma_vit_tiny", overrides={SMALL}'),
        ("dynamic=True)", 'dynamic=True, backend="eager")'),
        ("120, 120", "32, 48"),
    ]:
        assert theirs in code
        code = code.replace(theirs, ours)
    names: dict[str, object] = {}
    exec(code, names)
    with torch.no_grad():
        expected = names["model"](names["images"])
    torch.testing.assert_close(torch.from_numpy(names["embedding"]), expected, rtol=0, atol=1e-4)
