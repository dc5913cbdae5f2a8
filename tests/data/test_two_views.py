"""Views of pictures against numbers of independent code; the distribution of looks against torchvision's."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from rsbackbones.data.two_views import AREA, ASPECT, JITTER, Look, draw_look, geometry, picture
from tests.conftest import RECORDED

FILE = Path(os.environ.get("RSB_REFERENCE", RECORDED)) / "mixmae_fomu" / "fomu_views.npz"


def look_of(r, view, n):
    top, left, height, width, size, flip = (int(v) for v in r[f"view_{view}{n}"])
    brightness, contrast, saturation, hue, grey = (float(v) for v in r[f"look_{view}{n}"])
    look = Look(
        top=top, left=left, height=height, width=width, flip=bool(flip), grey=bool(grey), hue=hue,
        order=tuple(map(str, r[f"order_{view}{n}"])), brightness=brightness, contrast=contrast,
        saturation=saturation,
    )  # fmt: skip
    return look, size


@pytest.mark.skipif(not FILE.exists(), reason=f"{FILE} is not there")
@pytest.mark.parametrize("n", range(4))
def test_views_are_the_recorded_ones(n):
    r = np.load(FILE)
    rgb, sar = torch.from_numpy(r["rgb"]), torch.from_numpy(r["sar"])
    for view in ("query", "key"):
        look, size = look_of(r, view, n)
        found = picture(look, rgb, size)
        # torchvision's weights of grey, in contrast and saturation, are rounded.
        torch.testing.assert_close(found, torch.from_numpy(r[f"{view}{n}"]), atol=2e-4, rtol=0)
    look, size = look_of(r, "query", n)
    torch.testing.assert_close(picture(look, rgb, size), torch.from_numpy(r[f"oracle{n}"]), atol=2e-4, rtol=0)
    # The radar image is seen as the query is, without its colors.
    torch.testing.assert_close(geometry(look, sar, size), torch.from_numpy(r[f"radar{n}"]))


def test_looks_are_those_of_the_configuration():
    looks = [draw_look(torch.Generator().manual_seed(i), 60, 90) for i in range(3000)]
    for look in looks:
        assert 0 <= look.top <= 60 - look.height
        assert 0 <= look.left <= 90 - look.width
        assert 0.19 < look.height * look.width / 5400 <= AREA[1]
        assert ASPECT[0] * 0.95 < look.width / look.height < ASPECT[1] * 1.05
        for name in ("brightness", "contrast", "saturation"):
            assert abs(getattr(look, name) - 1) <= JITTER[name]
        assert abs(look.hue) <= JITTER["hue"]
    shares = [np.mean([bool(getattr(k, name)) for k in looks]) for name in ("order", "grey", "blur", "flip")]
    assert shares == pytest.approx([0.8, 0.2, 0.5, 0.5], abs=0.03)
    assert len({k.order for k in looks}) == 25  # 24 orders, or none
    torch.manual_seed(0)
    image = torch.empty(3, 60, 90)
    theirs = np.array([RandomResizedCrop.get_params(image, AREA, ASPECT) for _ in range(3000)])
    ours = np.array([(k.top, k.left, k.height, k.width) for k in looks])
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=1)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=1)


def test_a_look_is_a_function_of_the_generator():
    first, again = (draw_look(torch.Generator().manual_seed(3), 40, 40) for _ in range(2))
    assert first == again != draw_look(torch.Generator().manual_seed(4), 40, 40)
    image = torch.rand(3, 40, 40)
    assert torch.equal(picture(first, image, 32), picture(again, image, 32))
    plain = Look(top=0, left=0, height=40, width=40)
    assert torch.equal(picture(plain, image, 40), image)
    assert torch.equal(geometry(Look(top=2, left=3, height=20, width=20, flip=True), image, 20),
                       image[:, 2:22, 3:23].flip(-1))  # fmt: skip
