"""A tokenizer's kernel for other bands, slowly and plainly."""

import torch


def adapt_plain(kernel, fresh, mine, theirs, *, same_sensor, missing, scale):
    """The kernel [D, C', p, p] for the bands ``mine``, from ``kernel`` [D, C, p, p] for ``theirs``.

    A band is (name, wavelength, width); ``fresh`` is [D, C', p, p]. None where ``nearest`` is too far.
    """
    sources = []  # for each of my bands: the index of a kernel, "mean", "zero" or "reinit"
    for name, wavelength, _ in mine:
        hits = []
        for j, (other, center, width) in enumerate(theirs):
            if same_sensor and name == other:
                hits.append((0.0, j))
            if not same_sensor and center - width / 2 <= wavelength <= center + width / 2:
                hits.append((abs(center - wavelength), j))
        if hits:
            sources.append(min(hits)[1])
        elif missing == "nearest":
            _, j = min((abs(center - wavelength), j) for j, (_, center, _) in enumerate(theirs))
            if max(wavelength, theirs[j][1]) > 3 * min(wavelength, theirs[j][1]):
                return None
            sources.append(j)
        else:
            sources.append(missing)
    distinct = {source for source in sources if source not in ("zero", "reinit")}
    lost = len(theirs) / len(distinct) if distinct else 1
    whole = {"count": lost, "sqrt": lost**0.5, "none": 1}[scale]
    out = torch.zeros(kernel.shape[0], len(mine), *kernel.shape[2:], dtype=kernel.dtype)
    for i, source in enumerate(sources):
        if source == "reinit":
            out[:, i] = fresh[:, i]
        elif source == "mean":
            for j in range(len(theirs)):
                out[:, i] += kernel[:, j] / len(theirs) * whole / sources.count("mean")
        elif source != "zero":
            out[:, i] = kernel[:, source] * whole / sources.count(source)
    return out
