"""FoMu-SSL's pretraining: its steps by hand, what it keeps, and what it refuses."""

import copy
import json
import math

import numpy as np
import pytest
import rasterio
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import rsbackbones as rsb
from rsbackbones.data.npz import NpzFile
from rsbackbones.data.two_views import draw_look, geometry, picture
from rsbackbones.files.sha256 import sha256_of
from rsbackbones.train import TrainingError, pretrain
from rsbackbones.train.dataset import sample_generator
from rsbackbones.train.engine.distributed import DistributedContext
from rsbackbones.train.engine.train_step import TrainRun
from rsbackbones.train.export import export
from rsbackbones.train.initialize import check_stages, read_run
from rsbackbones.train.objectives.fomu import FomuObjective
from rsbackbones.train.objectives.guidance import GuidanceOptions, load_oracle
from rsbackbones.train.pretraining import PretrainRun
from rsbackbones.train.recipe import Part
from tests.train.fomu_setup import (
    PICTURES,
    SIDE,
    SMALL,
    UNGUIDED,
    oracle_model,
    small_recipe,
    two_phases,
    write_pictures,
)
from tests.train.training import contents, curve

pytestmark = pytest.mark.usefixtures("without_pictures")
ALONE = DistributedContext(0, 1, torch.device("cpu"))
MEAN, STD = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def steps_of(run: TrainRun, count):
    """The parts of the loss of the first steps."""
    batches = run.batches(0, count)
    found = []
    for step in range(count):
        of_step = [next(batches) for _ in range(run.config.accumulate)]
        parts, norm = run.forward_backward(of_step)
        run.update(of_step, run.step(step), norm)
        found.append({name: value.item() for name, value in parts.items()})
    return found


class ByHand(nn.Module):
    """An encoder and its head, with BatchNorm over groups of rows by plain calls, one for each group."""

    def __init__(self, backbone, head, groups):
        super().__init__()
        self.backbone, self.head, self.groups = backbone, head, groups

    def forward(self, x):
        z = torch.cat([self.backbone(rows) for rows in x.chunk(self.groups)])
        return z, F.normalize(self.head(z), dim=1)


def plain_copy(built):
    """A copy of the small backbone without the engine's BatchNorm."""
    plain = rsb.create_model("fomu_resnet_tiny", overrides=SMALL).train()
    plain.load_state_dict(built.state_dict())
    return plain


def test_five_steps_by_hand(data):
    """Views, keys in shuffled groups, losses with all parts, plain SGD with decay, momentum and queue."""
    recipe = small_recipe(data)
    run = PretrainRun(recipe, ALONE)
    objective = run.objective
    oracle = load_oracle(str(data / "oracle.safetensors"), "fomu_resnet_tiny")
    query = ByHand(plain_copy(objective.backbone), copy.deepcopy(objective.head), 2)
    for mine, theirs in zip(
        query.backbone.state_dict().values(), oracle.backbone.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs)  # which it begins with
    key = copy.deepcopy(query)
    keys, place = objective.queue.keys.clone(), 0
    velocity = [torch.zeros_like(p) for p in query.parameters()]
    found = steps_of(run, 5)
    for step in range(5):
        images, noise = {"query": [], "key": [], "radar": []}, []
        for number in run.plan.batch(step):
            generator = sample_generator(recipe.seed, number)
            noise.append(torch.rand((), generator=generator))
            sample = run.streams[0].source.read(number[2], 0).images
            rgb = torch.from_numpy(sample["rgb"]) / 255
            eight_bit = ((torch.from_numpy(sample["s1"]) + 25) / 25 * 255).clamp(0, 255).floor() / 255
            for view in ("query", "key"):
                look = draw_look(generator, 40, 40)
                images[view].append((picture(look, rgb, SIDE) - MEAN) / STD)
                if view == "query":
                    images["radar"].append((geometry(look, eight_bit, SIDE) - 0.485) / 0.229)
        x = {name: torch.stack(each) for name, each in images.items()}
        order = torch.stack(noise).argsort()
        with torch.no_grad():
            shuffled = key(x["key"][order])[1]
            own = torch.empty_like(shuffled)
            own[order] = shuffled
            red = oracle.backbone.trunk["conv1"][0].weight.clone()
            red[:, 1:] = 0  # green and blue see nothing
            seen = copy.deepcopy(oracle.backbone)
            seen.trunk["conv1"][0].weight.copy_(red)
            targets = {"rgb": oracle(x["query"]), "sar": seen(x["radar"].expand(-1, 3, -1, -1))}
        z, q = query(x["query"])
        logits = torch.cat([(q * own).sum(1, keepdim=True), q @ keys.T], dim=1) / 0.2
        parts = {"ssl": F.cross_entropy(logits, torch.zeros(8, dtype=torch.long))}
        parts |= {n: (1 - F.cosine_similarity(z, t)).mean() for n, t in targets.items()}
        loss = parts["ssl"] + 0.25 * parts["rgb"] + 0.25 * parts["sar"]
        assert found[step] == pytest.approx(
            {"loss": loss.item(), **{n: p.item() for n, p in parts.items()}}, abs=2e-4
        )
        lr = 0.03 * 8 / 256 * 0.5 * (1 + math.cos(math.pi * (step + 1) / 6))
        gradients = torch.autograd.grad(loss, list(query.parameters()))
        with torch.no_grad():
            for p, g, v in zip(query.parameters(), gradients, velocity, strict=True):
                v.mul_(0.9).add_(g + 1e-4 * p)
                p.sub_(lr * v)
            for p, q in zip(key.parameters(), query.parameters(), strict=True):
                p.mul_(0.9).add_(0.1 * q)
            for row in shuffled:
                keys[place % 16] = row
                place += 1
    pairs = [(query, objective.backbone, objective.head)]
    pairs.append((key, objective.momentum_encoder["backbone"], objective.momentum_encoder["head"]))
    for mine, *theirs in pairs:
        held = [p for module in theirs for p in module.parameters()]
        for a, b in zip(mine.parameters(), held, strict=True):
            torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(objective.queue.keys, keys, atol=2e-4, rtol=0)
    assert objective.queue.place == place % 16


def test_passes_do_not_matter(data):
    """Two passes of half the batch, with the same groups: the same losses, queue and weights."""
    ends = []
    for passes in (1, 2):
        run = PretrainRun(small_recipe(data, accumulate=passes, objective__bn_groups=4), ALONE)
        ends.append((steps_of(run, 3), run.objective))
    for one, two in zip(ends[0][0], ends[1][0], strict=True):
        assert two == pytest.approx(one, abs=1e-4)
    torch.testing.assert_close(ends[1][1].queue.keys, ends[0][1].queue.keys, atol=1e-4, rtol=0)
    assert ends[1][1].queue.place == ends[0][1].queue.place == 3 * 8 % 16
    for a, b in zip(ends[0][1].parameters(), ends[1][1].parameters(), strict=True):
        torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-3)


def test_pictures_and_two_passes_without_a_step_change_no_state(data):
    run = PretrainRun(small_recipe(data), ALONE)
    steps_of(run, 1)
    before = copy.deepcopy(run.objective.state_dict())
    batch = next(run.batches(1, 2))
    run.forward_backward([batch])
    run.discard()
    for example in run.examples():
        run.objective.reconstruct(example)
    for name, value in run.objective.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_two_phases_carry_queue_and_keys_and_no_oracle(data, tmp_path):
    """Also: the record, another oracle, and all that needs none."""
    out = tmp_path / "run"
    recipe = two_phases(data, out)
    assert {name.partition(".")[0] for name in check_stages(recipe)[1].state_dict()} == {
        "backbone", "head", "momentum_encoder", "queue",
    }  # fmt: skip
    assert pretrain(recipe).step == 5
    assert "sar" not in json.loads((out / "stage_1" / "metrics.jsonl").read_text().splitlines()[-1])
    rates = [[lr for (lr,) in curve(out / folder, "lr")] for folder in ("stage_1", ".")]
    assert rates[0] == rates[1]  # it begins anew
    oracle = oracle_model()
    # Norms share some of their values, ones and zeros.
    theirs = {x.numpy().tobytes() for x in oracle.state_dict().values() if x.numel() > 4 and x.std() > 0}
    for folder in (out / "stage_1", out):
        held = contents(folder, 5)
        assert not theirs & {x.numpy().tobytes() for x in held.values()}
        assert not [name for name in held if "oracle" in name]
    before, after = (contents(folder, 5) for folder in (out / "stage_1", out))
    assert before["/objective/queue.place"] == 5 * 8 % 16
    assert after["/objective/queue.place"] == 10 * 8 % 16
    digest = {"sha256": sha256_of(data / "oracle.safetensors")}
    records = [json.loads((folder / "recipe.json").read_text()) for folder in (out / "stage_1", out)]
    assert [record["oracle"] for record in records] == [digest, digest]
    # Another oracle is refused, the same one in another place is not.
    other = tmp_path / "other.safetensors"
    rsb.save_model(oracle_model(seed=8), other)
    with pytest.raises(TrainingError, match="the stage before had another oracle"):
        pretrain(two_phases(data, out, objective__guidance__oracle=str(other)))
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes((data / "oracle.safetensors").read_bytes())
    assert pretrain(two_phases(data, out, objective__guidance__oracle=str(moved))).step == 5
    # Nothing but training needs it.
    moved.unlink()
    _, _, objective, _ = read_run(out)
    export(out, tmp_path / "weights", tag="a")
    exported = rsb.create_model(
        "fomu_resnet_tiny", checkpoint=tmp_path / "weights" / "fomu_resnet_tiny.a.safetensors"
    )
    x = torch.randn(2, 3, SIDE, SIDE)
    torch.testing.assert_close(exported(x), objective.backbone.eval()(x))


def test_a_run_without_guidance_needs_no_oracle(data):
    run = PretrainRun(
        small_recipe(data, parts=(PICTURES,), objective__guidance={**UNGUIDED, "oracle": ""}), ALONE
    )
    assert set(steps_of(run, 1)[0]) == {"loss", "ssl"}
    assert run.record() == {}


def test_a_student_of_batch_statistics_begins_at_its_oracle(data):
    first = {}
    for statistics in ("own", "batch"):
        recipe = small_recipe(data, objective__guidance__oracle_statistics=statistics)
        run = PretrainRun(recipe, ALONE)
        oracle = run.objective.guidance.oracle
        held = copy.deepcopy(oracle.state_dict())
        first[statistics] = steps_of(run, 1)[0]["rgb"]
        for name, value in oracle.state_dict().items():
            assert torch.equal(value, held[name]), name
        assert not any(p.requires_grad for p in oracle.parameters())
    assert first["batch"] == pytest.approx(0, abs=1e-6)
    assert first["own"] > 1e-3


def test_scales_of_the_radar_stem(data):
    oracle = load_oracle(str(data / "oracle.safetensors"), "fomu_resnet_tiny")
    grey = torch.rand(2, 1, SIDE, SIDE)
    torch.testing.assert_close(oracle.radar(grey, "sum"), oracle(grey.expand(-1, 3, -1, -1)))
    torch.testing.assert_close(oracle.radar(grey, "blue", 3.0), oracle.radar(3 * grey, "blue"))
    guided = {}
    for scale in ("none", "count"):
        run = PretrainRun(small_recipe(data, objective__guidance__sar_scale=scale), ALONE)
        batch = next(run.batches(0, 1))
        seen = run.objective.guidance.oracle.radar(
            batch.views["query"]["s1"], "red", 3.0 if scale == "count" else 1.0
        )
        with torch.no_grad():
            run.objective.before_step([batch])
            z = run.objective.backbone(batch.views["query"]["rgb"])
        guided[scale] = run.objective(batch)["sar"].item()
        assert guided[scale] == pytest.approx((1 - F.cosine_similarity(seen, z)).mean().item(), abs=1e-5)
    assert guided["none"] != guided["count"]


def test_radar_images_of_8_bits_and_pictures_of_digital_numbers(data, tmp_path):
    """SEN1-2's radar is a picture; Sentinel-2 images become pictures, 2750 to 255."""
    rng = np.random.default_rng(0)
    radar, optical = (rng.integers(0, 256, shape).astype(np.uint8) for shape in ((8, 40, 40), (8, 40, 40, 3)))
    for i in range(8):
        for sensor, image in (("s1", radar[i]), ("s2", optical[i])):
            folder = tmp_path / "sen12" / "ROIs1_spring" / f"{sensor}_1"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"ROIs1_spring_{sensor}_1_p{i}.png")
    changes = {"data__parts": [], "data__root": str(tmp_path / "sen12"), "data__crop": (1.0, 1.0)}
    run = PretrainRun(small_recipe(data, data__units={"s1": "rgb8"}, **changes), ALONE)
    batch = next(run.batches(0, 1))
    means = (batch.views["query"]["s1"] * 0.229 + 0.485).mean(dim=(1, 2, 3)) * 255
    places = [key[2] for key in run.plan.batch(0)]
    torch.testing.assert_close(means, torch.from_numpy(radar[places].mean((1, 2))).float(), atol=6, rtol=0)
    with pytest.raises(ValueError, match=r"s1: .*data\.units"):
        PretrainRun(small_recipe(data, **changes), ALONE)
    # The same colors as digital numbers, beside an infrared band.
    numbers = np.moveaxis(optical, -1, 1) / 255 * 2750
    images = np.concatenate([numbers[:, ::-1], numbers[:, :1]], axis=1).round().astype(np.uint16)
    np.savez(tmp_path / "s2.npz", s2=images, s1=np.full((8, 1, 40, 40), -12.5, np.float32))
    bands = {"s2": {"s2": ("B02", "B03", "B04", "B08")}, "s1": {"s1": ("VV",)}}
    part = Part(file=NpzFile(path="s2.npz", images=bands))
    of_numbers = PretrainRun(
        small_recipe(data, parts=(part,), data__root=str(tmp_path), data__units={"rgb": "dn"}), ALONE
    )
    seen = of_numbers.streams[0].preprocess(of_numbers.streams[0].source.read(3, 0).images)
    whole = (torch.from_numpy(optical[3]).movedim(-1, 0) / 255 - MEAN) / STD
    torch.testing.assert_close(seen["rgb"], whole, atol=1.01 / 255 / 0.224, rtol=0)
    torch.testing.assert_close(seen["s1"], torch.full((1, 40, 40), (127 / 255 - 0.485) / 0.229))
    # GeoTIFFs of s2 whose 8-bit values are a picture: the unit of rgb is that of their files.
    (tmp_path / "tifs").mkdir()
    profile = {"driver": "GTiff", "width": 40, "height": 40, "count": 3, "dtype": "uint8"}
    for i in range(8):
        with rasterio.open(tmp_path / "tifs" / f"p{i}_S2.tif", "w", **profile) as file:
            file.write(np.moveaxis(optical[i], -1, 0))
            file.descriptions = ("B04", "B03", "B02")
    changes |= {"data__root": str(tmp_path / "tifs"), "objective__guidance": UNGUIDED}
    (stream,) = PretrainRun(small_recipe(data, data__units={"rgb": "rgb8"}, **changes), ALONE).streams
    torch.testing.assert_close(stream.preprocess(stream.source.read(3, 0).images)["rgb"], whole)


@pytest.mark.parametrize("distance", ["mse", "miro"])
def test_other_distances(data, distance):
    run = PretrainRun(small_recipe(data, objective__guidance__distance=distance), ALONE)
    steps_of(run, 2)
    groups = {group.get("lr_scale", 1): group for group in run.optimizer.param_groups}
    assert set(groups) == ({1, 10.0} if distance == "miro" else {1})
    if distance == "miro":
        assert groups[10.0]["lr"] == pytest.approx(10 * groups[1]["lr"])
        assert {id(p) for p in groups[10.0]["params"]} == {
            id(m.b) for m in run.objective.guidance.miro.values()
        }
    trained = [p for p in run.objective.parameters() if p.requires_grad]
    assert sum(len(group["params"]) for group in run.optimizer.param_groups) == len(trained)
    assert all(group["weight_decay"] == 1e-4 for group in run.optimizer.param_groups)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective__queue": 4}, r"objective.queue=4 cannot hold the 8 keys of a step"),
        ({"objective__bn_groups": 3}, r"objective.bn_groups=3 does not divide batch_size=8"),
        ({"accumulate": 4}, r"objective.bn_groups=2 must be a multiple of accumulate=4"),
        ({"batch_norm": "sync"}, r"batch_norm=sync: this method has objective.bn_groups"),
        ({"parallel": "fsdp"}, r"parallel=fsdp cannot shard"),
        ({"ema": 0.9}, r"ema=0.9 would average the queue"),
        ({"objective__guidance__rgb": -1}, r"objective.guidance.rgb must be greater than or equal to 0"),
        ({"objective__guidance__distance": "l1"}, r"objective.guidance.distance must be 'cosine', 'mse' or"),
        ({"objective__guidance__sar_channel": "nir"}, r"sar_channel must be 'red', 'green', 'blue' or 'sum'"),
        ({"objective__guidance": {"sar_channel": "sum", "sar_scale": "count"}}, r"pass sar_scale=none"),
        ({"data__mixup": 0.3}, r"pass data.flips=horizontal data.rot90=false data.mixup=0, got data.mixup"),
        ({"data__crop": (16, 32)}, r"data.crop=0.2,1.0; got 16,32"),
        ({"optim__name": "adamw"}, r"momentum=0.9 is one of name=sgd"),
    ],
)
def test_options_that_are_refused(data, changes, message):
    with pytest.raises(ValueError, match=message):
        small_recipe(data, **changes)


def test_data_and_oracles_that_are_refused(data, tmp_path):
    def build(**changes):
        return PretrainRun(small_recipe(data, **changes), ALONE)

    with pytest.raises(ValueError, match=r"fomu takes rgb and s1.*guidance.sar=0"):
        build(parts=(PICTURES,))
    with pytest.raises(ValueError, match=r"data.size=16 is below 32"):
        build(data__size=16)
    with pytest.raises(ValueError, match=r"is not there. An oracle is one of: guidance.oracle=resnet50"):
        build(objective__guidance__oracle=str(tmp_path / "none.pt"))
    with pytest.raises(ValueError, match=r"guidance.oracle is not named. An oracle is one of"):
        build(objective__guidance__oracle="")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes((data / "oracle.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"damaged.safetensors is no fomu_resnet_tiny.*sound safetensors"):
        build(objective__guidance__oracle=str(damaged))
    other = tmp_path / "other.safetensors"
    rsb.save_model(rsb.create_model("fomu_resnet_tiny"), other)
    with pytest.raises(ValueError, match=r"other.safetensors is no fomu_resnet_tiny, .* they have channels"):
        build(objective__guidance__oracle=str(other))
    deep = np.load(data / "pictures.npz")
    np.savez(tmp_path / "pictures.npz", rgb=deep["rgb"].astype(np.uint16) * 20, s1=deep["s1"])
    with pytest.raises(ValueError, match=r"range from 0 to 255.*units={'rgb': 'dn'}"):
        build(data__root=str(tmp_path))
    infrared = rsb.create_model("resnet18", modalities=("s2",), overrides={"layers": (1, 1, 1, 1)})
    with pytest.raises(ValueError, match=r"trains a model of the modality rgb.*data.units.rgb=dn"):
        FomuObjective(guidance=GuidanceOptions(rgb=0)).build(infrared)
