"""What capture says of a forward: questions that depend on sizes or values, randomness, sizes that are assumed."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from questions import Net, unit
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from bu2td.capture import capture
from bu2td.errors import CaptureError, ExampleInputError, NoConvolutionError

IMAGES = torch.zeros(2, 3, 32, 32)


def of(forward: Any) -> nn.Module:
    return type("Asking", (Net,), {"forward": forward})()


def test_a_way_that_depends_on_the_size_is_noted_with_its_line() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.second(self.stem(x))
        if x.size(2) > 20:
            x = F.max_pool2d(x, 2)
        return self.head(self.third(x))

    [note] = capture(of(forward), IMAGES).notes
    assert "test_answers.py" in note
    assert "the way of 32x32 images (False)" in note


def test_a_guard_is_no_such_way() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        assert x.size(2) == 32, "only these"
        if x.size(3) != 32:
            raise ValueError("only these")
        return self.body(x)

    assert capture(of(forward), IMAGES).notes == ()


def _loops(self: Any, x: Tensor) -> Tensor:
    x = self.third(self.second(self.stem(x)))
    return self.fc(sum(x[:, :, i].mean(-1) for i in range(x.size(2))))


def _loops_over_images(self: Any, x: Tensor) -> Tensor:
    return self.body(torch.stack([image / (image.abs().max() + 1) for image in x]))


def _asks_for_values(self: Any, x: Tensor) -> Tensor:
    x = self.stem(x)
    return self.head(self.third(self.second(x if x.mean() > 0 else -x)))


def _makes_weights(self: Any, x: Tensor) -> Tensor:
    return self.body(nn.Conv2d(3, 3, 1)(x))


def _keeps_weights_in_a_list(self: Any, x: Tensor) -> Tensor:
    return self.body(self.hidden[0](x))


@pytest.mark.parametrize(
    ("forward", "match"),
    [
        (_loops, "it needs a number that depends on the image: 8 for"),
        (_loops_over_images, "it needs a number that depends on the image: 2 for"),
        (_asks_for_values, "control flow depends on the values of tensors"),
        (_makes_weights, "made in the forward, or kept in a plain list"),
        (_keeps_weights_in_a_list, "nn.ModuleList"),
    ],
)
def test_what_has_no_answer_is_refused_with_its_line(forward: Any, match: str) -> None:
    model: Any = of(forward)
    vars(model)["hidden"] = [unit(3, 3)]
    with pytest.raises(CaptureError, match=match) as caught:
        capture(model, IMAGES)
    assert "test_answers.py" in str(caught.value)


def test_what_is_drawn_while_training_is_named() -> None:
    def noisy(self: Any, x: Tensor) -> Tensor:
        return self.body(x + torch.randn_like(x) if self.training else x)

    def shaken(self: Any, x: Tensor) -> Tensor:
        x = self.second(self.stem(x))
        share = torch.rand(x.size(0), 1, 1, 1) if self.training else 0.5
        return self.head(self.third(share * x + (1 - share) * x))

    for forward in (noisy, shaken):
        [note] = capture(of(forward), IMAGES).notes
        assert "draws at random while training is left out, at" in note
        assert "test_answers.py" in note


def test_frozen_parameters_are_named() -> None:
    model = Net()
    type(model).forward = Net.body  # type: ignore[method-assign]
    model.stem.requires_grad_(False)
    [note] = capture(model, IMAGES).notes
    assert "3 of 11 parameters are frozen" in note


@pytest.mark.parametrize(
    ("attribute", "value", "shape"),
    [
        ("in_size", (48, 64), (1, 3, 48, 64)),
        ("input_size", (3, 48, 48), (1, 3, 48, 48)),
        ("img_size", 48, (1, 3, 48, 48)),
        ("config", SimpleNamespace(image_size=48), (1, 3, 48, 48)),
        ("default_cfg", {"input_size": (3, 48, 64)}, (1, 3, 48, 64)),
        ("image_size", "large", (1, 3, 224, 224)),
    ],
)
def test_the_size_is_read_where_a_model_keeps_it(attribute: str, value: Any, shape: tuple[int, ...]) -> None:
    model: Any = of(lambda self, x: self.body(x))
    setattr(model, attribute, value)
    assert capture(model).image_shape == shape


@pytest.mark.parametrize("side", [32, 28, 64, 96])
def test_a_size_that_the_forward_runs_on_is_found(side: int) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.flat(self.third(self.second(self.stem(x))).flatten(1))

    model: Any = of(forward)
    model.flat = nn.Linear(32 * (side // 4) ** 2, 10)
    found = capture(model)
    assert found.image_shape == (1, 3, side, side)
    assert "is assumed" in found.notes[-1]


def test_a_size_at_which_images_get_mixed_is_not_taken() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.fc(F.avg_pool2d(self.third(self.second(self.stem(x))), 8).view(-1, 32))

    assert capture(of(forward)).image_shape == (1, 3, 32, 32)


def test_images_that_do_not_fit_are_refused_where_it_is_asked() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.second(x)
        return self.head(self.third(x)) if x.shape[1] == 16 else x

    with pytest.raises(ExampleInputError, match=r"test_answers\.py"):
        capture(of(forward), torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("compute", "remedy"),
    [
        (nn.utils.weight_norm, "remove_weight_norm(module, 'weight')"),
        (nn.utils.spectral_norm, "remove_spectral_norm(module, 'weight')"),
        (lambda conv: prune.l1_unstructured(conv, "weight", 0.5), "prune.remove(module, 'weight')"),
        (lambda conv: prune.random_unstructured(conv, "bias", 0.5), "prune.remove(module, 'bias')"),
        (parametrizations.weight_norm, "parametrize.remove_parametrizations(module, 'weight')"),
        (parametrizations.orthogonal, "parametrize.remove_parametrizations(module, 'weight')"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_computes_a_weight_is_named_with_what_undoes_it(compute: Any, remedy: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    compute(model[0])
    with pytest.raises(CaptureError) as caught:
        capture(model, IMAGES)
    assert f"torch.nn.utils.{remedy}" in str(caught.value)


def test_a_model_without_convolutions_is_told_so() -> None:
    with pytest.raises(NoConvolutionError):
        capture(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))
