"""What torch is set to around a call changes no network."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from nets import convert_baseline, head, unit
from reference.fill import fill
from torch import Tensor, nn

import bu2td
from bu2td.graph import full_precision
from bu2td.models import baselines

MODES = ("training", "inference")


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


#: What a caller may be in the middle of.
AROUND: dict[str, Any] = {
    "meta": lambda: torch.device("meta"),
    "default device": lambda: default_device("meta"),
    "double": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def outputs(td: Any, images: Tensor) -> list[Tensor]:
    """Logits in both modes of a copy, and a gradient."""
    fast = [bu2td.optimize(td, mode).eval()(images).detach() for mode in MODES]
    logits = td.train()(images)
    logits.square().sum().backward()
    return [*fast, logits.detach(), next(td.parameters()).grad]


@pytest.mark.parametrize("rounded", [True, False])
def test_full_precision_is_a_loan(rounded: bool) -> None:
    """Inside nothing rounds to TF32, under PyTorch's own names; outside it is as it was."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    try:
        torch.backends.cudnn.allow_tf32 = rounded
        torch.set_float32_matmul_precision("high" if rounded else "highest")
        with full_precision():
            assert not torch.backends.cudnn.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.backends.cudnn.allow_tf32 == rounded
        assert torch.get_float32_matmul_precision() == ("high" if rounded else "highest")
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch has one name for each precision")
def test_full_precision_under_the_newer_names() -> None:
    conv, rnn = torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = conv.fp32_precision, rnn.fp32_precision
    try:
        conv.fp32_precision, rnn.fp32_precision = "tf32", "ieee"  # which the old name cannot say
        with full_precision():
            assert conv.fp32_precision == "ieee"
        assert (conv.fp32_precision, rnn.fp32_precision) == ("tf32", "ieee")
    finally:
        conv.fp32_precision, rnn.fp32_precision = before


@pytest.mark.parametrize("around", AROUND)
def test_networks_are_as_they_are_without(around: str, tmp_path: Any) -> None:
    images, file = torch.rand(2, 1, 28, 28), tmp_path / "td.bu2td"
    model = fill(lenet := baselines.lenet_fc()) or lenet
    expected = outputs(convert_baseline("lenet_fc", "td", model, seed=0, inherit="none"), images)
    context: AbstractContextManager[Any] = AROUND[around]()
    with context:
        td = bu2td.convert(model, inherit="none", example_inputs=images, seed=0)
        fast = [bu2td.optimize(td, mode) for mode in MODES]
        bu2td.verify(td, full=around == "double")
        bu2td.save(td, file)
        again = bu2td.load(file, model)
    for net in (td, *fast, again):
        assert not any(t.is_inference() for t in (*net.parameters(), *net.buffers()))
        assert {(t.device.type, t.dtype) for t in net.parameters()} == {("cpu", torch.float32)}
    for net, logits in zip(fast, expected, strict=False):
        torch.testing.assert_close(net.eval()(images).detach(), logits)
    for net in (td, again):
        torch.testing.assert_close(outputs(net, images), expected)


def test_a_model_made_on_meta_stays_there() -> None:
    with torch.device("meta"):
        td = bu2td.convert(baselines.lenet_fc(), inherit="matching")
    assert all(t.is_meta for t in td.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_everything_made_anew_has_the_models_dtype(dtype: torch.dtype) -> None:
    model = nn.Sequential(unit(3, 8), nn.MaxPool2d(2), unit(8, 16), nn.MaxPool2d(2), unit(16, 16), head(16)).to(
        dtype
    )
    images = torch.rand(2, 3, 32, 32, dtype=dtype)
    td = bu2td.convert(model, inherit="none", example_inputs=images, upsample="transpose")
    assert {t.dtype for t in td.parameters()} == {dtype}
    assert td(images).dtype == dtype
