"""The encoding benchmark: peers compute what ours does, counts are right, and what cannot run says why."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import rsbackbones as rsb
from benchmarks import encode, encode_page, memory
from benchmarks.croma_plain import PlainCroma, looped_bias
from benchmarks.encode_cell import PEERS, Cell, Encoding, Limit
from benchmarks.flops import encode_flops, encode_products
from benchmarks.load_cell import Cell as LoadCell
from benchmarks.load_cell import measure_load
from benchmarks.machine import machine
from benchmarks.operations import ENCODE_PARTS, Operations, encode_part
from benchmarks.processes import side_by_side
from tests.reference import croma_plain as reference

ROOT = Path(__file__).parents[2]
TINY = Cell(
    peer="ours", precision="fp32", model="croma_vit_tiny", size=(32, 32), batch_size=2, threads=1, seed=0
)
LOOP = {"seconds_per_pair": 1e-5, "bytes_per_pair": 700.0}


def asked(**changes):
    """A peer in this process, after its first result."""
    encoding = Encoding(dataclasses.replace(TINY, **changes))
    return encoding, encoding.first()


# -- the peers ----------------------------------------------------------------------------------------


def test_the_looped_bias_is_the_published_rule():
    """Against the slow version of the tests: by heads and pairs, slopes by ALiBi's recursive rule."""
    where = [(r, c) for r in range(5) for c in range(5)]
    assert torch.allclose(looped_bias(5, 8)[0].double(), reference.bias(8, where, where), atol=1e-6)


def test_the_published_encoders_written_plainly_compute_what_ours_do():
    torch.manual_seed(0)
    ours = rsb.create_model("croma_vit_tiny", image_size=48)
    for parameter in ours.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    plain = PlainCroma(ours.config)
    plain.load_state_dict(ours.state_dict(), strict=True)
    images = {m: torch.rand(2, len(bands), 48, 48) for m, bands in ours.bands.items()}
    with torch.no_grad():
        features, found = ours.forward_features(images), plain(images)
    assert found.keys() == features.tokens.keys() == {"s2", "s1", "joint"}
    for stream, (tokens, pooled) in found.items():
        assert torch.allclose(tokens, features.tokens[stream], atol=1e-4), stream
        assert torch.allclose(pooled, features.pooled[stream], atol=1e-4), stream
    with pytest.raises(ValueError, match="square images, got 16 x 48 pixels"):
        PlainCroma(dataclasses.replace(ours.config, image_size=(16, 48)))


@pytest.mark.parametrize(
    ("peer", "precision"),
    [("published", "fp32"), ("published", "bf16"), ("ours_s2", "bf16"), ("torchgeo", "fp32")],
)
def test_peers_have_the_weights_of_ours(peer, precision):
    changes = {"precision": precision}
    if peer == "torchgeo":
        pytest.importorskip("torchgeo.models", exc_type=ImportError)
        changes["model"] = "croma_vit_b"  # its encoders have 16 heads
    _, expected = asked(**changes)
    _, found = asked(peer=peer, **changes)
    difference = encode._difference(found["output"], expected["output"])
    assert difference is not None
    assert difference <= encode.TOLERANCE[precision] / 2


def test_a_wrong_model_is_noticed():
    """Guards the test above: other weights, and a bias that is missing."""
    _, expected = asked()
    _, other = asked(peer="published", seed=1)
    assert encode._difference(other["output"], expected["output"]) > 0.5
    plain, _ = asked(peer="published")
    plain.model.table.zero_()
    _, streams = plain.take()
    output = {s: torch.cat((tokens[0, 0], pooled[0])).tolist() for s, (tokens, pooled) in streams.items()}
    assert encode._difference(output, expected["output"]) > 5 * encode.TOLERANCE["fp32"]
    assert encode._difference({"s2": [float("nan")]}, {"s2": [1.0]}) is not None
    assert encode._difference({}, expected["output"]) is None


def test_timm_has_the_blocks_and_tokens_of_ours():
    ours, _ = asked(peer="ours_s2", size=(16, 48))
    timm, _ = asked(peer="timm", size=(16, 48))
    streams = ours.take()[1]
    tokens = timm.model.forward_features(timm.images["s2"])
    assert tokens.shape == streams["s2"][0].shape == (2, 12, 96)
    assert len(timm.model.blocks) == ours.model.config.depth
    assert {b.mlp.fc1.weight.shape for b in timm.model.blocks} == {
        b.mlp.fc1.weight.shape for b in ours.model.encoders["s2"].blocks
    }


# -- counts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", ["ours", "ours_s2", "published"])
@pytest.mark.parametrize("size", [(32, 32), (16, 48)], ids=str)
def test_flops_on_paper_are_those_that_torch_counts(peer, size):
    if peer == "published" and size != (32, 32):
        pytest.skip("the published code takes square images only")
    encoding, answer = asked(peer=peer, size=size)
    with FlopCounterMode(display=False) as counter:
        encoding.take()
    assert counter.get_total_flops() / 2 == answer["flops"] == encode_flops(encoding.cell.config, size)


def test_the_limit_is_of_the_products_that_the_model_computes():
    encoding, _ = asked()
    operations = Operations(encoding.model, ENCODE_PARTS, encode_part)
    with operations.following():
        encoding.take()
    assert operations.products == Limit(encoding.cell).products
    count = encode_products(encoding.cell.config, (32, 32), 2).total()
    assert count == sum(isinstance(m, torch.nn.Linear) for m in encoding.model.modules())
    assert Limit(TINY).step()["flop_per_s"] > 1e6


@pytest.mark.parametrize(("peer", "side"), [("ours", 32), ("ours", 368), ("published", 32)])
def test_every_part_of_encoding_is_found(peer, side):
    """Also the bias of a large grid, which attention computes within an operation of its own."""
    encoding, _ = asked(peer=peer, size=(side, side), batch_size=1)
    parts = encoding.breakdown()["parts"]
    assert list(parts) == list(ENCODE_PARTS)
    # The table of a small grid is made at the first call, or before it, and kept.
    expected = set(ENCODE_PARTS) - ({"bias"} if side == 32 else set())
    assert {part for part, seconds in parts.items() if seconds > 0} == expected


def test_memory_is_that_of_what_is_held():
    if (before := memory.resident()) is None:
        pytest.skip("Linux only")
    memory.forget_peak()
    held = torch.ones(64 * 2**20 // 4)
    assert memory.peak() - before >= 0.9 * 64 * 2**20
    del held
    memory.give_back()
    memory.forget_peak()
    assert memory.peak() - before < 32 * 2**20
    encoding, _ = asked()
    found = encoding.memory()
    assert found["weights"] == 4 * sum(p.numel() for p in encoding.model.parameters())
    assert found["peak"] > found["weights"]


# -- what cannot run ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "size", "free", "expected"),
    [
        ("ours", (1024, 1024), 1, None),
        ("timm", (96, 480), 1, None),
        ("published", (504, 504), 20e9, None),
        ("published", (96, 480), 20e9, "square images only"),
        ("published", (504, 504), 8e9, "memory: that loop would need 11 GB of 8 free"),
        ("published", (1024, 1024), 1e12, "time: the loop over its bias would take 45 minutes"),
        ("published", (1024, 1024), 20e9, "memory: that loop would need 188 GB of 20 free"),
        ("published", (504, 504), None, None),
    ],
)
def test_what_cannot_run_is_refused_before_it_starts(peer, size, free, expected):
    cell = dataclasses.replace(TINY, model="croma_vit_b", size=size)
    said = encode.refusal(peer, cell, LOOP, free)
    assert said is None if expected is None else expected in said


def test_the_loop_is_predicted_from_a_small_one():
    """In a process of its own: a pair is at least a number for each head, held twice (columns and table)."""
    found = encode.measure_loop(dataclasses.replace(TINY, peer="loop"))
    assert found["pairs"] == 20**4
    assert found["seconds_per_pair"] > 0
    if memory.peak() is not None:
        assert found["bytes_per_pair"] > 2 * 4 * TINY.config.num_heads


def test_a_process_that_takes_too_long_is_ended_and_says_so(tmp_path):
    cell = LoadCell(model="croma_vit_tiny", path=str(tmp_path / "a.safetensors"), threads=1)
    with side_by_side("benchmarks.load_cell", {"a": cell}, seconds=0.06) as processes:
        assert processes.ask("a", "hash") is None
        assert processes.errors == {"a": "over 0.001 minutes"}
        assert processes.ask("a", "hash") is None


@pytest.mark.usefixtures("forks")
def test_a_row_is_measured_in_processes_of_their_own():
    plan = dataclasses.replace(encode.QUICK, fewest=2, rounds=7, round_seconds=0)
    row = encode.measure_row(TINY, plan, LOOP)
    running = [p for p in PEERS if p not in ("compiled", "torchgeo")]
    for peer in running:
        held = row[peer]
        assert len(held["seconds"]) == 2
        assert held["images_per_s"] > 0
        assert held["of_limit"] == pytest.approx(
            held["flops"] * held["images_per_s"] / row["limit"]["flop_per_s"]
        )
        assert 0 < held["construct_seconds"] < held["first_seconds"]
    assert row["published"]["difference"] < 1e-4
    assert row["ours_s2"]["difference"] < 1e-4
    assert "compiled" not in row
    assert "torchgeo" in row["torchgeo"]["error"]
    json.dumps(row)


def test_rows_beyond_the_time_are_left_out_without_a_process():
    row = encode.measure_row(TINY, encode.QUICK, LOOP, left_out="left out: 5 minutes were over")
    assert {row[p]["error"] for p in PEERS if p in row} == {"left out: 5 minutes were over"}


@pytest.mark.usefixtures("forks")
def test_loading_is_measured_against_hashing(tmp_path):
    found = measure_load(tmp_path, model="croma_vit_tiny", threads=1, repeats=1, seconds=120)
    assert found["ratio"] == found["load"][0] / found["hash"][0] > 0
    assert found["bytes"] > 4e6
    assert not list(tmp_path.iterdir())
    failed = measure_load(tmp_path / "none", model="croma_vit_tiny", threads=1, repeats=1, seconds=120)
    assert "none" in failed["error"]


# -- what is said of it -------------------------------------------------------------------------------


def recorded():
    """What a run might have found."""

    def cell(images_per_s, **changes):
        return {
            "images_per_s": images_per_s, "of_limit": images_per_s / 10, "peak": 2e9, "over_weights": 1e9,
            "construct_seconds": 1.5, "first_seconds": 2.5, "seconds": [0.2, 0.2, 0.3],
        } | changes  # fmt: skip

    def row(size, precision, ours, published):
        return {
            "size": size, "precision": precision, "batch_size": 2, "limit": {"flop_per_s": 1e11},
            "ours": ours, "published": published, "torchgeo": {"error": "torchgeo is not installed"},
            "ours_s2": cell(6.0), "timm": cell(4.0),
        }  # fmt: skip

    parts = {"parts": dict.fromkeys(ENCODE_PARTS, 0.5)}
    square = {"error": "shape: it takes square images only"}
    return {
        "command": "python -m benchmarks.encode", "machine": machine(), "threads": 2, "seed": 0,
        "model": "croma_vit_b", "minutes": 30.0, "imports": {"torch": 1.0, "rsbackbones": 1.25},
        "load": {"model": "croma_vit_l", "load": [3.0], "hash": [2.0], "bytes": 2**30, "ratio": 1.5},
        "rows": [
            row((120, 120), "fp32", cell(8.0, **parts), cell(9.0, seconds=[0.2, 0.2])),
            row((120, 120), "bf16", cell(16.0), cell(12.0)),
            row((96, 480), "fp32", cell(8.0), square),
            row((504, 504), "fp32", cell(3.0), cell(1.0)),
            row((504, 504), "bf16", cell(8.0, over_weights=1.6e9), {"error": "over 10 minutes"}),
        ],
    }  # fmt: skip


def test_the_report_says_what_was_measured(tmp_path):
    # As it is read from the file.
    found = json.loads(json.dumps(recorded()))
    text = encode_page.markdown(found)
    assert "| 120 px | fp32 | 0.89 | - | 1.50 | - | - | 80% | 90% | 2 |" in text
    assert "| 120 px | bf16 | 1.33 | - | 1.50 | - | 2.00 | 160% | 120% | 3 |" in text
    assert "| 96 x 480 px | fp32 | 8 (80%) | - | [2] | [1] | 6 (60%) | 4 (40%) |" in text
    assert "1. torchgeo is not installed\n2. shape: it takes square images only\n3. over 10 minutes" in text
    assert "| linear layers | 500 (17%) |" in text
    assert "ratio 1.50." in text
    assert "| 504 px, bf16: 8 times the published |  | not measured |" in text
    encode_page.draw(found, tmp_path / "encode.png")
    assert (tmp_path / "encode.png").read_bytes()[:4] == b"\x89PNG"


def test_aims_are_reached_at_their_bounds():
    found = recorded()
    reached = {text: verdict for text, _, verdict in encode_page.aims(found)}
    assert reached == {
        "120 px, fp32: 80 % of the limit": True,
        "never slower than the published algorithm": False,
        "120 px, bf16: 1.3 times the published": True,
        "504 px, fp32: 3 times the published": True,
        "504 px, bf16: 8 times the published": None,
        "504 px, bf16: 1.5 GB over the weights": False,
        "504 px: built in 2 s": True,
        "1024 px: 6 GB": None,
        "loading: 1.5 times reading and hashing": True,
        "all of it: 60 minutes": True,
    }


def test_the_table_of_the_readme_is_generated_from_the_recorded_measurement():
    """`make tables` writes it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count(encode_page.BEGIN) == text.count(encode_page.END) == 1
    table = encode_page.readme_table(recorded())
    assert "| 504 px | fp32 | 3 | 30% | 3.0 | 3 | 2.5 | 2.5 | 2.0 | 2.0 |" in table
    assert "| 96 x 480 px | fp32 | 8 | 80% | - | 3 | 2.5 | - | 2.0 | - |" in table
    if not (ROOT / encode_page.RECORDED).exists():
        pytest.skip("no measurement is recorded")
    assert encode_page.readme(ROOT) == text
