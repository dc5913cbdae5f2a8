"""Invariance, patches, positions and extrapolation, as ``rsbackbones eval`` runs and keeps them."""

import json

import numpy as np
import pytest

pytest.importorskip("sklearn")

from rsbackbones import create_model
from rsbackbones.data.labelled import open_labelled
from rsbackbones.eval.diagnostics import DiagnosticOptions, run_diagnostics
from rsbackbones.eval.feature_source import FeatureSource, model_for
from rsbackbones.eval.linear_probe import ProbeOptions
from tests.eval.test_command import checkerboard, run

QUICK = DiagnosticOptions(probe=ProbeOptions(hidden=16, rates=(1e-2,), warmup=1, epochs=3))


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    return checkerboard(tmp_path_factory.mktemp("maps") / "maps.npz")


@pytest.fixture(scope="module")
def source(maps):
    return FeatureSource.pretrained("tiny", model_for(open_labelled(maps), "croma_vit_tiny"), {})


def files(out):
    return {path.name: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}


def test_the_command_prints_a_table_each_and_keeps_what_is_done(maps, tmp_path, capsys):
    names = "linear,invariance,patches,extrapolation"
    sizes = ("--train-size", "32", "--sizes", "32,16,16x32")
    assert run(tmp_path / "out", maps, names, "--baselines", *sizes) == 0
    out = capsys.readouterr().out
    assert "| features | stream | flip h | flip v | turn 90 | turn 180 | turn 270 | other image |" in out
    assert "| features | stream | similarity |" in out
    assert "| features | stream | miou at 32 | miou at 16 | miou at 16 x 32 |" in out
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert list(found["diagnostics"]) == ["invariance", "patches", "extrapolation"]
    for rows in found["diagnostics"].values():
        assert [row["source"] for row in rows] == ["croma_vit_tiny", "random initialization"]
    # A crop of 32 pixels is a whole image: there the probe is that of the protocol.
    linear = {r["source"]: r["metrics"]["miou"] for r in found["rows"] if r["protocol"] == "linear"}
    for row in found["diagnostics"]["extrapolation"]:
        assert row["metrics"]["32"] == pytest.approx(linear[row["source"]])
        assert [at["images"] for at in row["details"]["by_size"]] == [4, 16, 8]
    values = (tmp_path / "out" / "result.csv").read_text()
    assert "croma_vit_tiny,s2,invariance,0,turn_90," in values
    made, before = files(tmp_path / "out"), (tmp_path / "out" / "result.json").read_text()
    assert run(tmp_path / "out", maps, names, "--baselines", *sizes) == 0
    assert files(tmp_path / "out") == made
    assert (tmp_path / "out" / "result.json").read_text() == before
    # Other sizes are another number; the rest is as it was.
    assert run(tmp_path / "out", maps, names, *sizes[:2], "--sizes", "32") == 0
    assert made.items() < files(tmp_path / "out").items()
    assert len(files(tmp_path / "out")) == len(made) + 1


def test_alone_they_give_no_table_of_protocols(maps, tmp_path, capsys):
    assert run(tmp_path / "out", maps, "patches") == 0
    assert "knn" not in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert found["rows"] == []
    assert found["data"]["samples"] == {"train": 6, "test": 4}


def test_positions_are_told_by_stream_and_seed(maps, source, tmp_path):
    found = run_diagnostics(
        ["positions"], [source], lambda seed: open_labelled(maps, seed=seed), tmp_path, seeds=(0, 1),
        options=QUICK, progress=False,
    )["positions"]  # fmt: skip
    assert [(row["stream"], row["seed"]) for row in found] == [("s2", 0), ("s2", 1)]
    assert all(row["metrics"]["guessing"] == pytest.approx(np.log(16)) for row in found)  # 4 x 4 patches
    assert all(row["details"] == {"lr": 1e-2} for row in found)


def test_other_weights_and_other_splits_are_other_parts(maps, tmp_path):
    data = open_labelled(maps)

    def count(data, **build):
        model = model_for(data, "croma_vit_tiny", **build)
        run_diagnostics(
            ["patches"],
            [FeatureSource.pretrained("same", model, {})],
            lambda seed: data,
            tmp_path,
            progress=False,
        )
        return len(files(tmp_path))

    assert [count(data), count(data), count(data, pretrained=False)] == [1, 1, 2]
    assert count(open_labelled(maps, subset=0.5)) == 3


def test_only_what_has_a_model_is_measured(maps, tmp_path):
    data = open_labelled(maps)
    model = model_for(data, "croma_vit_tiny")
    sources = [
        FeatureSource.band_statistics(model, {"level": "patch"}),
        FeatureSource.random_init(lambda: model, {}),
    ]
    found = run_diagnostics(["patches"], sources, lambda seed: data, tmp_path, progress=False)
    assert [row["source"] for row in found["patches"]] == ["random initialization"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("extrapolation",), "no crop of 120 x 120; choose sizes that fit (--sizes and --train-size)"),
        (("extrapolation", "--train-size", "16"), "no crop of 48 x 48"),
        (("extrapolation", "--sizes", "1x2x3"), "got '1x2x3'"),
        (("extrapolation", "--sizes", "big"), "got 'big'"),
        (("knn,patches", "--size", "64"), "in a separate command without them"),
        (("patches", "--pool", "mean"), "in a separate command without them"),
        (("patches", "--streams", "s2+s2"), "single streams"),
        (("patches", "--streams", "s1"), "no stream s1"),
        (("patterns",), "patches, positions"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_what_to_do(maps, more, message, tmp_path, capsys):
    assert run(tmp_path / "out", maps, *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "result.json").exists()


def test_images_of_two_dates_are_refused(tmp_path, capsys):
    assert run(tmp_path / "out", checkerboard(tmp_path / "two.npz", dates=2), "invariance") == 2
    assert "two dates" in capsys.readouterr().err


def test_both_sensors_give_all_streams_and_extrapolation_the_joint_one(tmp_path):
    draw = np.random.default_rng(0)
    np.savez(
        tmp_path / "set.npz", s2=draw.integers(500, 3000, (8, 12, 16, 16)).astype(np.uint16),
        s1=draw.normal(-14, 3, (8, 2, 16, 16)).astype(np.float32),
        s2_bands=np.array(create_model("croma_vit_tiny").bands["s2"]), s1_bands=np.array(["VV", "VH"]),
        label=np.arange(8) % 2, split=np.array(["train"] * 4 + ["test"] * 4),
    )  # fmt: skip
    data = open_labelled(tmp_path / "set.npz")
    source = FeatureSource.pretrained("both", model_for(data, "croma_vit_tiny"), {})
    options = DiagnosticOptions(train_size=16, sizes=(8, 16), probe=QUICK.probe, num_resamples=10)
    found = run_diagnostics(
        ["invariance", "extrapolation"], [source], lambda seed: data, tmp_path / "out", options=options,
        progress=False,
    )  # fmt: skip
    assert {row["stream"] for row in found["invariance"]} == {"s2", "s1", "joint"}
    (row,) = found["extrapolation"]
    assert row["stream"] == "joint"
    assert list(row["metrics"]) == ["8", "16"]
    assert row["details"]["metric"] == "top1"
