"""A TIFF that makes GDAL read other files is refused before a byte of them is read."""

import http.server
import threading

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from rsbackbones.data.geotiffs import GeoTiffSource
from rsbackbones.data.rasters import RasterStack, open_raster
from rsbackbones.data.source import BadSample

BANDS = ("B02", "B03", "B04", "B08")
SECRET = b"TOP-SECRET-TOKEN-0123456789 " * 1000


def write(path, side=64, driver="GTiff"):
    values = np.random.default_rng(0).integers(1, 4000, (4, side, side)).astype("uint16")
    with rasterio.open(
        path, "w", driver=driver, dtype="uint16", count=4, height=side, width=side, crs="EPSG:32632",
        transform=from_origin(5e5, 5e6, 10, 10),
    ) as file:  # fmt: skip
        file.write(values)
        file.descriptions = BANDS
    return values


def virtual(source, side, *, raw=False):
    """A virtual raster of four bands over the bands, or the bytes, of another file."""
    if raw:
        kind = 'subClass="VRTRawRasterBand"'
        held = f'<SourceFilename relativetoVRT="0">{source}</SourceFilename><PixelOffset>2</PixelOffset>'
    else:
        kind = ""
        held = f'<SimpleSource><SourceFilename relativeToVRT="0">{source}</SourceFilename></SimpleSource>'
    bands = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{i}" {kind}><Description>{name}</Description>{held}'
        "</VRTRasterBand>"
        for i, name in enumerate(BANDS, 1)
    )
    return f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}">{bands}</VRTDataset>'


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.txt"
    path.write_bytes(SECRET)
    return path


@pytest.mark.parametrize("suffix", [".tif", ".TIFF"])
def test_a_virtual_raster_named_tif(tmp_path, secret, suffix):
    text = virtual(secret, 16, raw=True)
    (tmp_path / "a.vrt").write_text(text)
    with open_raster(tmp_path / "a.vrt") as control:  # under its own name it is what the user asked for
        assert control.read(1).tobytes()[:10] == SECRET[:10]
    path = tmp_path / "s2" / f"a{suffix}"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match="as a GeoTIFF"):
        open_raster(path)
    with pytest.raises(ValueError, match="as a GeoTIFF"):
        GeoTiffSource(tmp_path)


def test_it_fetches_no_url(tmp_path):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        text = virtual(f"/vsicurl/http://127.0.0.1:{server.server_port}/x.tif", 16)
        for name in ("a.tif", "a.vrt"):
            (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match="as a GeoTIFF"):
            open_raster(tmp_path / "a.tif")
        assert not asked
        with pytest.raises(ValueError, match="cannot read"), RasterStack([tmp_path / "a.vrt"], ["s2"]) as it:
            it.read()
        assert asked  # the control
        server.shutdown()


@pytest.mark.parametrize("sidecar", ["a.tif.ovr", "a.tif.msk", "a.tif.aux.xml", "a.tif.OVR"])
def test_sidecars_that_are_virtual(tmp_path, secret, sidecar):
    path = tmp_path / "a.tif"
    write(path)
    text = virtual(secret, 32, raw=True)
    if sidecar.endswith("xml"):
        (tmp_path / "o.vrt").write_text(text)
        text = (
            '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">'
            f"{tmp_path}/o.vrt</MDI></Metadata></PAMDataset>"
        )
    (tmp_path / sidecar).write_text(text)
    with pytest.raises(ValueError, match=sidecar):
        open_raster(path)
    source = tmp_path / "s2"
    source.mkdir()
    for file in (path, tmp_path / sidecar):
        file.rename(source / file.name)
    write(source / "b.tif")
    with pytest.raises(BadSample, match=sidecar):
        GeoTiffSource(tmp_path).read(0)


def test_real_sidecars_and_cogs_are_read(tmp_path):
    for name, driver in (("a [1].tif", "GTiff"), ("cog.tif", "COG")):
        values = write(tmp_path / name, 1024, driver)
        if driver == "GTiff":
            with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(tmp_path / name, "r+") as file:
                file.build_overviews([2])
            assert (tmp_path / f"{name}.ovr").exists()
        (tmp_path / f"{name}.aux.xml").write_text("<PAMDataset><Metadata/></PAMDataset>")
        with RasterStack([tmp_path / name], ["s2"]) as stack:
            assert np.array_equal(stack.read()[0]["s2"], values)
