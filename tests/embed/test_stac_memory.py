"""The peak memory of a task of STAC items is within the stated bound, with few dates and with many."""

import json
import sys

import numpy as np
import pytest

from tests import forked
from tests.embed.test_embed import optical
from tests.embed.test_stac_dates import item

pytest.importorskip("odc.stac")
BANDS, DATES = ("B02",), (4, 40)

_CODE = """
import json, rsbackbones as rsb, pystac
from rsbackbones.embed.run import prepare
from rsbackbones.embed.store import create_store
from rsbackbones.embed.task import compute_shard
from rsbackbones.zoo.factory import create_untrained
def memory(line):
    return next(int(s.split()[1]) * 1024 for s in open("/proc/self/status") if s.startswith(line))
folder = {folder!r}
items = list(pystac.ItemCollection.from_file(folder + "/items.json"))
model = create_untrained(
    "croma_vit_tiny", modalities=("s2",), bands={{"s2": {bands}}}, overrides={{"depth": 2}}
)
options = dict(
    window=64, overlap=0, quantize="none", cache_bytes=2**24, composite={composite!r}, batch_size=4
)
warm = prepare(rsb.embed.plan(model, items[:2], folder + "/{composite}.zarr", shard=32, **options), None)
compute_shard(warm, 0)
found = {{}}
for count in {dates}:
    job = rsb.embed.plan(model, items[:count], folder + "/{composite}%d.zarr" % count, shard=64, **options)
    job = job.calibrated(warm.calibration)
    create_store(job)
    before = memory("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
    compute_shard(job, 0)
    found[count] = memory("VmHWM") - before, sum(job.memory_bound.values()), job.memory_bound["pixels"]
open(folder + "/{composite}.json", "w").write(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty dates, whose pixels are those of four."""
    pystac = pytest.importorskip("pystac")
    folder = tmp_path_factory.mktemp("items")
    found = []
    for t in range(4):
        image = np.tile(optical(256, 256, seed=t, bands=1), (1, 2, 2))
        image[:, :8, :8] = 0  # at no date, so that all are read
        found.append(item(folder, f"v{t}", t, dict(zip(BANDS, image, strict=True))))
    for t in range(4, max(DATES)):
        again = found[t % 4].clone()
        again.id, again.datetime = f"d{t}", found[0].datetime.replace(month=7, day=1 + t % 30, year=2020 + t)
        found.append(again)
    pystac.ItemCollection(found).save_object(str(folder / "items.json"))
    return folder


@pytest.mark.parametrize("composite", ["median", "first"])
def test_memory_is_within_the_bound(folder, composite):
    code = _CODE.format(folder=str(folder), bands=BANDS, composite=composite, dates=DATES)
    result = forked.run([sys.executable, "-c", code])
    assert result.returncode == 0, result.stderr
    found = json.loads((folder / f"{composite}.json").read_text())
    few, many = (found[str(count)] for count in DATES)
    print(composite, found)  # peak, bound and its part for pixels in bytes
    assert 0 < few[0] <= few[1]
    assert many[0] <= many[1]
    if composite == "median":
        assert many[1] < 10 * few[1]  # not as many times as there are dates
    else:
        assert many[1] == few[1]  # dates are read one by one
