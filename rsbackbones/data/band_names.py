"""The bands that descriptions and file names mean, in the spellings that providers use.

A spelling is understood if all of its words are known: what is left over after the words for the resolution,
the date, the tile, the quantity and the sensor has to be a band, or a common name, of that sensor.
"""

import re

from rsbackbones.sensors import Band, Sensor

# Words that tell the sensor, and the sensors whose bands they may stand beside.
_SENSOR_WORDS = {
    r"s2[abcd]?|msi|msil1c|msil2a|l1c|l2a": ("s2", "s2_ndvi", "hls_s30", "rgb"),
    r"s1[abcd]?|csar": ("s1",),
    r"landsat|sr|st": ("landsat_tm", "landsat_etm", "landsat_oli", "landsat_oli_tirs"),
    r"(landsat|l[co]?)0?[89]|oli": ("landsat_oli", "landsat_oli_tirs"),
    r"(landsat|le?)0?7|etm": ("landsat_etm",),
    r"(landsat|lt?)0?[45]|tm": ("landsat_tm",),
    r"hls": ("hls_l30", "hls_s30"),
    r"l30": ("hls_l30",),
    r"s30": ("hls_s30",),
}  # fmt: skip
# Words that say nothing about which band it is. Not among them are
# uncalibrated quantities of radars (Amplitude_VV, Beta0_VV).
_NEUTRAL_WORDS = {
    "optical": r"reflectance|toa|boa|dn",
    "radar": r"sigma|gamma|sigma0|gamma0|nought|db|linear|rtc|grd|iw|backscatter",
}
_RESOLUTION_DATE_TILE = r"\d+m|\d{8}(t\d{6})?|t\d\d[a-z]{3}"
_WAVELENGTH = re.compile(r"[\s,;(\[]*(?:central wavelength )?(\d+(?:\.\d+)?) ?nm\b[)\]]?", re.IGNORECASE)
# What GDAL and others write where there is no description.
_NO_DESCRIPTION = re.compile(r"(band|layer|channel)?[ _#]*\d*|gr[ae]y|undefined", re.IGNORECASE)
# Files of a product that hold no band: classes, masks, atmosphere, pictures.
_AUXILIARY = re.compile(
    r"SCL|AOT|WVP|TCI|PVI|CLD|CLDPRB|SNW|SNWPRB|MSK|QA|QA60|QUALITY|VISUAL|THUMBNAIL|PREVIEW", re.IGNORECASE
)


def is_description(text: str | None) -> bool:
    """Tell whether a band's description says anything: ``Band 1`` does not."""
    return bool(text) and not _NO_DESCRIPTION.fullmatch((text or "").strip())


def is_auxiliary(stem: str) -> bool:
    """Tell by its name whether a file of a product holds no band: SCL, AOT, TCI, a preview."""
    return any(_AUXILIARY.fullmatch(word) for word in re.split(r"[^0-9A-Za-z]+", stem))


def bands_of_description(sensor: Sensor, text: str) -> tuple[str, ...]:
    """Return the bands of a sensor that a description may mean: one if it is clear, none, or several."""
    try:
        return (sensor.band(text).name,)
    except ValueError:
        pass
    stated = [float(nm) for nm in _WAVELENGTH.findall(text)]
    words = _left_over(sensor, _WAVELENGTH.sub(" ", text))
    if not words:
        return ()
    found = _named(sensor, "".join(words))
    if not found:  # "B04 red": all words have to mean one band
        found = [b for b in sensor.bands if all(b in _named(sensor, word) for word in words)]
    near = [b for b in found if all(abs(nm - b.wavelength) <= b.width / 2 for nm in stated)]
    return tuple(b.name for b in near or (_begun(sensor, "".join(words)) if not found else ()))


def bands_of_file(sensor: Sensor, stem: str) -> tuple[str, ...]:
    """Return the bands of a sensor that the name of a file with one band may mean.

    A code (B02, VV) counts wherever it stands; a word (``red``) only where nothing else is left over.
    """
    words = _left_over(sensor, stem)
    if words is None:
        return ()
    coded = {b.name for w in words if re.fullmatch(r"b\d+a?|[vh][vh]", w) for b in _named(sensor, w)}
    return tuple(sorted(coded)) or bands_of_description(sensor, stem)


def product_of_file(path: str) -> str:
    """Return a path without the words for band and resolution, which files of one product share."""
    return re.sub(r"(?i)(?:^|(?<=[/\\])|[_.:\- ])(?:b\d+a?|[vh][vh]|r?\d+m)(?=$|[/\\_.:\- ])", "", path)


def _left_over(sensor: Sensor, text: str) -> list[str] | None:
    """Return the words that may name a band; ``None``: a word says that it is of another sensor."""
    text = re.sub(r"(sentinel|landsat)[-_ ]?(\d)", r"\1\2", text.lower()).replace("sentinel", "s")
    left = []
    for word in filter(None, re.split(r"[^0-9a-z]+", text)):
        of = [names for pattern, names in _SENSOR_WORDS.items() if re.fullmatch(pattern, word)]
        if of and sensor.name not in of[0]:
            return None
        neutral = rf"{_RESOLUTION_DATE_TILE}|{_NEUTRAL_WORDS[sensor.kind]}|{re.escape(sensor.name)}"
        if not of and not re.fullmatch(neutral, word):
            left.append(word)
    return left


def _spellings(band: Band) -> set[str]:
    return {re.sub(r"[^0-9a-z]+", "", name.lower()) for name in (band.name, *band.aliases)}


def _named(sensor: Sensor, word: str) -> list[Band]:
    return [band for band in sensor.bands if word in _spellings(band)]


def _begun(sensor: Sensor, word: str) -> list[Band]:
    """Return the bands whose names are this word and a number: "swir" may be swir1 or swir2."""
    if not re.fullmatch(r"[a-z]{3,}", word):
        return []
    return [b for b in sensor.bands if any(re.fullmatch(rf"{word}\d+", name) for name in _spellings(b))]
