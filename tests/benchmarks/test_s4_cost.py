"""What S4's pretraining costs: the set that is run dry, and the tables."""

from benchmarks.s4_cost import contrast_table, run_table, write_locations
from rsbackbones.data.aligned_series import AlignedSeries, Alignment
from rsbackbones.data.series_folder import SeriesFolder

MADE = dict.fromkeys(("cpu", "threads", "torch", "python", "rsbackbones", "commit", "load_before"), 1)


def test_the_locations_are_links_to_one(tmp_path):
    source = SeriesFolder(write_locations(tmp_path / "set", count=3, pixels=8))
    assert len({(tmp_path / f"set/{name}/series.zarr.zip").stat().st_ino for name in source.locations}) == 1
    pairs = AlignedSeries(source, ("s2", "s1"), Alignment())
    assert (len(pairs), pairs.frames) == (3, 17)
    assert pairs.read(2).images["s1"].shape == (17, 2, 8, 8)


def test_tables():
    told = {"FLOPs": "500.00 G per sample, forward and backward", "step": "9 s",
            "run": "1000 steps of 4; an epoch has 10"}  # fmt: skip
    text = run_table({"machine": MADE, "dry_run": told})
    assert "| all steps | 2 PFLOPs, 0.1 h at 10 TFLOP/s |" in text
    assert "9 s" not in text
    rounds = [
        {"positions": 1024, "chunk": chunk, "bytes": size, "seconds": seconds}
        for chunk, size, seconds in ((1024, 2e6, 3), (None, 9e6, 2), (1024, 1e6, 5), (None, 8e6, 2))
    ]
    text = contrast_table({"machine": MADE, "measured": rounds})
    assert "| 1,024 | 2 MB | 9 MB | 4.0 s | 2.0 s | 2.00 |" in text
