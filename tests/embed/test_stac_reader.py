"""Pixels of STAC items: nodata that only items state, and reads of several items that fail."""

import numpy as np
import pytest
from rasterio import Affine

import rsbackbones as rsb
from rsbackbones.data.raster_path import UnreadableRaster
from rsbackbones.embed.sources.source import UnreadableItems
from rsbackbones.embed.sources.stac_item import with_days
from rsbackbones.embed.sources.stac_reader import ItemReader
from rsbackbones.files import retry
from tests.data.test_rasters import write_tif
from tests.embed.test_embed import optical
from tests.embed.test_stac_dates import BANDS, SIDE, item, model_of

pytest.importorskip("pystac")
pytest.importorskip("odc.stac")
GeoBox = pytest.importorskip("odc.geo.geobox").GeoBox
ON_ITS_GRID = GeoBox((SIDE, SIDE), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32633")
# Half a pixel off, and in another CRS: pixels are mixed.
SHIFTED = GeoBox((SIDE, SIDE), Affine(10, 0, 500_005, 0, -10, 4_999_995), "EPSG:32633")
WARPED = ON_ITS_GRID.to_crs("EPSG:3035", resolution=10)


@pytest.fixture(scope="module")
def image():
    x = optical(SIDE, SIDE, bands=1)[0]
    x[np.random.default_rng(0).random(x.shape) < 0.1] = 0
    x[:20, :20] = 0
    return x


def stating(given, nodata, *, old=False):
    """An item whose file states no nodata; the item does."""
    asset = given.assets["B02"]
    asset.extra_fields |= {"raster:bands": [{"nodata": nodata}]} if old else {"bands": [{"nodata": nodata}]}
    return given


def read(items, box, resample, reader=None):
    given = with_days([one.to_dict(transform_hrefs=False) for one in items], 15)
    return (reader or ItemReader(None, None, False)).read(given, ["B02"], box, resample)["B02"]


def rewritten(one, folder, layer, nodata):
    path = folder / f"{one.id}_B02.tif"
    transform = Affine(*one.properties["proj:transform"])
    write_tif(path, layer[None], ["B02"], nodata=nodata, transform=transform)
    return one


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("box", [ON_ITS_GRID, SHIFTED, WARPED], ids=["same", "shifted", "warped"])
@pytest.mark.parametrize("resample", ["nearest", "bilinear"])
def test_nodata_of_the_item_is_as_that_of_the_file(image, tmp_path, box, resample, old):
    of_file = item(tmp_path, "of_file", 0, {"B02": image})
    of_item = rewritten(item(tmp_path, "of_item", 0, {"B02": image}), tmp_path, image, None)
    expected = read([of_file], box, resample)
    assert np.isnan(expected).any()
    np.testing.assert_array_equal(read([stating(of_item, 0, old=old)], box, resample), expected)


def test_each_item_has_its_own_nodata(image, tmp_path):
    """Tiles of one day that mark what they lack by other values: each fills what the other lacks."""
    other = np.where(image == 0, 4000, 65535).astype(np.uint16)
    first = rewritten(item(tmp_path, "first", 0, {"B02": image}), tmp_path, image, None)
    second = rewritten(item(tmp_path, "second", 0, {"B02": other}), tmp_path, other, None)
    made = read([stating(first, 0), stating(second, 65535)], ON_ITS_GRID, "nearest")
    np.testing.assert_array_equal(made, np.where(image == 0, 4000, image)[None])
    # So does a value that the user names.
    plain = rewritten(item(tmp_path, "plain", 0, {"B02": image}), tmp_path, image, None)
    made = read([plain, stating(second, 65535)], ON_ITS_GRID, "nearest", ItemReader(None, 0, False))
    np.testing.assert_array_equal(made, np.where(image == 0, 4000, image)[None])


def test_a_value_that_the_file_cannot_hold_is_no_fault(image, tmp_path):
    whole = np.maximum(image, 1)
    plain = rewritten(item(tmp_path, "plain", 0, {"B02": whole}), tmp_path, whole, None)
    expected = read([plain], SHIFTED, "bilinear")
    np.testing.assert_array_equal(read([stating(plain, -9999)], SHIFTED, "bilinear"), expected)
    np.testing.assert_array_equal(read([stating(plain, "nan")], SHIFTED, "bilinear"), expected)


@pytest.mark.parametrize("composite", ["median", "first", "none"])
def test_nodata_of_the_user_is_of_bands_and_not_of_masks(image, tmp_path, composite):
    """The class 0 of a mask means clear, and the pixels that the user names are those of the bands."""
    clouds = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 3 == 0).astype(np.float32)
    given = item(tmp_path, "one", 0, dict.fromkeys(BANDS, image) | {"CLD": clouds})
    for band in BANDS:
        write_tif(tmp_path / f"one_{band}.tif", image[None], [band],
                  transform=Affine(*given.properties["proj:transform"]))  # fmt: skip
    job = rsb.embed.plan(
        model_of("croma_vit_tiny", depth=2), given, tmp_path / "e.zarr", nodata=0, mask={"CLD": (1,)},
        composite=composite, window=32,
    )  # fmt: skip
    whole = (0, 0, SIDE, SIDE)
    with job.source.open(job.model, whole) as scene:
        valid = scene.read(whole).valid
    np.testing.assert_array_equal(valid, (clouds == 0) & (image != 0))


class Busy:
    """Signs nothing for some calls."""

    def __init__(self, first, last):
        self.calls, self.refused = 0, range(first, last)

    def __call__(self, given):
        self.calls += 1
        if self.calls in self.refused:
            raise OSError("busy: https://host/x?signature=secret")
        return given


def test_a_read_that_fails_as_a_whole_is_tried_again(image, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "PAUSE_S", 0)
    items = [item(tmp_path, f"of_{t}", t, {"B02": image}) for t in range(2)]
    expected = read(items, ON_ITS_GRID, None)
    for skip in (False, True):
        # All tries of the whole fail, and then each item can be read, and the whole.
        sign = Busy(1, retry.TRIES + 1)
        np.testing.assert_array_equal(read(items, ON_ITS_GRID, None, ItemReader(sign, None, skip)), expected)
        # ... or the whole cannot be read again.
        sign = Busy(retry.TRIES + 3, 100)
        sign.refused = [*range(1, retry.TRIES + 1), *sign.refused]
        with pytest.raises(
            UnreadableRaster, match=r"B02 of of_0, of_1: busy.*each item can be read alone"
        ) as e:
            read(items, ON_ITS_GRID, None, ItemReader(sign, None, skip))
        assert "secret" not in str(e.value)


def test_all_items_at_fault_are_found_together(image, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "PAUSE_S", 0)
    items = [item(tmp_path, f"of_{t}", t, {"B02": image}) for t in range(3)]
    for t in (0, 2):
        (tmp_path / f"of_{t}_B02.tif").write_bytes(b"no raster")
    with pytest.raises(UnreadableItems) as error:
        read(items, ON_ITS_GRID, None, ItemReader(None, None, True))
    assert set(error.value.reasons) == {"of_0", "of_2"}
    with pytest.raises(UnreadableRaster, match="cannot read the asset B02 of of_0"):
        read(items, ON_ITS_GRID, None)
