"""What the name of a model means: an architecture, and weights of the manifest or of a repository.

A name is ``croma_vit_b``, ``croma_vit_b.TAG``, or ``hf-hub:ORG/NAME[@REVISION]``.
"""

from rsbackbones.zoo import hub
from rsbackbones.zoo.manifest import WeightsEntry, find_entry
from rsbackbones.zoo.registry import Architecture, find_architecture, list_weights


def weights_named(name: str) -> WeightsEntry:
    """Return the entry of the weights that ``name`` names; of a repository its ``config.json`` is fetched.

    Raises:
        WeightsError: there are none, or a repository cannot be had, or is none of ours.
        ValueError: ``hf-hub:`` and no name of a repository.
    """
    return hub.read_entry(name) if name.startswith(hub.PREFIX) else find_entry(name)


def architecture_named(name: str) -> Architecture:
    """Return the architecture that ``name`` names; weights need not exist for it.

    Raises:
        WeightsError: a repository cannot be had, or is none of ours.
        ValueError: there is no such architecture.
    """
    if name.startswith(hub.PREFIX):
        return find_architecture(hub.read_entry(name).architecture)
    return find_architecture(name.partition(".")[0])


def random_weights_of(name: str) -> str:
    """Return the architecture to build with random weights; a tag or repository that is named must exist.

    Raises:
        WeightsError: a repository cannot be had, or is none of ours.
        ValueError: there is no such architecture, or no entry of this tag.
    """
    if not name.startswith(hub.PREFIX) and "." in name and not list_weights(name):
        raise ValueError(f"there are no weights {name}; see: rsbackbones list")
    return architecture_named(name).name
