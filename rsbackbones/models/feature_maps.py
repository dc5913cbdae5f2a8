"""A backbone that returns a list of feature maps, as decoders for timm encoders expect."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rsbackbones.models.backbone import Backbone, Images
from rsbackbones.models.series_arguments import Dates, Masks

if TYPE_CHECKING:
    from rsbackbones.zoo.adapt import Adaptation
    from rsbackbones.zoo.manifest import WeightsEntry


class FeatureInfo:
    """Describes the maps of a :class:`FeatureMaps`: the part of timm's ``FeatureInfo`` that decoders read."""

    def __init__(self, entries: Sequence[Mapping[str, Any]]) -> None:
        self._entries = [dict(entry) for entry in entries]

    def channels(self) -> list[int]:
        """Return the number of channels of each map."""
        return [entry["num_chs"] for entry in self._entries]

    def reduction(self) -> list[int]:
        """Return the stride of each map, in input pixels."""
        return [entry["reduction"] for entry in self._entries]

    def module_name(self) -> list[str]:
        """Return the name of the module that outputs each map."""
        return [entry["module"] for entry in self._entries]

    def get_dicts(self) -> list[dict[str, Any]]:
        """Return one dictionary per map."""
        return [dict(entry) for entry in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self._entries[index])


class FeatureMaps(nn.Module):
    """A backbone that returns a list of maps [B, D, h, w], as timm's ``features_only=True`` does.

    ``indices`` and ``stream`` are those of :meth:`Backbone.forward_intermediates`. The final norm is not
    applied to the maps.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        indices: int | Sequence[int] | None = None,
        stream: str | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.stream = backbone.choose_stream(stream)
        self.indices = backbone.stage_indices(indices, self.stream)
        stages = backbone.stages(self.stream)
        self.feature_info = FeatureInfo(
            [
                {
                    "num_chs": stages[i].channels,
                    "reduction": stages[i].stride,
                    "module": stages[i].module,
                    "index": i,
                }
                for i in self.indices
            ]
        )

    @property
    def adaptation(self) -> "Adaptation | None":
        """The changes made while loading."""
        return self.backbone.adaptation

    @property
    def weights_entry(self) -> "WeightsEntry | None":
        """The manifest entry of the loaded weights."""
        return self.backbone.weights_entry

    def forward(
        self,
        x: Images,
        *,
        dates: Dates | None = None,
        valid: Masks | None = None,
    ) -> list[Tensor]:
        """Return the maps, one per index. For the arguments see :meth:`Backbone.forward_features`."""
        return self.backbone.forward_intermediates(
            x, self.indices, stream=self.stream, dates=dates, valid=valid
        )
