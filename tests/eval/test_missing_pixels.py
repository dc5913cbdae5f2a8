"""Pixels that do not count, and images that cannot be read, in an evaluation."""

import json
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")

import rsbackbones as rsb
from rsbackbones.cli import main
from rsbackbones.data.labelled import open_labelled
from rsbackbones.eval.encode import encode, statistics_features
from rsbackbones.eval.readable import Readable
from tests.data.test_rasters import write_tif

BANDS = ("B02", "B03", "B04", "B08")
SMALL = {"depth": 2, "dim": 32, "num_heads": 4}
DRAW = np.random.default_rng(0)
LEFT = np.arange(32) < 16


@pytest.fixture(scope="module")
def model():
    return rsb.create_model("croma_vit_tiny", modalities=("s2",), bands={"s2": BANDS}, overrides=SMALL)


def image(index):
    return DRAW.gamma(2, 300 + 100 * index, (4, 32, 32)).clip(1, 9000).astype("i2")


@pytest.fixture
def places():
    return {
        f"{split}/{name}/{i}.tif": image(i) for split in ("train", "test") for name in "ab" for i in (0, 1)
    }


def folder(root, places, *, names=BANDS):
    for name, x in places.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_tif(root / name, x, names)
    return root


def with_clouds(x, where):
    """The image with a band of classes, 9 where clouds are; values there are bright."""
    classes = np.where(where, 9, 4).astype(x.dtype)[None].repeat(32, 0)[None]
    return np.concatenate([np.where(where, 9000, x), classes])


def table(model, root, **options):
    data = open_labelled(root, **options)
    encoded = encode(model, data)
    return dict(zip(data.ids, encoded.features, strict=True)), data


def test_masked_and_marked_pixels_have_no_effect(model, places, tmp_path):
    masked, _ = table(
        model,
        folder(
            tmp_path / "clouds", {n: with_clouds(x, LEFT) for n, x in places.items()}, names=(*BANDS, "SCL")
        ),
        mask={"SCL": (8, 9)},
    )
    nodata, _ = table(
        model,
        folder(tmp_path / "nodata", {n: np.where(LEFT, -9999, x) for n, x in places.items()}),
        nodata=-9999,
    )
    whole, _ = table(model, folder(tmp_path / "whole", places))
    for name, x in places.items():
        valid = {"s2": np.broadcast_to(~LEFT, (1, 32, 32)).copy()}
        inputs = rsb.create_preprocess(model)({"s2": x[None]}, valid=valid)
        expected = model.forward_features(inputs, valid=valid).pooled["s2"][0].detach().numpy()
        np.testing.assert_allclose(masked[name], expected, atol=1e-5)
        np.testing.assert_allclose(nodata[name], expected, atol=1e-5)
        assert not np.allclose(whole[name], expected, atol=1e-3)


def test_a_mask_that_hides_nothing_changes_nothing(model, places, tmp_path):
    root = folder(
        tmp_path, {n: with_clouds(x, LEFT & False) for n, x in places.items()}, names=(*BANDS, "SCL")
    )
    plain, data = table(model, root)
    masked, other = table(model, root, mask={"SCL": (9,)})
    for name in places:
        np.testing.assert_allclose(masked[name], plain[name], atol=1e-6)
    assert data.digest != other.digest
    assert "pixels that do not count: SCL 9" in other.notes
    assert not data.notes


def test_without_the_option_pixels_without_data_stay_an_error(model, places, tmp_path):
    root = folder(tmp_path, places)
    write_tif(root / "train/a/0.tif", np.where(LEFT, -9999, image(0)), BANDS, nodata=-9999)
    with pytest.raises(ValueError, match=r"a/0\.tif: .*NaN.*--nodata, --mask"):
        table(model, root)
    found, _ = table(model, root, nodata=-1)  # the file states its own
    assert np.isfinite(np.stack(list(found.values()))).all()
    write_tif(root / "train/a/0.tif", np.full((4, 32, 32), -9999, "i2"), BANDS)
    with pytest.raises(ValueError, match=r"a/0\.tif: no patch has data"):
        table(model, root, nodata=-9999)


def test_statistics_and_npz_take_the_value_too(model, tmp_path):
    x = np.stack([image(i % 2) for i in range(8)])
    marked = np.where(LEFT, -9999, x)
    files = {}
    for name, values in (("whole", x[..., 16:]), ("marked", marked)):
        files[name] = tmp_path / f"{name}.npz"
        np.savez(files[name], s2=values, s2_bands=BANDS, label=[0, 1] * 4, split=["train"] * 4 + ["test"] * 4)
    half = statistics_features(open_labelled(files["whole"])).features
    data = open_labelled(files["marked"], nodata=-9999)
    np.testing.assert_allclose(statistics_features(data).features, half, rtol=1e-5)
    assert np.isfinite(encode(model, data).features).all()
    with pytest.raises(ValueError, match="does not take mask"):
        open_labelled(files["marked"], mask={"SCL": (9,)})


def test_label_maps_are_ignored_where_pixels_do_not_count(places, tmp_path):
    x = np.stack([with_clouds(image(0), LEFT)] * 2)
    for i, values in enumerate(x):
        write_tif(tmp_path / f"{i}.tif", values, (*BANDS, "SCL"))
        write_tif(tmp_path / f"{i}_mask.tif", np.ones((1, 32, 32), "u1"))
    (tmp_path / "labels.csv").write_text("path,mask,split\n0.tif,0_mask.tif,train\n1.tif,1_mask.tif,test\n")
    data = open_labelled(tmp_path, classes=("no", "yes"), mask={"SCL": (9,)})
    sample = data.read(0)
    assert (sample["label"][:, LEFT] == -1).all()
    assert (sample["label"][:, ~LEFT] == 1).all()
    assert np.isfinite(sample["s2"]).all()
    assert sample["s2"].max() < 9000


# -- images that cannot be read -----------------------------------------------------------------------


def run(out, data, *more):
    common = ["--model", "croma_vit_tiny", "--data", str(data), "--output", str(out), "--no-progress"]
    return main(["eval", "knn", *common, *more])


def test_an_unreadable_image_ends_the_evaluation_unless_it_may_be_left_out(places, tmp_path, capsys):
    root = folder(tmp_path / "set", places)
    (root / "train/a/0.tif").write_bytes(b"no TIFF")  # the first, which the others are compared with
    assert run(tmp_path / "out", root) == 2
    assert "a/0.tif" in capsys.readouterr().err
    assert run(tmp_path / "out", root, "--on-unreadable", "skip") == 0
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert found["data"]["samples"] == {"train": 3, "test": 4}
    assert any("left out, not readable" in note and "a/0.tif" in note for note in found["notes"])


def test_what_is_left_out_is_what_cannot_be_read(places, tmp_path):
    root = folder(tmp_path, places)
    whole = open_labelled(root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Readable().of(whole).digest == whole.digest
    for name in ("train/b/1.tif", "test/a/1.tif"):
        (root / name).write_bytes(b"")
    damaged, readable = open_labelled(root), Readable()
    kept = readable.of(damaged)
    assert sorted(readable.left_out) == ["test/a/1.tif", "train/b/1.tif"]
    assert {name: len(images) for name, images in kept.splits.items()} == {"train": 3, "test": 3}
    write_tif(root / "train/a/0.tif", image(1), BANDS)
    with pytest.raises(ValueError, match="changed while it was read"):  # which is no reason to skip
        Readable().of(damaged)
    write_tif(root / "train/a/1.tif", image(0)[:3], BANDS[:3])
    with pytest.raises(ValueError, match="has no s2 B08"):
        Readable().of(open_labelled(root))
    for name in places:
        if name.startswith("test"):
            (root / name).write_bytes(b"")
    write_tif(root / "train/a/1.tif", image(0), BANDS)
    with pytest.raises(ValueError, match="no image of the split test can be read"):
        Readable().of(open_labelled(root))
