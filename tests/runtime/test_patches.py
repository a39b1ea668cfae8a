"""`bu2td.PatchNetwork`: the finest levels on crops that the coarser levels choose; what it costs and keeps."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import convert_baseline
from reference.fill import fill
from torch import Tensor, nn

import bu2td
from bu2td.errors import FileError, ImageSizeError, NotAModelError, OptimizeError, OptionError
from bu2td.models import baselines

EXAMPLE = Path(__file__).parents[2] / "examples" / "patches.py"


def converted(name: str, arrangement: str = "td", **options: Any) -> Any:
    """A network with weights that tell positions and channels apart, in double precision."""
    network = convert_baseline(name, arrangement, seed=0, **options)
    fill(network)
    return network.double().eval()


def images_for(name: str, height: int, width: int, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (count, baselines.INPUT_SIZES[name][0], height, width)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def with_auxiliary(network: Any, **options: Any) -> bu2td.PatchNetwork:
    """Patches whose auxiliary classifier has weights of the size of a trained one."""
    patches = bu2td.PatchNetwork(network, **options)
    with torch.no_grad():
        patches.auxiliary.weight.mul_(100)
    return patches.eval()


# --- the same function --------------------------------------------------------------------------------


@pytest.mark.parametrize("arrangement", ["td", "rev"])
def test_whole_images_are_the_network(arrangement: str) -> None:
    network = converted("lenet_fc", arrangement)
    patches = bu2td.PatchNetwork(network, share=1.0).eval()
    images = images_for("lenet_fc", 33, 46)
    with torch.no_grad():
        assert torch.equal(patches(images), network(images))
    assert patches.windows(images).tolist() == [[0, 0, 33, 46]] * 3


@pytest.mark.parametrize("finest", [1, 2])
@pytest.mark.parametrize(("name", "optimised"), [("lenet_fc", False), ("resnet32", False), ("resnet32", True)])
def test_with_enough_margin_the_window_has_the_features_of_the_whole_image(
    name: str, optimised: bool, finest: int
) -> None:
    """The head reads exactly that part of the whole image's features; without a margin it does not."""
    network = converted(name)
    if optimised:
        network = bu2td.optimize(network, "training")
    images = images_for(name, 160, 224, count=1)
    found = {}
    for margin in (0, 12):
        patches = with_auxiliary(network, share=0.25, finest=finest, margin=margin)
        with torch.no_grad():
            features = network.features(images)[-1]
            crops = [
                features[i : i + 1, :, top : top + height, left : left + width]
                for i, (top, left, height, width) in enumerate(patches.windows(images).tolist())
            ]
            expected = network.forward_head(torch.cat(crops))
            found[margin] = float((patches(images) - expected).abs().max() / expected.abs().max())
    assert found[12] < 1e-10
    assert found[0] > 1e-6


def test_with_recomputing_gradients_are_the_same() -> None:
    network = converted("resnet32").train()
    images = images_for("resnet32", 32, 48)
    gradients = []
    for enable in (False, True):
        network.set_grad_checkpointing(enable, inside=True)
        patches = with_auxiliary(network).train()
        patches.zero_grad()
        for logits in patches.forward_both(images):
            logits.square().sum().backward(retain_graph=True)
        gradients.append([p.grad.clone() for p in patches.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    assert all(bool(g.abs().sum() > 0) for g in gradients[0])


# --- where --------------------------------------------------------------------------------------------


def gradient_cam(patches: bu2td.PatchNetwork, images: Tensor) -> Tensor:
    """Grad-CAM by autograd: the mean gradient of the predicted class's logit weighs the channels."""
    network = patches.network
    level = [level.name for level in network.plan.levels].index(patches.coarse)
    features = network.features(images)[level].detach().requires_grad_()
    logits = patches.auxiliary(features.mean((2, 3)))
    logits.max(dim=1).values.sum().backward()
    weights = features.grad.mean((2, 3), keepdim=True)  # type: ignore[union-attr]
    return (weights * features.detach()).sum(1)


@pytest.mark.parametrize(("name", "finest"), [("lenet_fc", 1), ("resnet32", 1), ("resnet32", 2)])
@pytest.mark.parametrize("size", [(48, 64), (37, 51)])
def test_windows_are_where_grad_cam_is_largest(name: str, finest: int, size: tuple[int, int]) -> None:
    network = converted(name)
    patches = with_auxiliary(network, share=0.4, finest=finest)
    images = images_for(name, *size)
    cam = gradient_cam(patches, images)
    maps = patches.heat_maps(images)
    scale = cam.shape[-2] * cam.shape[-1]
    torch.testing.assert_close(maps, scale * cam.clamp(min=0))
    factor = patches.reduction
    for one, (top, left, height, width) in zip(cam, patches.windows(images).tolist(), strict=True):
        assert 0 <= top <= top + height <= size[0]
        assert 0 <= left <= left + width <= size[1]
        assert abs(height - 0.4 * size[0]) <= factor
        assert abs(width - 0.4 * size[1]) <= factor
        heat = one.clamp(min=0) if bool((one > 0).any()) else one
        rows, columns = (size[0] - height) // factor + 1, (size[1] - width) // factor + 1
        h, w = height // factor, width // factor
        sums = {(i, j): float(heat[i : i + h, j : j + w].sum()) for i in range(rows) for j in range(columns)}
        assert sums[top // factor, left // factor] == pytest.approx(max(sums.values()))


def test_images_of_a_batch_do_not_see_each_other() -> None:
    patches = with_auxiliary(converted("resnet32"), share=0.3)
    images = images_for("resnet32", 40, 56)
    with torch.no_grad():
        alone = torch.cat([patches(image[None]) for image in images])
        torch.testing.assert_close(patches(images), alone)


def test_given_windows_are_used() -> None:
    patches = with_auxiliary(converted("resnet32"), share=0.25, finest=1)
    images = images_for("resnet32", 64, 96)
    own = patches.windows(images)
    with torch.no_grad():
        chosen, auxiliary = patches.forward_both(images)
        again, same = patches.forward_both(images, own)
        moved = own.clone()
        moved[:, 0] = (own[:, 0] + 16) % 48
        other, _ = patches.forward_both(images, moved)
    assert torch.equal(chosen, again)
    assert torch.equal(auxiliary, same)
    assert bool((other != chosen).any(1).all())
    with pytest.raises(OptionError, match=r"shape \(3, 4\), found \(3, 2\)"):
        patches.forward_both(images, own[:, :2])
    with pytest.raises(OptionError, match="top at most 48 and left at most 72 for windows of 16x24"):
        patches.forward_both(images, own + 64)


# --- accuracy and cost ----------------------------------------------------------------------------------


def test_cost() -> None:
    """Multiply-accumulates: coarser levels whole, finer ones on the crop, both counted by hand."""
    network = convert_baseline("resnet32", "td", seed=0, device="meta")
    patches = bu2td.PatchNetwork(network, share=0.25, finest=1, margin=0)
    some, whole = patches.macs((64, 64))
    plan = bu2td.convert(baselines.resnet32(), device="meta", example_inputs=torch.rand(1, 3, 64, 64)).plan
    finest = plan.levels[-1].cost.macs
    pyramid = 2 * 3 * (64 * 64 * (32 + 16)) + 3 * (32 * 32 * 64 + 16 * 16 * 64)
    assert abs(whole - plan.cost.macs) < 0.02 * whole + pyramid
    assert some == pytest.approx(whole - finest * (1 - 0.25**2), rel=0.01)


@pytest.mark.slow
def test_accuracy_on_digits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Digits in large noisy images: crops that are looked for know what whole images know, at part of the cost."""
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("patches_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr("sys.argv", ["patches.py", "--epochs", "5"])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    example.main()
    torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()[1:]
    rows = {line[:32].strip(): line[32:].replace("%", " ").split() for line in lines}
    accuracy = {name: float(row[0]) for name, row in rows.items()}
    macs = {name: float(row[1]) for name, row in rows.items()}
    assert accuracy["crops by Grad-CAM"] > 50
    assert accuracy["crops by Grad-CAM"] > accuracy["whole images"] - 10
    assert accuracy["crops by Grad-CAM"] > accuracy["crops of another image's place"] + 15
    assert macs["crops by Grad-CAM"] < 0.65 * macs["whole images"]


# --- files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimised", [False, True])
def test_save_and_load(tmp_path: Path, optimised: bool) -> None:
    network = convert_baseline("resnet32", "td", seed=0)
    network.reset_classifier(4)
    fill(network)
    if optimised:
        network = bu2td.optimize(network, "training", rules={"merge": "always"})
    patches = with_auxiliary(network, share=0.4, finest=2, margin=3)
    bu2td.save(patches, tmp_path / "patches.pt")
    loaded = bu2td.load(tmp_path / "patches.pt", model=baselines.resnet32())
    assert isinstance(loaded, bu2td.PatchNetwork)
    assert (loaded.share, loaded.finest, loaded.margin, loaded.coarse) == (0.4, 2, 3, "r4")
    assert loaded.network.optimization == network.optimization
    images = torch.rand(2, 3, 48, 64)
    with torch.no_grad():
        for found, expected in zip(loaded.eval().forward_both(images), patches.forward_both(images), strict=True):
            assert torch.equal(found, expected)
    assert [p.name for p in tmp_path.iterdir()] == ["patches.pt"]  # written whole or not at all
    content = torch.load(tmp_path / "patches.pt", weights_only=True)
    assert json.loads(json.dumps(content["recipe"]))["patches"] == {"share": 0.4, "finest": 2, "margin": 3}


def test_bad_files(tmp_path: Path) -> None:
    patches = bu2td.PatchNetwork(convert_baseline("lenet_fc", "td", seed=0))
    with pytest.raises(FileError, match="cannot be written"):
        bu2td.save(patches, tmp_path / "nowhere" / "patches.pt")
    bu2td.save(patches, tmp_path / "patches.pt")
    with pytest.raises(FileError, match="another bottom-up model"):
        bu2td.load(tmp_path / "patches.pt", model=baselines.nin())
    whole = (tmp_path / "patches.pt").read_bytes()
    (tmp_path / "patches.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match="truncated"):
        bu2td.load(tmp_path / "patches.pt", model=baselines.lenet_fc())


# --- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0}, "share=0 must be a number above 0"),
        ({"share": 1.5}, "share=1.5 must be"),
        ({"share": "half"}, "share='half' must be"),
        ({"finest": 0}, "finest=0 must be a whole number from 1 to 2"),
        ({"finest": 3}, "finest=3 must be a whole number from 1 to 2"),
        ({"finest": True}, "finest=True must be"),
        ({"margin": -1}, "margin=-1 must be a whole number"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    network = convert_baseline("lenet_fc", "td", seed=0)
    with pytest.raises(OptionError, match=message):
        bu2td.PatchNetwork(network, **options)


def test_networks_that_have_no_patches() -> None:
    with pytest.raises(NotAModelError, match=r"found <class 'torch\.nn\.modules\.linear\.Linear'>"):
        bu2td.PatchNetwork(nn.Linear(2, 2))  # type: ignore[arg-type]
    network = convert_baseline("lenet_fc", "td", seed=0)
    with pytest.raises(OptimizeError, match="optimised for inference and cannot train"):
        bu2td.PatchNetwork(bu2td.optimize(network))
    headless = convert_baseline("resnet32", "td", seed=0)
    headless.reset_classifier(0)
    with pytest.raises(OptionError, match="reset_classifier"):
        bu2td.PatchNetwork(headless)
    bound: Any = convert_baseline("lenet_fc", "td", seed=0)
    bound.pyramid.size = (28, 28)
    with pytest.raises(ImageSizeError, match="bound to an image size"):
        bu2td.PatchNetwork(bound)
