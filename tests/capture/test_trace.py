"""What capture takes and hands on: modes, image shapes, unpacked values, constants, fingerprints."""

from typing import Any

import pytest
import torch
from nets import head, unit
from torch import Tensor, nn

from bu2td.capture import capture
from bu2td.errors import CaptureError

IMAGES = torch.zeros(1, 3, 32, 32)


class Net(nn.Module):
    def __init__(self, channels: int = 3, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.a, self.b = unit(channels, width, stride=2), unit(width, width, stride=2)
        self.dropout, self.head = nn.Dropout(dropout), head(width)

    def forward(self, x: Tensor) -> Any:
        x = self.b(self.a(x))
        return self.head(self.dropout(x) if self.dropout.p else x)


def test_the_graph_of_train_mode_is_kept_where_dropout_is_all_that_differs() -> None:
    class Dropping(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.b(self.a(x))
            return self.head(self.dropout(x) if self.training else x)

    captured = capture(Dropping(), IMAGES)
    assert "dropout" in {node.target for node in captured.graph_module.graph.nodes}
    assert not captured.graph_module.training
    assert not captured.notes


def test_the_graph_of_eval_mode_is_kept_with_a_note_where_more_differs() -> None:
    class Doubling(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.b(self.a(x))
            return self.head(2 * x if self.training else x)

    captured = capture(Doubling(), IMAGES)
    assert "mul" not in {node.name for node in captured.graph_module.graph.nodes}
    assert any("differs between train and eval mode" in note for note in captured.notes)


@pytest.mark.parametrize(
    ("channels", "config", "images", "shape", "noted"),
    [
        (3, None, torch.zeros(5, 3, 40, 48), (5, 3, 40, 48), False),
        (3, {"input_size": (3, 64, 96)}, torch.zeros(5, 3, 40, 48), (5, 3, 40, 48), False),
        (1, {"input_size": (3, 64, 96)}, None, (1, 1, 64, 96), False),
        (4, {"other": 1}, None, (1, 4, 224, 224), True),
        (4, None, None, (1, 4, 224, 224), True),
    ],
)
def test_image_shapes(channels: int, config: Any, images: Any, shape: tuple[int, ...], noted: bool) -> None:
    model: Any = Net(channels)
    model.default_cfg = config
    captured = capture(model, images)
    assert captured.image_shape == shape
    assert any("is assumed" in note for note in captured.notes) == noted


def test_values_of_several_parts_may_be_unpacked_counted_and_looped_over() -> None:
    class Unpacking(Net):
        def forward(self, x: Tensor) -> Tensor:
            _, _, height, width = x.shape
            left, right = self.a(x).chunk(2, 1)
            x = torch.cat([part * 2 for part in torch.cat([left, right], 1).split(2, 1)], 1)
            assert len(list(x.chunk(4, 1))) == 4
            return self.head(self.b(x)) * (height / width)

    model = Unpacking().eval()
    graph = capture(model, IMAGES).graph_module.to_empty(device="cpu")
    graph.load_state_dict(model.state_dict(), strict=False)
    images = torch.rand(2, 3, 32, 48)
    torch.testing.assert_close(graph(images), model(images))


def test_a_failure_names_the_module_that_failed_and_none_that_was_caught() -> None:
    class Fork(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    class Forking(Net):
        def __init__(self) -> None:
            super().__init__()
            self.caught, self.failing = Fork(), Fork()

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            try:
                x = self.caught(x)
            except Exception:
                x = self.failing(x)
            return self.head(self.b(x))

    with pytest.raises(CaptureError, match=r"forward of failing \(Fork\)[\s\S]*x\.sum\(\) > 0"):
        capture(Forking(), IMAGES)


def test_constants_are_parameters_of_one_value_and_cannot_be_changed() -> None:
    model = Net()
    with torch.no_grad():
        model.b[1].weight.zero_()
    constants: Any = capture(model, IMAGES).constants
    assert constants["b.1.weight"] == 0
    assert constants["a.1.weight"] == 1
    assert "a.0.weight" not in constants
    with pytest.raises(TypeError):
        constants["a.0.weight"] = 0


def test_fingerprints_tell_what_a_model_does_not_its_weights_or_dropout() -> None:
    own = capture(Net(), IMAGES).fingerprint
    assert capture(Net(), IMAGES).fingerprint == own
    assert capture(Net(dropout=0.5), IMAGES).fingerprint == own
    assert capture(Net(width=16), IMAGES).fingerprint != own
