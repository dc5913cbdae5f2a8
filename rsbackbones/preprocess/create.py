"""The preprocessing of a model, from the input contract of its weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import nn

from rsbackbones.input_spec import RGB8, InputSpec
from rsbackbones.models.backbone import unwrap_model
from rsbackbones.preprocess.normalization import contract_for_bands
from rsbackbones.preprocess.transform import Preprocess
from rsbackbones.preprocess.units import choose_unit
from rsbackbones.sensors import Sensor, get_sensor


def create_preprocess(
    model: nn.Module,
    *,
    bands: Mapping[str, Sequence[str]] | None = None,
    units: Mapping[str, str] | None = None,
    statistics: Literal["dataset", "batch"] | Mapping[str, Mapping[str, tuple[float, float]]] = "dataset",
    eight_bit: bool | None = None,
    check: bool = True,
    nodata: float | None = None,
) -> Preprocess:
    """Return the preprocessing that converts raw values to this model's input.

    The input contract comes from the manifest entry of the weights or from the file written by
    ``save_model``. A model without either uses the default contract of its architecture (for CROMA:
    SSL4EO-S12 statistics, Sentinel-2 L2A in DN, Sentinel-1 GRD in dB).

    For a fine-tuned classifier, images are also resized to the size that it was trained and scored at
    (``model.input_size``; set that to ``None`` to keep their own).

    Args:
        model: from ``create_model``; wrappers of torch.compile, data parallelism or timm are removed.
        bands: the channels of *your* arrays, in order, by modality. The model's bands are selected by name,
            other channels (B10, for example) are dropped. Default: the model's bands.
        units: the unit of your values by sensor, where it is not the contract's: for Sentinel-2 ``dn``,
            ``dn_baseline_0400`` (products since 2022 that still carry the offset) or ``reflectance``, for
            Landsat also ``landsat_c2``; or ``percent``; for Sentinel-1 ``db``, ``linear`` or ``db_x100``;
            ``uint8`` (or ``tci_dn``) for the 8-bit values that some weights were trained on. ``rgb8`` is that
            of 8-bit pictures, whose 255 is 2750 dn; ``rgb8:3558`` names another DN, here that of ESA's true
            color images. For weights whose unit nobody states, it must be passed; the values are then passed
            on as they are.
        statistics: ``dataset``; ``batch`` (mean and deviation of each batch, the CROMA authors' script);
            or ``{sensor: {band: (mean, std)}}`` of your own, in the contract's unit, for some bands.
        eight_bit: truncate to 8 bits; default as in the contract.
        check: raise an error for NaN, infinity and values that are impossible in the stated unit, and warn of
            those that may be in another (:class:`rsbackbones.value_check.UnitWarning`).
        nodata: the value of pixels without data. Those that hold it in any band of a sensor do not count in
            the check, and get the mean of their band over the other pixels of their image.

    Raises:
        ValueError: a modality, unit or band is unknown, a band of the model is missing from ``bands``, a band
            has no statistics, or nobody states the unit of the weights' input and ``units`` does not name it.
    """
    backbone = unwrap_model(model)
    result = preprocess_for(
        backbone.inputs, backbone.bands, sensors=backbone.config.sensors, bands=bands, units=units,
        statistics=statistics, eight_bit=eight_bit, check=check, nodata=nodata,
    )  # fmt: skip
    result.size = backbone.input_size
    return result


def preprocess_for(
    contract: Mapping[str, InputSpec],
    model_bands: Mapping[str, Sequence[str]],
    *,
    sensors: Mapping[str, str] | None = None,
    bands: Mapping[str, Sequence[str]] | None = None,
    units: Mapping[str, str] | None = None,
    statistics: Literal["dataset", "batch"] | Mapping[str, Mapping[str, tuple[float, float]]] = "dataset",
    eight_bit: bool | None = None,
    check: bool = True,
    nodata: float | None = None,
) -> Preprocess:
    """As :func:`create_preprocess`, from an input contract and the ``model_bands`` of each modality.

    ``sensors`` maps a modality to the sensor of its bands, if that is not the modality's own.
    """
    own = {} if isinstance(statistics, str) else statistics
    if isinstance(statistics, str) and statistics not in ("dataset", "batch"):
        raise ValueError(f"statistics must be 'dataset', 'batch' or your own, got {statistics!r}")
    for argument, keys in (("bands", bands), ("units", units), ("statistics", own)):
        if unknown := [m for m in keys or {} if m not in model_bands]:
            raise ValueError(f"{argument} has {', '.join(unknown)}; this model has {', '.join(model_bands)}")
    specs, given, known_sensors = {}, {}, {}
    for modality, needed in model_bands.items():
        sensor = get_sensor((sensors or {}).get(modality, modality))
        known_sensors[modality] = sensor
        spec = contract.get(modality)
        if spec is None:
            raise ValueError(f"{modality}: the weights have no input contract for this modality")
        if (units or {}).get(modality) == RGB8 and spec.normalize == "imagenet":
            spec = replace(spec, stretch=())  # the network saw pictures; only how it made them is left out
        specs[modality] = contract_for_bands(
            modality, sensor, spec, tuple(needed), own.get(modality, {}), eight_bit, statistics == "batch"
        )
        yours = (bands or {}).get(modality)
        measured = dict.fromkeys(name for b in needed for name in sensor.band(b).index or (b,))
        given[modality] = tuple(measured) if yours is None else sensor.canonical(yours)
        if lacking := [b for b in needed if not can_have(sensor, b, given[modality], spec)]:
            raise ValueError(
                f"{modality}: your bands lack {', '.join(lacking)}, which the model takes. Build the model "
                f"for your bands: create_model(..., bands={{'{modality}': {given[modality]}}})"
            )
    chosen = {m: choose_unit(m, spec, known_sensors[m], (units or {}).get(m)) for m, spec in specs.items()}
    return Preprocess(
        specs, given, chosen, known_sensors, batch_statistics=statistics == "batch", check=check,
        nodata=nodata,
    )  # fmt: skip


def can_have(sensor: Sensor, band: str, given: tuple[str, ...], spec: InputSpec) -> bool:
    """Return whether a band is given, or is an index of given ones, which of a radar are in dB."""
    index = sensor.band(band).index
    computable = bool(index) and {*index} <= {*given} and (sensor.kind == "optical" or spec.unit == "db")
    return band in given or computable
