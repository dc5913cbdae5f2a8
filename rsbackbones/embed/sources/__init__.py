"""Where the pixels of a job come from: rasters and mosaics, arrays and Zarr, STAC items."""
