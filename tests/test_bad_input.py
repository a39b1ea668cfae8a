"""Bad input ends in one clear error: the right type, a message that says what was found and what to do."""

import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import convert_baseline, head, make, unit
from torch import Tensor, nn

import bu2td
from bu2td import errors
from bu2td.models import baselines


class _Net(nn.Module):
    """A small valid network to be spoilt."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = unit(3, 8, stride=2), unit(8, 16, stride=2), head(16)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.b(self.a(x)))


class ControlFlow(_Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.mean() > 0:  # the line that the message names
            x = x * 2
        return self.head(self.b(x))


class InnerControlFlow(_Net):
    def __init__(self) -> None:
        super().__init__()
        self.inner = ControlFlow()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class TwoInputs(_Net):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x + y)


class NoInput(_Net):
    def forward(self) -> Tensor:  # type: ignore[override]
        return torch.zeros(1, 10)


class DictOutput(_Net):
    def forward(self, x: Tensor) -> Any:
        return {"out": super().forward(x)}


class TupleOutput(_Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class MapOutput(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class ConstantOutput(_Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.zeros(2, 16, 4, 4))


class Indices(_Net):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.table(x))


class Rising(nn.Module):
    """An autoencoder-like classifier whose trunk gains resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(unit(3, 8, stride=2), unit(8, 16, stride=2), unit(16, 16))
        self.up, self.last, self.head = nn.Upsample(scale_factor=2), unit(16, 8), head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.up(self.down(x))))


class Halve(nn.Module):
    """Reduces resolution by an operation without converter."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.roll(x, 1, 2).unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))


class OpaqueReduction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.halve, self.b, self.c = unit(3, 8, stride=2), Halve(), unit(8, 8), unit(8, 8, stride=2)
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = self.b(self.halve(x)) + self.halve(x)
        return self.head(self.c(x))


class OwnDevice(nn.Module):
    """Joins its features with a map of rows that it makes on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = unit(3, 8), unit(9, 8, stride=2), head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        rows = torch.linspace(0, 1, x.shape[2]).view(1, 1, -1, 1).expand(x.shape[0], 1, x.shape[2], x.shape[3])
        return self.head(self.b(torch.cat([x, rows], 1)))


def parametrised(how: Callable[[nn.Module], nn.Module]) -> nn.Module:
    model = _Net()
    how(model.a[0])
    return model


def sequential(*parts: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*parts)


MODELS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("a name", lambda: "resnet18", errors.NotAModelError, r"found <class 'str'>.*timm\.create_model"),
    ("a class", lambda: _Net, errors.NotAModelError, "the class _Net; call it first"),
    ("a function", lambda: make, errors.NotAModelError, "call it first"),
    ("nothing", lambda: None, errors.NotAModelError, "NoneType"),
    ("lazy", sequential(nn.LazyConv2d(8, 3), head(8)), errors.NotAModelError, "LazyConv2d.*run the model once"),
    ("MLP", sequential(nn.Flatten(), nn.Linear(12, 2)), errors.NoConvolutionError, "no 2-d convolution"),
    ("1-d", sequential(nn.Conv1d(3, 8, 3)), errors.DimensionalityError, "Conv1d"),
    ("3-d", sequential(nn.Conv3d(3, 8, 3)), errors.DimensionalityError, "Conv3d"),
    ("isotropic", sequential(unit(3, 8), unit(8, 8), head(8)), errors.NoReductionError, "size of the image"),
    ("patches", sequential(unit(3, 8, 4, 4), unit(8, 8), head(8)), errors.NoReductionError, "isotropic"),
    (
        "height alone",
        sequential(nn.Conv2d(3, 8, 3, (2, 1), 1), head(8)),
        errors.NoReductionError,
        "factors, 2 and 1",
    ),
    (
        "fixed",
        sequential(unit(3, 8), nn.AdaptiveAvgPool2d(32), unit(8, 8), head(8)),
        errors.NoReductionError,
        "32x32",
    ),
    ("control flow", ControlFlow, errors.CaptureError, r"ControlFlow.*control flow[\s\S]*test_bad_input\.py:\d+"),
    ("inner flow", InnerControlFlow, errors.CaptureError, r"forward of inner \(ControlFlow\)[\s\S]*mean\(\) > 0"),
    ("two inputs", TwoInputs, errors.ModelInputError, r"needs 2 inputs \(x, y\)"),
    ("no input", NoInput, errors.ModelInputError, "takes no input"),
    ("indices", Indices, errors.ModelInputError, "looks indices up"),
    ("map", MapOutput, errors.ModelOutputError, r"\(2, 16, 56, 56\).*logits"),
    ("constant", ConstantOutput, errors.ModelOutputError, r"returns \(2, 10\)"),
    ("rising", Rising, errors.TopologyError, "resolution rises"),
    ("data parallel", lambda: nn.DataParallel(_Net()), errors.WrappedModelError, r"model\.module"),
    (
        "weight norm",
        lambda: parametrised(nn.utils.parametrizations.weight_norm),
        errors.CaptureError,
        "undo it before",
    ),
    (
        "spectral norm",
        lambda: parametrised(nn.utils.spectral_norm),
        errors.CaptureError,
        r"SpectralNorm.*undo it.*remove_spectral_norm",
    ),
    ("opaque", OpaqueReduction, errors.UnsupportedOperationError, r"method:unfold[\s\S]*register_converter"),
]


@pytest.mark.parametrize(("build", "error", "match"), [m[1:] for m in MODELS], ids=[m[0] for m in MODELS])
def test_models(build: Callable[[], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        bu2td.convert(build())
    assert isinstance(caught.value, errors.Bu2tdError)


@pytest.mark.parametrize(
    ("word", "error", "match"),
    [
        ("vit_tiny_patch16_224", errors.NoReductionError, "14x14"),
        ("mixer_s16_224", errors.NoReductionError, "14x14"),
        ("convmixer_768_32", errors.NoReductionError, "isotropic"),
        ("swin_tiny_patch4_window7_224", errors.UnsupportedOperationError, "method:reshape"),
    ],
)
def test_other_architectures_of_timm(word: str, error: type[Exception], match: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(error, match=match):
        bu2td.convert(make(word), device="meta")


def test_distributed_wrapper_is_refused() -> None:
    class DistributedDataParallel(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    with pytest.raises(errors.WrappedModelError, match=r"model\.module"):
        bu2td.convert(DistributedDataParallel(_Net()))


def test_compiled_model_is_unwrapped_with_a_note() -> None:
    network = bu2td.convert(torch.compile(_Net()), device="meta")
    assert any("compiled" in note for note in network.plan.notes)


def test_optional_arguments_keep_their_defaults() -> None:
    class Optional(_Net):
        def forward(self, x: Tensor, scale: Tensor | None = None, times: int = 1) -> Tensor:
            x = super().forward(x)
            return x if scale is None else x * scale * times

    assert bu2td.convert(Optional(), device="meta").num_classes == 10


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (3, "one tensor"),
        ([torch.zeros(1, 3, 32, 32)], "one tensor"),
        (torch.zeros(3, 32, 32), r"found shape \(3, 32, 32\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.long), "int64"),
        (torch.zeros(0, 3, 32, 32), "is empty"),
        (torch.zeros(1, 4, 32, 32), r"does not run on an image of shape \(2, 4, 32, 32\)[\s\S]*example_inputs"),
    ],
)
def test_example_inputs(images: Any, match: str) -> None:
    with pytest.raises(errors.ExampleInputError, match=match):
        bu2td.convert(_Net(), example_inputs=images)


def test_missing_example_inputs_leave_a_note() -> None:
    assert any("1x3x224x224" in note for note in bu2td.analyze(_Net()).notes)
    assert bu2td.analyze(_Net(), example_inputs=torch.zeros(1, 3, 40, 48)).capture.image_shape[-1] == 48


OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"arrangement": "tdd"}, errors.OptionError, "'td', 'uni', 'rev' or a list.*Did you mean 'td'"),
    ({"upsample": "nearst"}, errors.OptionError, "Did you mean 'nearest'"),
    ({"merge": "concatt"}, errors.OptionError, "'concat'"),
    ({"stem": "corse"}, errors.OptionError, "'coarse'"),
    ({"pyramid": "gauss"}, errors.OptionError, "'gaussian'"),
    ({"inherit": "all"}, errors.OptionError, "'matching'"),
    ({"merge_kernel": 2}, errors.OptionError, "odd"),
    ({"merge_kernel": 0}, errors.OptionError, "odd"),
    ({"width": 0, "arrangement": "uni"}, errors.WidthError, "at least 1"),
    ({"width": 8}, errors.OptionError, "arrangement 'uni'"),
    ({"arrangement": []}, errors.OptionError, "list of whole widths"),
    ({"arrangement": [8.5, 4]}, errors.OptionError, "whole widths"),
    ({"arrangement": [8, 0, 4]}, errors.WidthError, "at least 1"),
    ({"arrangement": [8, 4]}, errors.WidthError, r"has 2 widths; .* 3 levels with a body \(\[4, 2, 1\]\)"),
    ({"sigma": 0.01}, errors.SigmaError, r"minimum 0\.125"),
    ({"sigma": float("nan")}, errors.SigmaError, "nan"),
    ({"sigma": "wide"}, errors.SigmaError, "wide"),
    ({"finest_reduction": 3}, errors.ReductionError, r"3 is not on the ladder.*\[4, 2, 1\]"),
    ({"finest_reduction": 4}, errors.ReductionError, "two levels"),
    ({"reductions": [4, 5]}, errors.ReductionError, r"5 is not on the ladder.*\[4, 2, 1\]"),
    ({"reductions": 4}, errors.OptionError, "reductions=4"),
    ({"seed": -1}, errors.OptionError, "seed=-1"),
    ({"seed": 1.5}, errors.OptionError, "seed=1.5"),
    ({"device": "gpu"}, errors.OptionError, "The device 'gpu' cannot be used"),
    ({"device": 2**70}, errors.OptionError, "cannot be used: torch knows no device"),
    ({"max_macs_ratio": 0}, errors.OptionError, "max_macs_ratio=0"),
]


@pytest.mark.parametrize(("options", "error", "match"), OPTIONS, ids=[str(o[0]) for o in OPTIONS])
def test_options(options: dict[str, Any], error: type[Exception], match: str) -> None:
    images = torch.zeros(1, 1, 28, 28)
    with pytest.raises(error, match=match):
        bu2td.convert(baselines.lenet_fc(), example_inputs=images, **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"arangement": "td"}, r"convert\(\) got an unexpected keyword.*'arangement'\. Did you mean 'arrangement'"),
        ({"colour": "red"}, r"convert\(\) got an unexpected keyword argument 'colour'\.$"),
    ],
)
def test_an_unknown_keyword_is_a_type_error(options: dict[str, Any], match: str) -> None:
    with pytest.raises(TypeError, match=match):
        bu2td.convert(baselines.lenet_fc(), **options)


def test_a_type_checker_sees_the_signature_of_convert() -> None:
    parameters = inspect.signature(bu2td.convert).parameters
    assert {"arrangement", "max_macs_ratio"} <= set(parameters)
    assert all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'model'"):
        bu2td.convert()  # type: ignore[call-arg]


def test_cost_error_lists_levels_and_remedies() -> None:
    pytest.importorskip("timm")
    analysis = bu2td.analyze(make("mobilenetv2_100"))
    with pytest.raises(errors.CostError, match=r"79\.\d times[\s\S]*r2 +320[\s\S]*finest_reduction=4 stays below"):
        bu2td.convert(analysis, "rev", device="meta")
    cheap = bu2td.convert(analysis, "rev", device="meta", finest_reduction=4)
    assert cheap.plan.cost.macs < 64 * cheap.plan.bottom_up_cost.macs
    assert bu2td.convert(analysis, "rev", device="meta", max_macs_ratio=None).plan.ladder[-1] == 1


def test_verify_and_save_want_a_converted_network() -> None:
    for function in (bu2td.verify, functools.partial(bu2td.save, file="x.pt")):
        with pytest.raises(errors.NotAModelError, match=r"bu2td\.convert returned"):
            function(_Net())  # type: ignore[operator]


def test_every_cause_has_its_type() -> None:
    causes = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    causes.remove(errors.PretrainedWarning)
    assert all(issubclass(e, errors.Bu2tdError) for e in causes)
    assert all(e.__doc__ for e in causes)
    raised = "".join(file.read_text() for file in Path(bu2td.__file__).parent.rglob("*.py"))
    used = set(re.findall(r"(\w+Error)\(", raised.replace("Error(Bu2tdError)", "")))
    assert {e.__name__ for e in causes} - used <= {"Bu2tdError"}  # none is left over


def test_bottom_up_network_survives_a_failure() -> None:
    model = ControlFlow().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(errors.CaptureError):
        bu2td.convert(model)
    assert not model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert convert_baseline("lenet_fc", "td", device="meta").num_classes == 10


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("\n  one\ntwo"), "one"),
        (ValueError(), "ValueError"),
        (RuntimeError(" \n"), "RuntimeError"),
        (KeyError("a\nb"), r"'a\nb'"),
        (ValueError("x" * 9000), f"{'x' * 500}..."),
    ],
)
def test_what_an_error_of_others_says_in_one_line(error: Exception, said: str) -> None:
    assert errors.first_line(error) == said
