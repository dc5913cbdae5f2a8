"""``rsbackbones eval``: from folders and described arrays to one table, whole or not at all."""

import json
import re
import sys
import time

import numpy as np
import pytest

pytest.importorskip("sklearn")

from PIL import Image

from rsbackbones.cli import main
from tests import forked


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three classes of noisy colors, 15 pictures of 16 x 16 each."""
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, color in {"field": (40, 120, 40), "sea": (20, 40, 120), "town": (130, 110, 100)}.items():
        (root / name).mkdir()
        for i in range(15):
            image = np.clip(np.array(color) + draw.normal(0, 12, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(root / name / f"{i}.png")
    return root


def run(out, data, *more):
    common = ["--model", "croma_vit_tiny", "--data", str(data), "--output", str(out), "--no-progress"]
    return main(["eval", *more[:1], *common, *more[1:]])


def test_pictures_in_class_folders_give_one_table(pictures, tmp_path, capsys):
    assert run(tmp_path / "a", pictures, "knn,kmeans,linear", "--baselines") == 0
    out = capsys.readouterr()
    assert "croma_vit_tiny" in out.out
    assert "random initialization" in out.out
    assert "B08" in out.err  # whose weights were left out
    found = json.loads((tmp_path / "a" / "result.json").read_text())
    protocols = {(row["source"], row["protocol"]) for row in found["rows"]}
    assert ("mean and deviation per band", "logistic") in protocols
    assert ("croma_vit_tiny", "logistic") in protocols  # compared by the same
    assert all(0 <= row["intervals"]["top1"][0] <= row["metrics"]["top1"] + 1e-9 for row in found["rows"])
    best = next(r for r in found["rows"] if r["source"].startswith("mean"))
    assert best["metrics"]["top1"] == 1  # colors are told apart by their means
    assert found["data"]["samples"] == {"train": 36, "test": 9}
    header = (tmp_path / "a" / "result.csv").read_text().splitlines()[0]
    assert header == "source,stream,protocol,seed,metric,value,low,high"
    # Again: nothing is computed, everything is the same.
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "a" / "parts").iterdir()}
    before = (tmp_path / "a" / "result.json").read_text()
    assert run(tmp_path / "a", pictures, "knn,kmeans,linear", "--baselines") == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "a" / "parts").iterdir()} == made
    assert (tmp_path / "a" / "result.json").read_text() == before


def test_a_damaged_row_is_said_and_made_again(pictures, tmp_path):
    assert run(tmp_path, pictures, "knn,logistic") == 0
    before, parts = (tmp_path / "result.json").read_text(), (tmp_path / "parts").glob("*.json")
    part = next(part for part in parts if json.loads(part.read_text())["protocol"] == "knn")
    for content in ("", '{"metrics": {"top1"', "[1]", "{}", "\xff"):
        part.write_bytes(content.encode("latin-1"))
        with pytest.warns(UserWarning, match=f"{part.name} is damaged and made anew"):
            assert run(tmp_path, pictures, "knn,logistic") == 0, content
        assert (tmp_path / "result.json").read_text() == before
        assert json.loads(part.read_text())["protocol"] == "knn"


def test_progress_is_shown_within_a_protocol(pictures, tmp_path, capsys):
    options = ["--model", "croma_vit_tiny", "--data", str(pictures), "--output", str(tmp_path)]
    assert main(["eval", "linear,sparse", *options]) == 0
    shown = capsys.readouterr().err
    epochs = {int(n) for n in re.findall(r"linear (\d+)/210", shown)}
    assert max(epochs) == 210
    assert len(epochs) > 20
    assert {int(n) for n in re.findall(r"sparse (\d)/3", shown)} == {1, 2, 3}


def test_a_killed_run_goes_on_to_the_same_result(pictures, tmp_path):
    assert run(tmp_path / "whole", pictures, "knn,kmeans,linear") == 0
    command = [
        *(sys.executable, "-m", "rsbackbones", "eval", "knn,kmeans,linear", "--no-progress"),
        *("--model", "croma_vit_tiny", "--data", str(pictures), "--output", str(tmp_path / "killed")),
    ]
    process = forked.Forked(command, tmp_path / "log")
    parts = tmp_path / "killed" / "parts"
    for _ in range(1200):
        if process.poll() is not None or (parts.is_dir() and any(parts.glob("*.json"))):
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert forked.run(command).returncode == 0
    rows = [json.loads((tmp_path / name / "result.json").read_text())["rows"] for name in ("whole", "killed")]
    assert rows[0] == rows[1]


def described(path, **changes):
    draw = np.random.default_rng(1)
    arrays = {
        "s2": draw.integers(0, 3000, (20, 4, 16, 16)).astype(np.uint16),
        "s2_bands": np.array(["B02", "B03", "B04", "B08"]),
        "label": np.arange(20) % 2,
    }
    arrays["s2"][::2] //= 2
    np.savez(path, **{**arrays, **changes})
    return path


def test_described_arrays_of_both_sensors_give_every_stream(tmp_path, capsys):
    radar = np.random.default_rng(2).normal(-14, 3, (20, 2, 16, 16)).astype(np.float32)
    data = described(tmp_path / "set.npz", s1=radar, s1_bands=np.array(["VV", "VH"]))
    assert run(tmp_path / "out", data, "knn,sparse", "--seeds", "0,1") == 0
    rows = json.loads((tmp_path / "out" / "result.json").read_text())["rows"]
    streams = {row["stream"] for row in rows}
    assert {"s2", "s1", "joint"} < streams
    assert any("+" in stream for stream in streams)
    assert {row["seed"] for row in rows} == {0, 1}
    assert "k = 16" in capsys.readouterr().out  # of 16 training samples there are no 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.zeros(20, np.int64)}, "class"),
        ({"s2_bands": np.array(["B02", "B03", "B04", "B99"])}, "B99"),
        ({"s2": np.full((20, 4, 16, 16), np.nan, np.float32)}, "NaN"),
        ({"s2": np.full((20, 4, 15, 16), 1000, np.uint16)}, "size"),
    ],
)
def test_bad_data_is_refused_and_leaves_no_result(changes, message, tmp_path, capsys):
    data = described(tmp_path / "set.npz", **changes)
    assert run(tmp_path / "out", data, "knn") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "result.json").exists()


def test_unknown_protocols_are_refused(pictures, tmp_path, capsys):
    assert run(tmp_path / "out", pictures, "knm") == 2
    assert "kmeans" in capsys.readouterr().err


def checkerboard(path, dates=1, tests=4):
    """Ten images of two shades in squares of 8 pixels, the label map shifted by a pixel."""
    draw = np.random.default_rng(3)
    squares = draw.integers(0, 2, (10, 4, 4)).repeat(8, 1).repeat(8, 2)
    images = (500 + 2000 * squares)[:, None] + draw.integers(0, 100, (10, 4, 32, 32))
    if dates == 2:
        images = np.stack([np.full_like(images, 500) + draw.integers(0, 100, images.shape), images], axis=1)
    np.savez(
        path, s2=images.astype(np.uint16), s2_bands=np.array(["B02", "B03", "B04", "B08"]),
        label=np.roll(squares, 1, axis=2), classes=np.array(["bare", "built"]),
        split=np.array(["train"] * (10 - tests) + ["test"] * tests),
    )  # fmt: skip
    return path


@pytest.mark.parametrize(("dates", "metric"), [(1, "miou"), (2, "f1_built")])
def test_label_maps_are_scored_by_pixel(dates, metric, tmp_path, capsys):
    data = checkerboard(tmp_path / "maps.npz", dates)
    assert run(tmp_path / "out", data, "logistic", "--baselines") == 0
    assert metric in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert found["metric"] == metric
    (row,) = [r for r in found["rows"] if r["source"].startswith("mean")]
    # The statistics tell every patch, and a patch is all one class: what is wrong is the shifted edge alone.
    with np.load(data) as arrays:
        truth = arrays["label"][6:]
    right = (truth == np.roll(truth, -1, axis=2)).mean()
    assert row["metrics"]["pixel_accuracy"] == pytest.approx(right)
    assert right < 1
    low, high = row["intervals"][metric]
    assert low <= row["metrics"][metric] <= high


def test_scenes_of_two_sizes_go_by_tiles_and_the_record_says_so(tmp_path, capsys):
    with np.load(checkerboard(tmp_path / "small.npz")) as held:
        small = dict(held)
    large = small | {"s2": np.tile(small["s2"], (1, 1, 2, 1)), "label": np.tile(small["label"], (1, 2, 1))}
    np.savez(tmp_path / "large.npz", **large)
    (tmp_path / "both.yaml").write_text('files: ["small.npz", "large.npz"]\n')
    assert run(tmp_path / "whole", tmp_path / "both.yaml", "logistic") == 2
    assert "name one size for all" in capsys.readouterr().err
    assert run(tmp_path / "out", tmp_path / "both.yaml", "logistic", "--tile", "16") == 0
    said = capsys.readouterr().out
    assert (
        "tiles of 16 pixels that overlap by half; the features of a patch are averaged over its tiles" in said
    )
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert found["encoding"] == {"level": "patch", "pool": None, "size": None, "tile": 16, "overlap": None}
    (row,) = found["rows"]
    assert row["metrics"]["miou"] > 0.5
    assert run(tmp_path / "out", tmp_path / "both.yaml", "logistic", "--tile", "12") == 2
    assert "must be multiples of 8, the side of a patch (--tile, --overlap)" in capsys.readouterr().err
    assert run(tmp_path / "out", tmp_path / "both.yaml", "logistic", "--overlap", "8") == 2
    assert "name their size with tile= (--tile)" in capsys.readouterr().err


def test_a_single_test_image_has_no_interval(tmp_path, capsys):
    data = checkerboard(tmp_path / "maps.npz", tests=1)
    assert run(tmp_path / "out", data, "logistic") == 0
    assert "[" not in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "out" / "result.json").read_text())["rows"]
    assert row["intervals"] == {}


def test_label_rasters_of_a_table_take_their_classes_from_the_command(tmp_path, capsys):
    rasterio = pytest.importorskip("rasterio")
    draw = np.random.default_rng(4)
    lines = ["s1,mask,split"]
    for i in range(6):
        mask = np.repeat([[0, 1, 255]], 16, axis=0).repeat(8, axis=1)
        radar = np.where(mask[None] == 1, -20.0, -8.0) + draw.normal(0, 1, (2, 16, 24))
        for name, image in (
            (f"s1_{i}.tif", radar.astype(np.float32)),
            (f"mask_{i}.tif", mask[None].astype(np.uint8)),
        ):
            profile = {
                "driver": "GTiff",
                "width": 24,
                "height": 16,
                "count": len(image),
                "dtype": image.dtype,
            }
            with rasterio.open(tmp_path / name, "w", **profile) as file:
                file.write(image)
                if len(image) == 2:
                    file.descriptions = ("VV", "VH")
        lines.append(f"s1_{i}.tif,mask_{i}.tif,{'test' if i > 3 else 'train'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    options = ("--classes", "land,water", "--ignore", "255", "--size", "32x48")
    assert run(tmp_path / "out", tmp_path, "logistic", "--baselines", *options) == 0
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert found["data"]["classes"] == ["land", "water"]
    (row,) = [r for r in found["rows"] if r["source"].startswith("mean")]
    assert row["metrics"]["iou_water"] == 1
    assert run(tmp_path / "other", tmp_path, "logistic") == 2
    assert "--classes" in capsys.readouterr().err


def test_several_labels_leave_out_k_means(tmp_path, capsys):
    data = described(tmp_path / "set.npz", label=(np.arange(60).reshape(20, 3) % 2).astype(np.int64))
    assert run(tmp_path / "out", data, "knn,kmeans") == 2
    assert "leave kmeans out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_maps_with_gaps_between_their_numbers_are_refused(tmp_path, capsys):
    """255 is no class of its own: it is what nobody labelled."""
    maps = np.random.default_rng(5).integers(0, 2, (20, 16, 16))
    maps[:, 0] = 255
    data = described(tmp_path / "set.npz", label=maps)
    assert run(tmp_path / "out", data, "knn") == 2
    assert "--ignore" in capsys.readouterr().err
    assert run(tmp_path / "out", data, "knn", "--ignore", "255") == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["data"]["classes"] == ["0", "1"]


@pytest.mark.parametrize("seeds", ["0,0", "a", "-1"])
def test_bad_seeds_are_refused(seeds, pictures, tmp_path, capsys):
    assert run(tmp_path / "out", pictures, "knn", "--seeds=" + seeds) == 2
    assert "--seeds" in capsys.readouterr().err


def test_change_that_the_test_split_lacks_has_no_score_and_valid_json(tmp_path, capsys):
    draw = np.random.default_rng(6)
    squares = draw.integers(0, 2, (10, 2, 2)).repeat(8, 1).repeat(8, 2)
    squares[6:] = 0
    images = np.stack([np.full((10, 4, 16, 16), 500), 500 + 2000 * squares[:, None].repeat(4, 1)], axis=1)
    images += draw.integers(0, 50, images.shape)
    np.savez(
        tmp_path / "set.npz", s2=images.astype(np.uint16), label=squares,
        s2_bands=np.array(["B02", "B03", "B04", "B08"]), split=np.array(["train"] * 6 + ["test"] * 4),
    )  # fmt: skip
    assert run(tmp_path / "out", tmp_path / "set.npz", "linear", "--baselines") == 0
    assert "f1_change" in capsys.readouterr().out
    text = (tmp_path / "out" / "result.json").read_text()
    assert "NaN" not in text
    (row,) = [r for r in json.loads(text)["rows"] if r["source"].startswith("mean")]
    assert row["metrics"]["pixel_accuracy"] == 1
    assert "f1_change" not in row["metrics"]


def sparsely_labelled(folder, kind):
    """Radar of three shades, a patch each, that labels call 1, 2 and 3; most pixels are 0: nobody looked."""
    draw = np.random.default_rng(7)
    shades = np.stack([draw.permutation(np.arange(16) % 3 + 1).reshape(4, 4) for _ in range(6)])
    shades = shades.repeat(8, 1).repeat(8, 2)
    radar = (-25 + 6.0 * shades[:, None] + draw.normal(0, 0.5, (6, 2, 32, 32))).astype(np.float32)
    labels = np.where(np.arange(32) % 8 < 2, shades, 0).astype(np.uint8)
    split = ["train"] * 4 + ["test"] * 2
    if kind == "npz":
        np.savez(folder / "set.npz", s1=radar, s1_bands=["VV", "VH"], label=labels, split=split)
        return folder / "set.npz"
    rasterio = pytest.importorskip("rasterio")
    for i in range(6):
        for name, image in ((f"s1_{i}.tif", radar[i]), (f"mask_{i}.tif", labels[i][None])):
            size = {"width": 32, "height": 32, "count": len(image)}
            with rasterio.open(folder / name, "w", driver="GTiff", dtype=image.dtype, **size) as file:
                file.write(image)
                file.descriptions = ("VV", "VH")[: len(image)]
    rows = [f"s1_{i}.tif,mask_{i}.tif,{word}" for i, word in enumerate(split)]
    (folder / "labels.csv").write_text("\n".join(["s1,mask,split", *rows]))
    return folder


@pytest.mark.parametrize("kind", ["npz", "table"])
def test_what_stands_for_no_label_is_no_class(kind, tmp_path, capsys):
    data = sparsely_labelled(tmp_path, kind)
    found = {}
    for said in ("oil=1,foam=2,ship=3", "none,oil,foam,ship", "none=0,oil=1,foam=2,ship=3"):
        out = tmp_path / said
        assert run(out, data, "kmeans", "--classes", said, "--ignore", "0", "--baselines") == 0
        record = json.loads((out / "result.json").read_text())
        assert record["data"]["classes"] == ["oil", "foam", "ship"]
        found[said] = [row["metrics"] for row in record["rows"]]
        (row,) = [r for r in record["rows"] if r["source"].startswith("mean")]
        assert row["metrics"]["miou"] == 1
        # Of all metrics by class there are three.
        assert sum(name.startswith("iou_") for name in row["metrics"]) == 3
    first, *others = found.values()
    assert all(other == first for other in others)
    capsys.readouterr()
    # The names of 0, 1, 2: there is no 3.
    assert run(tmp_path / "out", data, "knn", "--classes", "oil,foam,ship", "--ignore", "0") == 2
    assert "NAME=CODE" in capsys.readouterr().err
    assert run(tmp_path / "out", data, "knn", "--classes", "oil=1,foam=2,ship") == 2
    assert "NAME=CODE" in capsys.readouterr().err


def test_statistics_stand_beside_random_weights_alone(pictures, tmp_path):
    assert run(tmp_path, pictures, "knn", "--no-pretrained", "--baselines") == 0
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [(row["source"], row["protocol"]) for row in rows] == [
        ("random initialization", "knn"),
        ("random initialization", "logistic"),
        ("mean and deviation per band", "logistic"),
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--pool", "mean"), "--pool mean makes one embedding"),
        (("--sparse-k", "1,2"), "add it to the protocols or drop --sparse-k"),
        (("--sizes", "16,24"), "--sizes and --train-size only apply to the extrapolation protocol"),
        (("--train-size", "16"), "--sizes and --train-size only apply to the extrapolation protocol"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, said, tmp_path, capsys):
    data = checkerboard(tmp_path / "maps.npz")
    assert run(tmp_path / "out", data, "knn", *options) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sparse_probes_see_as_many_dimensions_as_the_command_says(pictures, tmp_path, capsys):
    small = ("--no-pretrained", "--overrides", "dim=16", "--overrides", "num_heads=2")
    f1 = {}
    for said in (None, "2,5", "all"):
        options = () if said is None else ("--sparse-k", said)
        assert (
            run(tmp_path, pictures, "sparse", *small, *options) == 0
        )  # a row that was made for others is not taken
        (row,) = json.loads((tmp_path / "result.json").read_text())["rows"]
        f1[said] = dict(zip(row["details"]["k"], row["details"]["f1"], strict=True))
    assert list(f1[None]) == [1, 2, 4, 8, 16]
    assert list(f1["2,5"]) == [1, 2, 5]
    assert list(f1["all"]) == list(range(1, 17))
    assert all(f1["all"][k] == value for said in (None, "2,5") for k, value in f1[said].items())
    capsys.readouterr()
    for said, message in (("0", "x>=1"), ("17", "from 1 to 16"), ("few", "'--sparse-k': 'few'")):
        assert run(tmp_path / "bad", pictures, "sparse", *small, "--sparse-k", said) == 2
        assert message in capsys.readouterr().err
