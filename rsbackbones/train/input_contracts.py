"""The input contracts of a run: those of the model's sensors, and of sensors that are targets only."""

from collections.abc import Mapping
from dataclasses import replace

from rsbackbones.input_spec import SINGLE_SENSOR_INPUTS, SSL4EO_S12, SSL4EO_S12_L1C, InputSpec
from rsbackbones.models.backbone import Backbone
from rsbackbones.preprocess import preprocess_for
from rsbackbones.sensors import get_sensor
from rsbackbones.train.engine.errors import TrainingError
from rsbackbones.train.recipe import Recipe

_PRODUCTS = {"L2A": SSL4EO_S12["s2"], "L1C": SSL4EO_S12_L1C["s2"]}


def input_contracts(model: Backbone, recipe: Recipe) -> dict[str, InputSpec]:
    """Return the contracts of a model's modalities and of the targets of a recipe's tasks.

    ``data.products`` and ``data.statistics`` replace those of the model; the trained model keeps them.

    Raises:
        TrainingError: a target has no statistics.
    """
    contracts = dict(model.inputs)
    # Before a run they are replaced by numbers: rsbackbones.train.initialize.with_statistics
    own = {} if recipe.data.statistics == "dataset" else recipe.data.statistics
    for m, product in recipe.data.products.items():
        if m in contracts and contracts[m].product != product:
            spec = _PRODUCTS[product].of(model.bands[m])
            contracts[m] = replace(spec, eight_bit=contracts[m].eight_bit)
    stated = recipe.objective.target_inputs(model)
    for target in target_sensors(model, recipe):
        if target in stated:
            contracts[target] = stated[target]
        if target in SINGLE_SENSOR_INPUTS:
            contracts.setdefault(target, SINGLE_SENSOR_INPUTS[target])
        if target not in contracts:
            contracts[target] = _stated(target, own.get(target, {}))
    if not own:
        return contracts
    bands = {**model.bands, **{t: contracts[t].bands for t in target_sensors(model, recipe)}}
    specs = preprocess_for(contracts, bands, sensors=model.config.sensors, statistics=own).specs
    return contracts | {
        m: replace(spec, statistics=_origin(spec, own[m])) if own.get(m) else spec
        for m, spec in specs.items()
    }


def _origin(spec: InputSpec, stated: Mapping[str, object]) -> str:
    """Return where the statistics of a contract are from, of which a recipe states some."""
    if {*spec.bands} <= {*stated}:
        return "stated by the recipe"
    return f"{spec.statistics}; {', '.join(stated)}: stated by the recipe".removeprefix("; ")


def target_sensors(model: Backbone, recipe: Recipe) -> list[str]:
    """Return the sensors that the tasks of a recipe need and the model does not take."""
    needed = [recipe.objective.task_images(task) or {} for task in recipe.objective.task_names or ("",)]
    return list(dict.fromkeys(m for images in needed for m in images if m not in model.modalities))


def source_units(recipe: Recipe, sensors: Mapping[str, str]) -> dict[str, str]:
    """Return ``data.units`` by the sensor of the files; ``sensors`` are those of a model's modalities."""
    named = {sensors.get(m, m): unit for m, unit in recipe.data.units.items()}
    # A model of pictures takes Sentinel-2 images, too.
    return {"s2": named["rgb"], **named} if "rgb" in named else named


def _stated(target: str, statistics: Mapping[str, tuple[float, float]]) -> InputSpec:
    """Return the contract of a sensor that has none, from the statistics of a recipe."""
    if not statistics:
        raise TrainingError(
            f"the target {target} has no statistics: state them, data.statistics.{target}="
            '{"BAND": [mean, std], ...}'
        )
    sensor = get_sensor(target)
    bands = sensor.canonical(tuple(statistics))
    means, deviations = zip(*statistics.values(), strict=True)
    return InputSpec(
        bands=bands, product="", unit="db" if sensor.kind == "radar" else "dn", normalize="standard",
        mean=means, std=deviations, eight_bit=False,
    )  # fmt: skip
