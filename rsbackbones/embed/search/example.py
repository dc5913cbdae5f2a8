"""What is looked for: a vector, and where it comes from."""

from typing import NamedTuple

from rsbackbones.data.rasters import Array


class Example(NamedTuple):
    """A vector [D], and where it was found in words; empty where there is nothing to say."""

    vector: Array
    where: str
