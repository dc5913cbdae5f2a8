"""The digest of weights: what features depend on changes it, and nothing else does."""

import pytest
import torch

import rsbackbones as rsb
from rsbackbones.zoo.fingerprint import weights_digest


def model(**options):
    torch.manual_seed(0)
    return rsb.create_model("croma_vit_tiny", overrides={"dim": 32, "depth": 2, "num_heads": 4}, **options)


def test_the_digest_is_of_the_weights_and_not_of_the_head():
    one, other = model(), model(num_classes=3)
    other.load_state_dict(one.state_dict(), strict=False)
    assert weights_digest(one) == weights_digest(other)


@pytest.mark.parametrize("change", ["value", "dtype", "name"])
def test_whatever_changes_features_changes_the_digest(change):
    one, other = model(), model()
    name, parameter = next(iter(other.named_parameters()))
    if change == "value":
        parameter.data.view(-1)[0] += 1e-3
    elif change == "dtype":
        other.to(torch.bfloat16)
    else:
        other = model(modalities=("s2",))
    assert weights_digest(one) != weights_digest(other), name
