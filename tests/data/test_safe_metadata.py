"""What the metadata of a Sentinel-2 product state of its values."""

import warnings

import numpy as np
import pytest
import rasterio

import rsbackbones as rsb
from rsbackbones.data.geotiffs import GeoTiffSource
from rsbackbones.data.labelled.image_files import find_files
from rsbackbones.data.rasters import RasterStack
from rsbackbones.data.safe_metadata import product_unit
from rsbackbones.embed import embed_patches
from rsbackbones.value_check import ProductWarning
from tests.data.test_rasters import write_tif

BANDS = ("B02", "B03", "B04", "B08")
DN = np.random.default_rng(0).gamma(2, 700, (4, 64, 64)).clip(1, 12000).astype("u2")
OFFSETS = "".join(f'<{{0}} band_id="{i}">{{1}}</{{0}}>' for i in range(13))


def metadata(level="2A", baseline="05.09", offset=-1000, scale=10000):
    """In the form of ESA's: a namespace at the root only."""
    word = "BOA" if level == "2A" else "RADIO"
    offsets = "" if offset is None else OFFSETS.format(f"{word}_ADD_OFFSET", offset)
    scales = "BOA_QUANTIFICATION_VALUE" if level == "2A" else "QUANTIFICATION_VALUE"
    return (
        f'<?xml version="1.0"?><n1:Level-{level}_User_Product xmlns:n1="https://psd/MSI{level}.xsd">'
        f"<n1:General_Info><PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>"
        f'<{scales} unit="none">{scale}</{scales}><List>{offsets}</List></n1:General_Info>'
        f"</n1:Level-{level}_User_Product>"
    )


def product(folder, text, values=DN, level="2A"):
    """A product with a file for each band, deep in its folder."""
    root = folder / f"S2B_MSIL{level}_20230510T102609_N0509.SAFE"
    data = root / "GRANULE" / f"L{level}_T32UME" / "IMG_DATA" / "R10m"
    data.mkdir(parents=True, exist_ok=True)
    if text is not None:
        (root / f"MTD_MSIL{level}.xml").write_text(text)
    return [write_tif(data / f"T32UME_{b}_10m.tif", x[None]) for b, x in zip(BANDS, values, strict=True)]


@pytest.mark.parametrize(
    ("stated", "unit"),
    [
        ({}, "dn_baseline_0400"),
        ({"level": "1C"}, "dn_baseline_0400"),
        ({"offset": None}, "dn_baseline_0400"),  # which the baseline states
        ({"offset": None, "baseline": "02.14"}, "dn"),
        ({"offset": 0}, "dn"),
    ],
    ids=str,
)
def test_the_unit_is_known(tmp_path, stated, unit):
    files = product(tmp_path, metadata(**stated), level=stated.get("level", "2A"))
    with RasterStack(files, ("s2",)) as stack:
        assert stack.stated_units == {"s2": unit}
    with RasterStack(files, ("s2",), units={"s2": "dn"}) as stack:  # of the user, who knows better
        assert stack.stated_units == {}
    xml = next(tmp_path.glob("*.SAFE/MTD*"))
    assert product_unit(f"SENTINEL2_L2A:{xml}:10m:EPSG_32632") == unit


def test_a_product_in_a_folder_of_another_name_is_known_too(tmp_path):
    (first, *_) = product(tmp_path, metadata())
    root = next(tmp_path.glob("*.SAFE"))
    renamed = root.rename(tmp_path / "july")
    assert product_unit(renamed / first.relative_to(root)) == "dn_baseline_0400"
    assert product_unit(write_tif(tmp_path / "alone.tif", DN[:1])) is None


def test_features_of_a_product_are_those_of_its_reflectances(tmp_path):
    model = rsb.create_model(
        "croma_vit_tiny", modalities=("s2",), bands={"s2": BANDS}, overrides={"depth": 2, "dim": 32}
    )
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for files in (
            product(tmp_path, metadata(), DN + 1000),
            [write_tif(tmp_path / "plain.tif", DN, BANDS)],
        ):
            embed_patches(model, files, tmp_path / "rows.npz", progress=False)
            with np.load(tmp_path / "rows.npz") as found:
                rows.append(found["s2"][0])
    np.testing.assert_array_equal(*rows)


def test_training_gets_digital_numbers_without_the_offset(tmp_path):
    (tmp_path / "X.SAFE" / "s2").mkdir(parents=True)
    (tmp_path / "X.SAFE" / "MTD_MSIL2A.xml").write_text(metadata())
    write_tif(tmp_path / "X.SAFE" / "s2" / "x.tif", DN + 1000, BANDS)
    np.testing.assert_array_equal(GeoTiffSource(tmp_path / "X.SAFE").read(0, 0).images["s2"], DN)


def test_products_with_and_without_the_offset_are_not_mixed(tmp_path):
    old = product(tmp_path / "old", metadata(offset=None, baseline="02.14"))
    new = product(tmp_path / "new", metadata())
    with pytest.raises(ValueError, match=r"several units: .*_B02_10m\.tif: dn.*dn_baseline_0400"):
        RasterStack([old[0], *new[1:]], ("s2",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<a><b></a>", "mismatched tag"),
        ('<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]><a>&e;</a>', "document type"),
        (metadata(offset="many"), "many"),
        ("<a>" + "x" * 2**23 + "</a>", "larger than"),
    ],
    ids=["broken", "entity", "word", "large"],
)
def test_metadata_that_cannot_be_read_are_named(tmp_path, text, said):
    files = product(tmp_path, text)
    with pytest.warns(UserWarning, match=rf"cannot read .*MTD_MSIL2A\.xml.*{said}.*--units"):
        assert product_unit(files[0]) is None


def test_other_numbers_are_refused_and_no_metadata_are_none(tmp_path):
    files = product(tmp_path, metadata(scale=1000))
    with pytest.raises(ValueError, match=r"quantification values \[1000\.0\]"):
        product_unit(files[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert product_unit(product(tmp_path / "bare", None)[0]) is None
        assert product_unit(tmp_path / "x.tif") is None
        assert product_unit("/vsizip/x.zip/x.tif") is None


@pytest.mark.parametrize(("baseline", "warned"), [("04.00", True), ("05.11", True), ("03.01", False)])
def test_a_tag_of_the_baseline_is_named(tmp_path, baseline, warned):
    path = write_tif(tmp_path / "x.tif", DN, BANDS)
    with rasterio.open(path, "r+") as raster:
        raster.update_tags(PROCESSING_BASELINE=baseline)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        RasterStack([path], ("s2",)).close()
        first = len(caught)
        RasterStack([path], ("s2",), units={"s2": "dn"}).close()
    assert [one.category for one in caught if one.category is ProductWarning] == [ProductWarning] * warned
    assert len(caught) == first


def test_a_labelled_set_of_two_baselines_has_one_unit(tmp_path):
    stated = {"old": metadata(offset=None, baseline="02.14"), "new": metadata(), "plain": None}
    paths = {}
    for name, text in stated.items():
        (folder := tmp_path / name / "img").mkdir(parents=True)
        if text is not None:
            (tmp_path / name / "MTD_MSIL2A.xml").write_text(text)
        paths[name] = [write_tif(folder / "x.tif", DN + 1000 * (name == "new"), BANDS)]
    for first, want in (("old", DN), ("new", DN + 1000)):
        files = find_files(paths[first], [None], None)
        for name in ("old", "new"):
            np.testing.assert_array_equal(files.read(paths[name])["s2"], want)
    files = find_files(paths["old"], [None], None, units={"s2": "dn"})  # of the user, for all
    np.testing.assert_array_equal(files.read(paths["new"])["s2"], DN + 1000)
    with pytest.raises(ValueError, match=r"state the unit none, those of the set's first sample dn"):
        find_files(paths["old"], [None], None).read(paths["plain"])
