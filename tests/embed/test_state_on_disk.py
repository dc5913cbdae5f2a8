"""One result is of one input; what cannot be written is known first; nothing of the user's is overwritten."""

import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import rsbackbones as rsb
from rsbackbones.embed import embed_patches, embed_scene, scene
from tests.data.test_input_files import vrt
from tests.data.test_rasters import S2, write_tif
from tests.embed.small_disk import fill, mounted
from tests.embed.test_embed import OPTIONS, QUIET, count_windows, interrupt, optical, place, read_map


@pytest.fixture
def tiny():
    return rsb.create_model("croma_vit_tiny", modalities=("s2",))


def at_batch(model, number, action):
    """Call `action` when a batch of that number is encoded; return the hook."""
    count = 0

    def act(*_):
        nonlocal count
        count += 1
        if count == number:
            action()

    return model.encoders["s2"].register_forward_pre_hook(act)


def test_an_input_that_is_rewritten_meanwhile_makes_no_map(tiny, tmp_path):
    source, output = tmp_path / "scene.tif", tmp_path / "map.tif"
    write_tif(source, optical(128, 128), S2)
    expected = read_map(embed_scene(tiny, [source], tmp_path / "unbroken.tif", **OPTIONS))
    old, facts = source.read_bytes(), source.stat()
    hook = at_batch(tiny, 6, lambda: write_tif(source, optical(128, 128, seed=1), S2))
    with pytest.raises(ValueError, match=r"the input changed while it was read: .*scene\.tif"):
        embed_scene(tiny, [source], output, **OPTIONS)
    hook.remove()
    assert not output.exists()
    with pytest.raises(ValueError, match=r"other inputs or settings \(input\)"):
        embed_scene(tiny, [source], output, **OPTIONS)
    # What was kept is of the old file alone: it can be put back.
    source.write_bytes(old)
    os.utime(source, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert count_windows(tiny, lambda: embed_scene(tiny, [source], output, **OPTIONS)) < 25
    np.testing.assert_array_equal(read_map(output), expected)


def test_a_run_does_not_resume_on_another_source_of_its_vrt(tmp_path):
    model = rsb.create_model("croma_vit_tiny", modalities=("s2",), bands={"s2": ("B02", "B03", "B04", "B08")})
    named = ("B02", "B03", "B04", "B08")
    source = write_tif(tmp_path / "s.tif", optical(128, 128)[:4], named)
    raster = vrt(tmp_path / "a.vrt", source, 128)
    interrupt(model, raster, tmp_path / "map.tif", 5, **OPTIONS)
    write_tif(source, optical(128, 128, seed=1)[:4], named)
    with pytest.raises(ValueError, match=r"other inputs or settings \(input\)"):
        embed_scene(model, [raster], tmp_path / "map.tif", **OPTIONS)


def test_a_picture_of_the_user_is_not_overwritten_and_a_preview_is(tiny, tmp_path):
    source = write_tif(tmp_path / "scene.tif", optical(32, 32), S2)
    picture = tmp_path / "mine.png"
    Image.new("RGB", (3, 3)).save(picture)
    before = picture.read_bytes()
    encoded = []
    hook = tiny.encoders["s2"].register_forward_pre_hook(lambda *_: encoded.append(None))
    with pytest.raises(ValueError, match=r"mine\.png is where the preview goes"):
        embed_scene(tiny, [source], tmp_path / "mine.tif", **QUIET)
    assert not encoded
    hook.remove()
    assert picture.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.png", "scene.tif"]
    for seed in (0, 1):  # our own
        write_tif(source, optical(64, 64, seed=seed), S2)
        embed_scene(tiny, [source], tmp_path / "map.tif", **OPTIONS)
    assert len({(tmp_path / "map.png").read_bytes(), before}) == 2


@pytest.mark.parametrize("name", ["rows.npz", "rows.parquet", "map.tif"])
def test_a_folder_of_the_name_of_the_output_is_noticed_first(tiny, tmp_path, name):
    source = write_tif(tmp_path / "scene.tif", optical(32, 32), S2)
    (tmp_path / name).mkdir()
    embed = embed_scene if name.endswith("tif") else embed_patches
    assert count_windows(tiny, lambda: _refused(embed, tiny, source, tmp_path / name)) == 0


def _refused(embed, model, source, output):
    with pytest.raises(ValueError, match="is a folder"):
        embed(model, [source], output, **QUIET)


def test_a_missing_library_is_noticed_first(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    source = write_tif(tmp_path / "scene.tif", optical(32, 32), S2)

    def refused():
        with pytest.raises(ImportError, match="pyarrow"):
            embed_patches(tiny, [source], tmp_path / "rows.parquet", **QUIET)

    assert count_windows(tiny, refused) == 0


def test_patches_before_a_bad_one_are_kept(tiny, tmp_path):
    images = [optical(32, 32, seed=i) for i in range(6)]
    images[5][:, 0, 0] = 0
    sources = [
        write_tif(tmp_path / f"{i}.tif", image, S2, transform=place(i), nodata=0)
        for i, image in enumerate(images)
    ]
    options = {"batch_size": 2} | QUIET
    with pytest.raises(ValueError, match=r"5\.tif: 1 pixels have no data"):
        embed_patches(tiny, sources, tmp_path / "rows.npz", **options)
    run = lambda: embed_patches(tiny, sources, tmp_path / "rows.npz", skip_nodata=True, **options)  # noqa: E731
    assert count_windows(tiny, run) == 1
    with np.load(tmp_path / "rows.npz") as rows:
        assert len(rows["s2"]) == 5
    assert not list(tmp_path.glob("*.partial"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    with mounted(tmp_path / "disk", "1m") as folder:
        yield folder


@pytest.mark.parametrize("when", ["before", "between", "at the end"])
def test_a_full_disk_is_one_error_and_the_run_goes_on_when_there_is_room(tiny, tmp_path, small_disk, when):
    source, output = write_tif(tmp_path / "scene.tif", optical(128, 128), S2), small_disk / "map.tif"
    ballast = small_disk / "ballast"

    def fill_disk():
        fill(ballast)
        if when == "between":  # the rows have their place; the journal has none
            return
        os.truncate(ballast, ballast.stat().st_size - (1 << 14))

    size = 16 * 16 * 96 * 4
    hook = None
    if when == "before":
        ballast.write_bytes(bytes((1 << 20) - size - (1 << 15)))
    else:
        hook = at_batch(tiny, 6 if when == "between" else 10, fill_disk)
    with pytest.raises(ValueError, match=rf"needs {size} bytes" if when == "before" else "make room and run"):
        embed_scene(tiny, [source], output, **OPTIONS)
    if hook:
        hook.remove()
    assert not output.exists()
    assert not output.with_suffix(".png").exists()
    assert output.with_name("map.tif.partial").exists() == (when != "before")
    ballast.unlink()
    encoded = count_windows(tiny, lambda: embed_scene(tiny, [source], output, **OPTIONS))
    assert encoded == 25 if when == "before" else encoded < 25
    expected = read_map(embed_scene(tiny, [source], tmp_path / "unbroken.tif", **OPTIONS))
    np.testing.assert_array_equal(read_map(output), expected)
    assert sorted(p.name for p in small_disk.iterdir()) == ["map.png", "map.tif"]


def test_a_disk_that_has_room_for_the_map_alone_names_the_preview(tiny, tmp_path, monkeypatch, small_disk):
    source, output = write_tif(tmp_path / "scene.tif", optical(128, 128), S2), small_disk / "map.tif"
    ballast, write_map = small_disk / "ballast", scene.write_map

    def fill_after(*arguments, **options):
        write_map(*arguments, **options)
        fill(ballast)

    monkeypatch.setattr(scene, "write_map", fill_after)
    with pytest.raises(ValueError, match=r"cannot write .*map\.png.*No space left.*make room and run"):
        embed_scene(tiny, [source], output, **OPTIONS)
    assert not output.with_suffix(".png").exists()
    monkeypatch.undo()
    ballast.unlink()
    assert count_windows(tiny, lambda: embed_scene(tiny, [source], output, **OPTIONS)) == 0
    assert sorted(p.name for p in small_disk.iterdir()) == ["map.png", "map.tif"]


def test_weights_on_a_full_disk_are_an_os_error_and_leave_nothing(tiny, small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes((1 << 20) - (1 << 15)))
    torch.manual_seed(0)
    with pytest.raises(OSError, match=r"cannot write .*w\.safetensors|No space left"):
        rsb.save_model(tiny, small_disk / "w.safetensors")
    assert [p.name for p in small_disk.iterdir()] == ["ballast"]
