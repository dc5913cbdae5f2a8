"""Warnings that images earn are counted, and stand in the result, also where features come from a cache."""

import json

import numpy as np
import pytest

from rsbackbones.cli import main
from rsbackbones.data.image_warnings import ImageWarnings, warning_notes
from rsbackbones.eval.encode import encode
from tests.eval.test_encode import build, made


def bright(images, count=10):
    """A set of which some images have no dark pixel."""
    data = made(count, units={"s2": "dn", "s1": "db"})
    for index in images:
        data.read.samples[index]["s2"] = np.full((3, 16, 16), 1500, np.uint16)
    return data


def test_images_are_counted_with_and_without_a_cache(tmp_path):
    data = bright([1, 4, 8, 6])  # 6 is in no split
    for cache in (None, tmp_path, tmp_path):
        found = encode(build(), data, cache=cache, batch_size=3).warnings
        (text,) = found
        assert "dn_baseline_0400" in text
        assert found[text] == 3
    assert encode(build(), made()).warnings == {}


def test_what_a_killed_run_counted_is_kept(tmp_path):
    file = tmp_path / "cache" / "a.warnings"
    for image, text in ((3, "ä"), (3, "ä"), (5, "ä"), (5, "b\nc")):
        ImageWarnings(file).add(image, text)
    with file.open("a") as held:
        held.write('\n[7, "cut')
    assert ImageWarnings(file).counts([3, 5, 7]) == {"ä": 2, "b\nc": 1}
    assert ImageWarnings(file).counts([3]) == {"ä": 1}
    ImageWarnings(file).discard()
    assert ImageWarnings(file).earned == {}


def test_notes_are_few():
    notes = warning_notes({f"text {i}": i for i in range(1, 9)}, 20)
    assert notes[0] == "warning at 8 of 20 images: text 8"
    assert notes[-1] == "warnings at other images: 3 more texts, 6 times"
    assert len(notes) == 6


@pytest.mark.parametrize("with_warnings", [True, False])
def test_the_result_and_the_report_say_so(tmp_path, capsys, with_warnings):
    images = np.random.default_rng(0).integers(100, 4000, (20, 4, 16, 16)).astype(np.uint16)
    if with_warnings:
        images[[2, 11, 17]] = 1000 + images[[2, 11, 17]] // 4
    np.savez(
        tmp_path / "set.npz", s2=images, s2_bands=np.array(["B02", "B03", "B04", "B08"]),
        label=np.arange(20) // 2 % 2, split=np.array(["train", "test"] * 10),
    )  # fmt: skip
    command = ["eval", "knn", "--model", "croma_vit_tiny.samples", "--data", str(tmp_path / "set.npz"),
               "--output", str(tmp_path / "out"), "--no-progress"]  # fmt: skip
    for _ in range(2):  # the second takes its features from the cache
        assert main(command) == 0, capsys.readouterr().err
        notes = json.loads((tmp_path / "out" / "result.json").read_text())["notes"]
        told = [
            note
            for note in notes
            if note.startswith("warning at 3 of 20 images: s2: hardly a value is below")
        ]
        assert len(told) == with_warnings
        for page in ((tmp_path / "out" / "result.md").read_text(), capsys.readouterr().out):
            assert ("warning at 3 of 20 images" in page) == with_warnings
