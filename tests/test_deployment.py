"""Networks as other programs: ONNX files, traced and compiled functions, at sizes that they were not made with."""

import ast
import dataclasses
import io
import json
import math
import operator
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import Block, convert_baseline, head, make, unit
from torch import Tensor, nn

import bu2td
from bu2td import deployment
from bu2td.cli import main
from bu2td.errors import Bu2tdError, ExportError, FileError, MissingPackageError, NotAModelError, OptionError
from bu2td.models import baselines
from bu2td.nn import REDUCERS, UPSAMPLE_MODES, Merge, Pyramid, TransposedUpsample, Upsample, reduced
from bu2td.optimization import RULES
from bu2td.optimization.kernels import FusedConv2d, SplitMerge, UpsampledConv2d, WinogradConv2d
from bu2td.optimization.kernels.lowres import summed_kernel, sums_matrix
from bu2td.programs import program_of

ROOT = Path(__file__).parents[1]
#: What a graph that was made at 64 x 64 runs at.
SIZES = ((33, 47), (65, 71), (96, 80), (225, 225))
MODES = (None, "training", "inference")
ALL = dict.fromkeys(RULES, "always")


def random_weights(network: nn.Module) -> Any:
    """A network in eval mode with weights and statistics that no initialisation gives."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in network.parameters():
            scale = (2 / max(tensor[0].numel(), 1)) ** 0.5 if tensor.dim() > 1 else 0.2
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale + (tensor.dim() == 1) * tensor)
        for name, tensor in network.named_buffers():
            if name.endswith("running_mean"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
            elif name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network.eval()


def lenet(arrangement: Any = "td", mode: str | None = None, **options: Any) -> Any:
    network = random_weights(convert_baseline("lenet_fc", arrangement, seed=0, **options))
    return network if mode is None else bu2td.optimize(network, mode, rules=ALL).eval()


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def images_of(channels: int) -> Iterator[Tensor]:
    for count, size in enumerate(SIZES, 1):
        yield torch.rand(count, channels, *size)


@torch.no_grad()
def assert_same_at_all_sizes(found: Any, network: nn.Module, channels: int, within: float = 1e-5) -> None:
    for images in images_of(channels):
        assert relative(found(images), network(images)) < within, tuple(images.shape)


def running(file: Any) -> Any:
    """An ONNX file as a function."""
    runtime = pytest.importorskip("onnxruntime")
    source = file.getvalue() if isinstance(file, io.BytesIO) else str(file)
    session = runtime.InferenceSession(source, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


# --- a rule for all that runs in an exported graph ----------------------------------------------------


def test_no_division_of_a_negative_size() -> None:
    """Other programs round divisions towards zero: ``-(-a // b)`` would be the floor there."""
    found = [
        f"{file}:{node.lineno}"
        for floor in ("nn", "runtime", "optimization")
        for file in (ROOT / "bu2td" / floor).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv) and isinstance(node.left, ast.UnaryOp)
    ]
    assert not found
    assert [reduced(size, 4) for size in range(10)] == [math.ceil(size / 4) for size in range(10)]


def _convs() -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
    return nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 5, padding=4, dilation=2), nn.Conv2d(6, 3, 3, padding=1)


class Parts(nn.Module):
    """Every module of ours whose graph could depend on the size that it is made with."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramids = nn.ModuleList(Pyramid((3, 2), reducer) for reducer in REDUCERS)
        self.ups = nn.ModuleList(Upsample(mode) for mode in UPSAMPLE_MODES[:2])
        self.transposed = TransposedUpsample(3, 3)
        first, second, joined = _convs()
        self.low = nn.ModuleList((UpsampledConv2d(first, 2), UpsampledConv2d(second, 3)))
        self.split = SplitMerge(Merge(joined), 2)
        self.split.winograd = True
        self.winograd = WinogradConv2d(nn.Conv2d(3, 4, 3, padding=1))
        sums = sums_matrix((5, 5), (2, 2), (2, 2))
        weight = summed_kernel(second.weight.detach(), sums, (10, 10))
        self.fused = FusedConv2d(
            weight, None, padding=(4, 4), dilation=(2, 2), act="relu", form="low", factor=(2, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        levels = [level for pyramid in self.pyramids for level in pyramid(x)]
        third, half = levels[:2]
        maps = [*levels, *(up(half, x) for up in self.ups), self.transposed(third, x)]
        maps += [self.low[0](half, x), self.low[1](third, x), self.split(half, x), self.winograd(x)]
        maps += [self.fused(half, like=x)]
        return torch.cat([m.mean((2, 3)) + m[:, :, -1, -1] + m[:, :, 0, -2] for m in maps], dim=1)


@pytest.mark.slow
def test_our_parts_hold_for_every_size() -> None:
    """Exported by PyTorch alone: a user need not know of `bu2td.export`."""
    pytest.importorskip("onnxscript")
    parts, file, free = Parts().eval(), io.BytesIO(), torch.export.Dim.DYNAMIC
    images = torch.rand(2, 3, 64, 64)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(parts, (images,), dynamic_shapes=({0: free, 2: free, 3: free},), strict=False)
        torch.onnx.export(program, (images,), file, dynamo=True, verbose=False)
    assert_same_at_all_sizes(running(file), parts, 3)


class Foreign(nn.Module):
    """What a bottom-up network may do with sizes."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        small = F.interpolate(x, size=(-(-height // 4), -(-width // 4)), mode="bilinear")
        pooled = F.adaptive_avg_pool2d(x, (7, 5)).flatten(1), F.adaptive_max_pool2d(small, 3).flatten(1)
        return torch.cat([*pooled, F.adaptive_avg_pool2d(x, (None, 1)).mean((2, 3))], dim=1)


def test_operations_of_others_hold_for_every_size() -> None:
    """Negative divisions, and adaptive pools to more than one position, of which ONNX has none for open sizes."""
    pytest.importorskip("onnxscript")
    network = Foreign().eval()
    program = deployment._onnx(network, torch.rand(2, 3, 64, 64), "NHW", None, None)
    file = io.BytesIO()
    program.save(file)
    assert_same_at_all_sizes(running(file), network, 3, 3e-5)


# --- traced, compiled, taken apart --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "pyramid", "upsample"),
    [
        *((mode, "gaussian", "nearest") for mode in MODES),
        *(
            (None, pyramid, upsample)
            for pyramid, upsample in zip(REDUCERS[1:], UPSAMPLE_MODES[1:] * 2, strict=True)
        ),
    ],
)
def test_traced_networks_hold_for_every_size(mode: str | None, pyramid: str, upsample: str) -> None:
    network = lenet(mode=mode, pyramid=pyramid, upsample=upsample)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, torch.rand(1, 1, 64, 64), check_trace=False)
        assert_same_at_all_sizes(traced, network, 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_script_is_refused() -> None:
    network = lenet()
    for model in (network, nn.Sequential(network), bu2td.PatchNetwork(network)):
        with pytest.raises(ExportError, match=r"torch\.jit\.trace"):
            torch.jit.script(model)


@pytest.mark.parametrize("mode", MODES)
def test_features_compile(mode: str | None) -> None:
    network, images = lenet(mode=mode), torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        levels = network.features(images)
        values = network.run_until(network.stages.outputs[-1], images)
        assert all(torch.equal(a, values[name]) for a, name in zip(levels, network.stages.outputs, strict=True))
        compiled = torch.compile(network.features, fullgraph=True, backend="aot_eager")(images)
        assert [tuple(level.shape) for level in compiled] == [tuple(level.shape) for level in levels]
        assert all(relative(a, b) < 1e-5 for a, b in zip(compiled, levels, strict=True))
        assert torch.equal(network.forward_features(images), levels[-1])
    torch.compiler.reset()


def test_features_follow_the_graph() -> None:
    """With and without checkpointing, and of a graph that its owner edits."""
    network, images = lenet().train(), torch.rand(2, 1, 28, 28)
    expected = network.features(images)
    network.set_grad_checkpointing(True, inside=True)
    again = network.features(images)
    assert all(relative(a, b) < 1e-5 for a, b in zip(again, expected, strict=True))
    network.set_grad_checkpointing(False)
    last = next(node for node in network.graph.nodes if node.name == network.stages.outputs[-1])
    with network.graph.inserting_before(last):
        last.replace_input_with(last.args[0], network.graph.call_function(operator.mul, (last.args[0], 2)))
    network.recompile()
    assert relative(network.features(images)[-1], expected[-1]) > 1e-4  # a norm takes most of it


@pytest.mark.parametrize("mode", MODES)
def test_torchvision_takes_features_of_networks(mode: str | None) -> None:
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    network = lenet(mode=mode)
    names = {f"r{level.reduction}": str(level.reduction) for level in network.plan.levels}
    extractor = extraction.create_feature_extractor(network, names, suppress_diff_warning=True)
    assert not network.training
    for images in images_of(1):
        with torch.no_grad():
            found, expected = extractor(images), network.features(images)
        assert all(relative(found[str(r)], f) < 1e-5 for r, f in zip(network.plan.ladder, expected, strict=True))


# --- files --------------------------------------------------------------------------------------------


def test_export(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    network, file = lenet().train(), tmp_path / "td.onnx"
    before = {name: value.clone() for name, value in network.state_dict().items()}
    done = bu2td.export(network, file, normalize=([0.4], [0.2]), classes=list("abcdefghij"))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert (done.file, done.shape, done.normalised) == (file, ("N", 1, "H", "W"), True)
    assert [check.shape for check in done.checks] == [(2, 1, 28, 28), (1, 1, 33, 42), (3, 1, 47, 29)]
    assert all(check.difference < 1e-5 for check in done.checks)
    assert "images (N, 1, H, W), images in [0, 1]" in str(done)
    with pytest.raises(dataclasses.FrozenInstanceError):
        done.opset = 1  # type: ignore[misc]
    assert_same_at_all_sizes(running(file), Normalised(network.eval()), 1)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    [images], [logits] = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape, logits.name, logits.shape) == (
        *("images", ["N", 1, "H", "W"]),
        *("logits", ["N", 10]),
    )
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["bu2td.recipe"])["options"]["arrangement"] == "td"
    assert json.loads(told["bu2td.reductions"]) == [4, 2, 1]
    assert json.loads(told["bu2td.classes"]) == list("abcdefghij")
    assert json.loads(told["bu2td.mean"]) == pytest.approx([0.4])
    assert told["bu2td.version"] == bu2td.__version__
    assert [path.name for path in tmp_path.iterdir()] == ["td.onnx"]


class Normalised(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - 0.4) / 0.2)


@pytest.mark.slow
def test_export_on_the_command_line(tmp_path: Path, call: Any) -> None:
    """Of a file that `bu2td convert` wrote, for images of one size."""
    pytest.importorskip("onnxruntime")
    saved, file = tmp_path / "td.pt", tmp_path / "td.onnx"
    assert call(main, "convert", "bu2td:lenet_fc", "-o", saved, "--arrangement", "uni")[0] == 0
    status, out, err = call(main, "export", saved, "-o", file, "--static", "--batch-size", "3")
    assert (status, err) == (0, "")
    assert "images (3, 1, 28, 28)" in out
    assert out.count("onnxruntime at 3x1x28x28") == 3
    network, images = bu2td.load(saved).eval(), torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        assert relative(running(file)(images), network(images)) < 1e-5
    status, _, err = call(main, "export", saved, "-o", file, "--pyramid", "max")
    assert status == 2
    assert "has its pyramid already" in err


def test_a_wrong_file_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seeded fault: the file is of another network."""
    pytest.importorskip("onnxruntime")
    other = convert_baseline("lenet_fc", "td", seed=5).eval()
    (tmp_path / "td.onnx").write_text("the file before")
    monkeypatch.setattr(deployment, "program_of", lambda network, *rest: program_of(other, *rest))
    with pytest.raises(ExportError, match=r"computes something else: at images 2x1x28x28 .*Nothing was written"):
        bu2td.export(lenet(), tmp_path / "td.onnx", dynamic=False)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the file before"]


def _small() -> Any:
    return baselines.lenet_fc()


WRONG: dict[str, tuple[Any, dict[str, Any], type[Bu2tdError], str]] = {
    "bottom-up": (_small, {}, NotAModelError, "LeNetFC"),
    "meta": (lambda: bu2td.convert(make("bu2td:lenet_fc")), {}, ExportError, "no weights"),
    "half": (lambda: lenet().half(), {}, ExportError, "float16"),
    "classes": (lenet, {"classes": ["a"]}, OptionError, "1 names, but the network has 10"),
    "no config": (lenet, {"normalize": True}, ExportError, "pretrained_cfg"),
    "channels": (lenet, {"normalize": ([0.5] * 3, [0.5] * 3)}, OptionError, "1 numbers"),
    "std": (lenet, {"normalize": ([0.5], [0])}, OptionError, "no std of 0"),
    "words": (lenet, {"normalize": "imagenet"}, OptionError, "two lists"),
    "size": (lenet, {"image_size": "64"}, OptionError, "image_size"),
    "batch": (lenet, {"dynamic": False, "batch_size": 0}, OptionError, "batch_size=0"),
    "folder": (lenet, {"dynamic": False, "file": "nowhere/td.onnx"}, FileError, "nowhere"),
}


@pytest.mark.parametrize(("network", "options", "error", "says"), WRONG.values(), ids=WRONG)
def test_wrong_use(tmp_path: Path, network: Any, options: Any, error: Any, says: str) -> None:
    pytest.importorskip("onnxscript")
    options = {"file": "td.onnx", **options}
    with pytest.raises(error, match=says):
        bu2td.export(network(), tmp_path / options.pop("file"), **options)
    assert not list(tmp_path.iterdir())


def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match="pip install onnx onnxscript"):
        bu2td.export(lenet(), tmp_path / "td.onnx")


# --- all of it ----------------------------------------------------------------------------------------

EVERY = [
    *((arrangement, "gaussian", "nearest") for arrangement in ("td", "uni", "rev", [12, 8, 4])),
    *(("td", pyramid, "nearest") for pyramid in REDUCERS[1:]),
    *(("rev", "gaussian", upsample) for upsample in UPSAMPLE_MODES[1:]),
]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("arrangement", "pyramid", "upsample"), EVERY, ids=str)
def test_every_network_exports(tmp_path: Path, mode: Any, arrangement: Any, pyramid: str, upsample: str) -> None:
    network = lenet(arrangement, mode, pyramid=pyramid, upsample=upsample)
    bu2td.export(network, tmp_path / "td.onnx", image_size=64)
    assert_same_at_all_sizes(running(tmp_path / "td.onnx"), network, 1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_openvino(tmp_path: Path, mode: Any) -> None:
    openvino = pytest.importorskip("openvino")
    network = lenet(mode=mode)
    bu2td.export(network, tmp_path / "td.onnx", image_size=64)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = openvino.convert_model(network, example_input=torch.rand(2, 1, 64, 64))
    for model in (openvino.Core().read_model(tmp_path / "td.onnx"), converted):
        compiled = openvino.compile_model(model, "CPU", exact)
        assert_same_at_all_sizes(lambda x, run=compiled: torch.tensor(run(x.numpy())[0]), network, 1)


def residual() -> nn.Module:
    return nn.Sequential(unit(3, 8), Block(8, 12, 2), Block(12, 16, 2), head(16))


@pytest.mark.slow
@pytest.mark.parametrize("word", ["", "torchvision:alexnet", "mobilenetv3_small_050", "tf_efficientnet_lite0"])
def test_other_networks_export(tmp_path: Path, word: str) -> None:
    model = make(word).to_empty(device="cpu") if word else residual()
    options: Any = {"finest_reduction": 4, "max_macs_ratio": None} if word else {}
    network = bu2td.convert(model, inherit="none", example_inputs=torch.rand(1, 3, 64, 64), seed=0, **options)
    done = bu2td.export(network, tmp_path / "td.onnx")
    assert done.shape == ("N", 3, "H", "W")
    assert max(check.difference for check in done.checks) < 1e-5


@pytest.mark.slow
def test_patches_export_at_one_size(tmp_path: Path) -> None:
    done = bu2td.export(bu2td.PatchNetwork(lenet()), tmp_path / "td.onnx", image_size=32)
    assert done.shape == ("N", 1, 32, 32)
    assert [check.shape[0] for check in done.checks] == [2, 1, 3]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_recipe_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert len(names["features"](names["images"])) == 3
    torch.compiler.reset()
