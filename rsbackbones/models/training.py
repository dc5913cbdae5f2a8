"""What training changes in a backbone or reads from it: drop path, and the depth of every parameter."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rsbackbones.models.backbone import Backbone


def set_drop_path(model: "Backbone", rate: float) -> None:
    """See :meth:`Backbone.set_drop_path`."""
    if not 0 <= rate < 1:
        raise ValueError(f"the drop path rate must be in [0, 1), got {rate}")
    found = {}
    for stream in model.stream_inputs:
        stages = [model.get_submodule(stage.module) for stage in model.stages(stream)]
        modules = [m for stage in stages for m in stage.modules()]
        found[stream] = [m for m in modules if isinstance(getattr(m, "drop_path", None), float)]
    if rate and not any(found.values()):
        raise ValueError(f"{model.architecture} has no residual blocks with drop path; set its rate to 0")
    for blocks in found.values():
        for i, block in enumerate(blocks):
            block.drop_path = rate * i / max(1, len(blocks) - 1)  # type: ignore[assignment]


def parameter_depths(model: "Backbone") -> dict[str, int]:
    """See :meth:`Backbone.parameter_depths`."""
    family = type(model).__name__
    names = {id(p): name for name, p in model.named_parameters()}
    depths = {name: 0 for name in names.values() if "." not in name}
    for depth, group in enumerate(model.layer_groups()):
        for module in group:
            for parameter in module.parameters():
                name = names.get(id(parameter))
                if name is None:
                    raise ValueError(
                        f"{family}.layer_groups lists a {type(module).__name__} that is not part of the "
                        "model: list modules that the model has registered, such as self.stem"
                    )
                if depths.setdefault(name, depth) != depth:
                    raise ValueError(f"{family}.layer_groups lists {name} twice")
    if lacking := [name for name in names.values() if name not in depths]:
        raise ValueError(f"{family}.layer_groups omits {', '.join(lacking[:8])}")
    return depths
