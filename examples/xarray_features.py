"""xarray in and out: an image with a `band` coordinate to features with `x` and `y` coordinates.

Bands are found by the names in the coordinate, so their order does not matter and others may be among them.
Needs xarray.
"""

import numpy as np
import torch
import xarray as xr

import rsbackbones as rsb
from rsbackbones.data.simulator import simulate_scene


def features(model: rsb.Backbone, image: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """Return the features of an image as (feature, y, x), one pixel per patch.

    Args:
        model: of one sensor.
        image: raw values, with the dimensions `band`, `y` and `x`; of a data set the variables are the bands.
    """
    if isinstance(image, xr.Dataset):
        image = image.to_dataarray("band")
    image = image.transpose("band", "y", "x")
    (modality,) = model.modalities
    sensor = rsb.get_sensor(model.config.sensors[modality])
    known = {name.lower() for band in sensor.bands for name in (band.name, *band.aliases)}
    image = image.sel(band=[name for name in image["band"].values if str(name).lower() in known])
    preprocess = rsb.create_preprocess(model, bands={modality: [str(name) for name in image["band"].values]})
    with torch.inference_mode():
        maps = model.forward_features({modality: preprocess(image.values[None])}).maps()[0].numpy()
    # A patch lies where the middle of its pixels lies.
    middles = image.isel(band=0).coarsen(y=model.patch_size, x=model.patch_size).mean()
    coordinates = {axis: middles[axis] for axis in ("y", "x") if axis in image.coords}
    return xr.DataArray(maps, dims=("feature", "y", "x"), coords=coordinates, name="features")


if __name__ == "__main__":
    scene = simulate_scene(120, 160)
    a, _, left, _, e, top = scene.transform
    image = xr.DataArray(
        scene.s2[::-1],  # in another order than the model's
        dims=("band", "y", "x"),
        coords={
            "band": list(scene.s2_bands[::-1]),
            "y": top + e * (np.arange(120) + 0.5),
            "x": left + a * (np.arange(160) + 0.5),
        },
    )
    print(features(rsb.create_model("croma_vit_tiny", pretrained=True, modalities=("s2",)), image))
