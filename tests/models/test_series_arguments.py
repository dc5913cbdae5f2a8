"""``dates=`` and ``valid=`` in the forms that users have give what tensors of days and booleans give."""

import datetime

import numpy as np
import pytest
import torch

import rsbackbones as rsb
from tests.models.examples import small

ISO = [["2020-01-01", "2020-03-05", "2020-07-30"], ["2019-12-31", "2021-01-01", "2021-01-02"]]
# Days since 1970-01-01, counted by the calendar.
DAYS = torch.tensor(
    [[(datetime.date.fromisoformat(d) - datetime.date(1970, 1, 1)).days for d in row] for row in ISO]
)
THERE = [[True, False, True], [True, True, False]]


def with_pandas(build):
    return lambda: build(pytest.importorskip("pandas"))


DATES = {
    "days, numpy": lambda: DAYS.numpy(),
    "days, small integers": lambda: DAYS.numpy().astype(np.uint16),
    "days, lists": lambda: DAYS.tolist(),
    "ISO dates": lambda: ISO,
    "datetime64[D]": lambda: np.array(ISO, "datetime64[D]"),
    "datetime64[ns]": lambda: np.array(ISO, "datetime64[ns]") + np.timedelta64(3, "h"),
    "datetime.date": lambda: [[datetime.date.fromisoformat(d) for d in row] for row in ISO],
    "datetime.datetime": lambda: [[datetime.datetime.fromisoformat(f"{d}T23:59") for d in r] for r in ISO],
    "timestamps": with_pandas(lambda pd: [[pd.Timestamp(f"{d} 10:30") for d in row] for row in ISO]),
    "a DatetimeIndex each": with_pandas(lambda pd: [pd.to_datetime(row) for row in ISO]),
    "a data frame": with_pandas(lambda pd: pd.DataFrame(ISO).apply(pd.to_datetime)),
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return rsb.create_model("seamo_vit_tiny", overrides={"temporal": True}, modalities=("s2",))


@pytest.fixture(scope="module")
def x():
    return torch.rand(2, 3, 12, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", DATES)
def test_dates_in_every_form(model, x, form):
    expected = model(x, dates=DAYS.flip(1), temporal=True)
    assert not torch.equal(expected, model(x, dates=DAYS, temporal=True))  # the order of dates matters
    given = np.asarray(DATES[form]())[:, ::-1]
    assert torch.equal(model(x, dates=given, temporal=True), expected)
    assert torch.equal(model(x, dates=DATES[form](), temporal=True), model(x, dates=DAYS, temporal=True))


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("form", [list, np.array, torch.tensor], ids=["lists", "numpy", "tensor"])
def test_masks_in_every_form(model, x, form, bare):
    masks = form(THERE) if bare else {"s2": form(THERE)}
    expected = model.forward_features(x, valid={"s2": torch.tensor(THERE)}).pooled["s2"]
    found = model.forward_features(x, valid=masks).pooled["s2"]
    assert torch.equal(found.isnan().all(-1), ~torch.tensor(THERE))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    raw = np.random.default_rng(0).integers(300, 4000, x.shape).astype("uint16")
    preprocess = rsb.create_preprocess(model)
    images = preprocess(raw if bare else {"s2": raw}, valid=masks)
    images = images if bare else images["s2"]
    assert torch.equal(images.flatten(2).isfinite().all(-1), torch.tensor(THERE))
    assert torch.equal(images.flatten(2).isnan().all(-1), ~torch.tensor(THERE))


@pytest.mark.parametrize(
    ("dates", "text"),
    [
        (np.array([["NaT"] * 3] * 2, "datetime64[D]"), "missing date"),
        ([["soon"] * 3] * 2, "soon"),
        ([[1.5] * 3] * 2, "float64"),
        ([[True] * 3] * 2, "bool"),
        ([[1], [2, 3]], "dates must be"),
        (7, "B, T"),
    ],
    ids=["NaT", "words", "fractions", "booleans", "ragged", "a number"],
)
def test_what_is_no_date_is_refused(model, x, dates, text):
    with pytest.raises(ValueError, match=text):
        model(x, dates=dates)


@pytest.mark.parametrize("mask", [[[1, 0, 1]] * 2, [["yes"] * 3] * 2, [[True], [True, False]], 3.0])
def test_what_is_no_mask_is_refused(model, x, mask):
    for run in (lambda v: model(x, valid=v), lambda v: rsb.create_preprocess(model)(x, valid=v)):
        with pytest.raises(ValueError, match=r"'s2'.*must be booleans"):
            run({"s2": mask})


def test_a_bare_mask_does_not_say_whose_it_is():
    both = small("croma_vit_b")
    x = {m: torch.rand(2, 3, len(b), 16, 16) for m, b in both.bands.items()}
    for run in (both, rsb.create_preprocess(both, check=False)):
        with pytest.raises(ValueError, match="mapping by modality"):
            run(x, valid=torch.tensor(THERE))


def test_a_sensor_that_is_none_is_named():
    both = small("croma_vit_b")
    with pytest.raises(ValueError, match="s1 is None: leave out"):
        rsb.create_preprocess(both)({"s2": np.full((1, 12, 16, 16), 1000), "s1": None})
