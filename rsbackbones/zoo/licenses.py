"""The licenses of weights: which are permissive, and which carry a condition that a user should know.

A license is an SPDX identifier, or the name that the publisher gives where there is none.
"""

import warnings

from rsbackbones.zoo.manifest import WeightsEntry

PERMISSIVE = ("Apache-2.0", "BSD-3-Clause", "CC-BY-4.0", "CC0-1.0", "MIT")
NONE_STATED = "none stated"
_NOTICES = {
    "OpenRAIL": "its terms restrict what the weights may be used for; read them first",
    "ODC-BY": "a license for databases that asks for attribution",
    NONE_STATED: "nobody states a license, so no right to use the weights is granted; ask the authors",
}
# The entries whose notice was shown in this process.
_shown: set[str] = set()


class LicenseNotice(UserWarning):
    """The license of loaded weights has a condition that a user should know."""


def notice(license: str) -> str | None:
    """Return what a user should know about a license; ``None`` for the common ones."""
    return _NOTICES.get(license)


def show_notice(entry: WeightsEntry) -> None:
    """Warn about the license of ``entry`` when it is first loaded in this process, if there is a notice."""
    text = notice(entry.license)
    if text is None or entry.id in _shown:
        return
    _shown.add(entry.id)
    warnings.warn(f"{entry.id}: license {entry.license}: {text}", LicenseNotice, stacklevel=3)


def matches(license: str, wanted: str) -> bool:
    """Return whether a license is the wanted one, or among the ``permissive`` ones."""
    if wanted == "permissive":
        return license in PERMISSIVE
    return license.lower() == wanted.lower()
