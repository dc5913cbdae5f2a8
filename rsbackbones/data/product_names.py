"""Names of Sentinel products, which state the time of acquisition."""

import re

import numpy as np

_TIME = re.compile(r"(?<!\d)(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})(?!\d)")


def parse_acquisition_time(product: str) -> np.datetime64:
    """Return when a product was acquired: the first time in its name, to the second.

    ``20200604T054639_20200604T054831_T43RCP`` and
    ``S1A_IW_GRDH_1SDV_20200607T010800_20200607T010825_032904_03CFBA_D457`` begin with it.

    Raises:
        ValueError: the name holds no time.
    """
    if (found := _TIME.search(product)) is None:
        raise ValueError(f"the product name {product!r} holds no time such as 20200604T054639")
    year, month, day, hour, minute, second = found.groups()
    return np.datetime64(f"{year}-{month}-{day}T{hour}:{minute}:{second}", "s")
