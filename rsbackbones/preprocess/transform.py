"""The transform from raw values to a model's input."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from rsbackbones.arrays import is_dataset, to_tensor
from rsbackbones.input_spec import InputSpec
from rsbackbones.models.series_arguments import Masks, masks_by_modality
from rsbackbones.preprocess.checks import ValueCheck, check_scale_is_applied
from rsbackbones.preprocess.conversion import to_contract_unit
from rsbackbones.preprocess.normalization import normalize
from rsbackbones.preprocess.pixels import fill_missing, resize
from rsbackbones.sensors import Sensor
from rsbackbones.value_check import CIRRUS, WITH_CIRRUS, missing_pixels

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Raw = Tensor | npt.NDArray[np.generic]


class Preprocess:
    """Converts raw sensor values to the model's input. Made by :func:`create_preprocess`.

    Inputs are never modified in place.
    """

    def __init__(
        self,
        specs: Mapping[str, InputSpec],
        given: Mapping[str, tuple[str, ...]],
        units: Mapping[str, str],
        sensors: Mapping[str, Sensor],
        *,
        batch_statistics: bool,
        check: bool,
        size: tuple[int, int] | None = None,
        nodata: float | None = None,
    ) -> None:
        self.specs = dict(specs)
        self.given = dict(given)
        self.units = dict(units)
        self.sensors = dict(sensors)
        self.batch_statistics = batch_statistics
        self.check = check
        self.size = size
        self.nodata = nodata

    @overload
    def __call__(self, x: "Raw", valid: Masks | None = None) -> Tensor: ...
    @overload
    def __call__(self, x: "Mapping[str, Raw]", valid: Masks | None = None) -> dict[str, Tensor]: ...

    def __call__(
        self, x: "Raw | Mapping[str, Raw]", valid: Masks | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Normalize raw values.

        Args:
            x: arrays or tensors by modality, [..., C, H, W], integers or floats, with channels in the order
                of ``bands``. A bare array is accepted if there is one modality. The dimensions and bands of
                an xarray DataArray or Dataset are taken by their names
                (:func:`rsbackbones.arrays.to_tensor`).
            valid: by modality booleans, False for what does not count: pixels [..., H, W], or missing images
                [B, T] of series [B, T, C, H, W]. Their values are ignored, and are NaN in the result: the
                model needs the same mask, and refuses them without it. :meth:`valid_pixels` finds the pixels
                that arrays themselves lack. Tensors, arrays or lists; a bare one if there is one modality.
                Masks are of the size of ``x``, also where the result has another (``size``).

        Returns:
            float32 tensors of the same shape, with the model's channels; a mapping if ``x`` is one. Pixels
            that hold ``nodata`` in any band get the mean of their band over the other pixels of the image.
            For a fine-tuned classifier images are resized to the size that it was scored at (``size``).

        Raises:
            ValueError: a modality is unknown, the number of channels is wrong, values are NaN, infinite or
                masked, or they are impossible in the stated unit.
        """
        images, single = self._by_modality(x)
        masks = masks_by_modality(valid, tuple(images))
        if unknown := [m for m in masks if m not in images]:
            raise ValueError(f"valid has {', '.join(unknown)}; the images are {', '.join(images)}")
        made = {m: self._apply(m, values, masks.get(m)) for m, values in images.items()}
        return made[single] if single else made

    def valid_pixels(self, x: "Raw | Mapping[str, Raw]") -> dict[str, Tensor]:
        """Return which pixels of raw values have data in all bands that the model takes.

        A pixel has none where a band is NaN or infinite, masked (a numpy masked array), or holds ``nodata``
        or the value that an xarray object states for it (``_FillValue``); and where all bands hold zero, if
        the unit allows no such measurement (:func:`rsbackbones.value_check.missing_pixels`)::

            valid = preprocess.valid_pixels(x)
            features = model.forward_features(preprocess(x, valid=valid), valid=valid)

        Args:
            x: as for calling the preprocessing.

        Returns:
            By modality, booleans [..., H, W] of the size of ``x``. Combine them with masks of your own by
            ``&``. Where the preprocessing resizes images (``size``), bring them to that size for the model,
            by nearest neighbor.
        """
        found = {}
        for m, values in self._by_modality(x)[0].items():
            tensor, held = self._tensor(m, values)
            given = self.given[m]
            read = tensor[..., [given.index(band) for band in self._source_bands(m)], :, :].float()
            there = read.isfinite().all(-3) & ~missing_pixels(read, self.units[m], self.nodata)
            found[m] = there if held is None else there & held.to(there.device)
        return found

    def _by_modality(self, x: "Raw | Mapping[str, Raw]") -> tuple[Mapping[str, Any], str | None]:
        """Return raw values by modality, and the modality of a bare array."""
        if not isinstance(x, Mapping) or is_dataset(x):
            if len(self.specs) > 1:
                raise ValueError(
                    f"pass a mapping by modality, {{name: values}}, with the names {', '.join(self.specs)}"
                )
            (modality,) = self.specs
            return {modality: x}, modality
        if unknown := [m for m in x if m not in self.specs]:
            raise ValueError(f"unknown modality {unknown}; known here: {', '.join(self.specs)}")
        return x, None

    def _tensor(self, modality: str, raw: "Raw") -> tuple[Tensor, Tensor | None]:
        """Return raw values [..., C, H, W] and which pixels they have, [..., H, W], ``None`` for all."""

        def find_band(name: str) -> str | None:
            try:
                return self.sensors[modality].band(name).name
            except ValueError:
                return None

        x, held = to_tensor(raw, self.given[modality], find_band, modality)
        check_scale_is_applied(raw, x, self.units[modality], modality)
        return x, held

    def _apply(self, modality: str, raw: "Raw", mask: Tensor | None) -> Tensor:
        x, held = self._tensor(modality, raw)
        if held is not None:
            held = held.to(x.device)
        if mask is None:
            return resize(self._apply_images(modality, x, held, None), self.size)
        mask, pixels = mask.to(x.device), (*x.shape[:-3], *x.shape[-2:])
        if x.ndim == 5 and mask.shape == x.shape[:2]:
            mask = mask[..., None, None].expand(pixels)
        if mask.shape != pixels:
            raise ValueError(
                f"{modality}: valid must be booleans {list(pixels)}, True for pixels that count, or [B, T] "
                f"for a series [B, T, C, H, W], got {list(mask.shape)} for {list(x.shape)}"
            )
        sides = self.size or (x.shape[-2], x.shape[-1])
        shape = (*x.shape[:-3], len(self.specs[modality].bands), *sides)
        made = torch.full(shape, float("nan"), device=x.device)
        there = mask.flatten(-2).any(-1)  # images with a pixel that counts
        if there.any():
            keep = mask[there]
            images = self._apply_images(modality, x[there], None if held is None else held[there], keep)
            kept = nn.functional.interpolate(keep[:, None].float(), size=sides, mode="nearest-exact") > 0
            made[there] = resize(images, self.size).masked_fill(~kept, float("nan"))
        return made

    def _apply_images(self, modality: str, x: Tensor, held: Tensor | None, keep: Tensor | None) -> Tensor:
        """Normalize images [..., C, H, W].

        Args:
            modality, x: of which.
            held: [..., H, W], False for pixels that the array lacks.
            keep: [..., H, W], False for pixels that the user masks. They get the mean of their band, as those
                of ``nodata`` do, and count neither in the checks nor in batch statistics.
        """
        given, sources = self.given[modality], self._source_bands(modality)
        spec, sensor, unit = self.specs[modality], self.sensors[modality], self.units[modality]
        check = ValueCheck(modality, spec, sensor, unit, sources, self.nodata)
        if self.check:
            check.check_type(x.dtype)
        x = x.to(torch.float32)  # a copy, or left as it is from here on
        cirrus = None
        if CIRRUS in given and sensor.name in WITH_CIRRUS:
            cirrus = x[..., given.index(CIRRUS), :, :]  # it tells the offset, also where the model lacks it
        if given != sources:
            x = x[..., [given.index(band) for band in sources], :, :]
        missing = None if keep is None or keep.all() else ~keep
        if self.nodata is not None:
            marked = missing_pixels(x, None, self.nodata)
            missing = marked if missing is None else marked | missing
        if held is not None:  # of these, the pixels that hold nodata are filled
            x = x.masked_fill(~held.unsqueeze(-3), float("nan"))
        if missing is not None:
            x = fill_missing(x, missing, modality)
        counted = None if missing is None else ~missing
        if self.check:
            check(x, counted, cirrus)
        x = to_contract_unit(x, sources, unit, spec, sensor)
        return normalize(x, spec, modality, batch_statistics=self.batch_statistics, counted=counted)

    def _source_bands(self, modality: str) -> tuple[str, ...]:
        """Return the bands to take from the user's: the model's, or the sources of an index."""
        given, sensor = self.given[modality], self.sensors[modality]
        needed = self.specs[modality].bands
        return tuple(
            dict.fromkeys(
                name for band in needed for name in ((band,) if band in given else sensor.band(band).index)
            )
        )

    def __repr__(self) -> str:
        lines = []
        for modality, spec in self.specs.items():
            source = "each batch" if self.batch_statistics else spec.statistics or "the weights' entry"
            lines.append(
                f"  {modality}: {', '.join(self.given[modality])} in {self.units[modality]} -> "
                f"{', '.join(spec.bands)}, {spec.product}, {spec.normalize} of {source}"
                + (
                    ", through 8 bits"
                    if spec.eight_bit or (self.units[modality] != spec.unit and spec.stored_range)
                    else ""
                )
            )
        if self.size:
            lines.append(f"  resized to {self.size[0]} x {self.size[1]} pixels, the size of fine-tuning")
        return "Preprocess(\n" + "\n".join(lines) + "\n)"
