"""Networks by torchvision's names."""

from typing import Any

import pytest
import torch

import bu2td
from bu2td.errors import OptionError, UnknownModelError
from bu2td.models.libraries import LIBRARIES

torchvision = pytest.importorskip("torchvision")
import bu2td.torchvision

models = torchvision.models


def test_names_are_registered_for_every_convolutional_classifier() -> None:
    library: Any = LIBRARIES["torchvision"]
    sources = [name for name, _ in library.families()]
    for prefix in ("td_", "tduni_", "tdrev_"):
        assert set(models.list_models(include=f"{prefix}*")) == {prefix + name for name in sources}
    assert models.list_models(module=models) == [n for n in models.list_models(module=models) if n[:2] != "td"]
    assert not any(name.startswith("td_") for name in library.names())
    assert models.get_model_weights("td_resnet18") is models.ResNet18_Weights
    bu2td.torchvision.register()


def test_a_name_is_the_conversion() -> None:
    torch.manual_seed(0)
    source = models.get_model("resnet18", weights=None, num_classes=4)
    expected = bu2td.convert(source, "uni", merge="add", finest_reduction=4, seed=1).eval()
    found = models.get_model(
        "tduni_resnet18", weights=None, num_classes=4, merge="add", finest_reduction=4, seed=1
    ).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found(images), expected(images))
    assert models.get_model_builder("td_resnet18").__name__ == "td_resnet18"


def test_weights_are_inherited_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    state = models.resnet18().state_dict()
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda self, **options: dict(state))
    with pytest.warns(UserWarning, match=r"It inherits .*% of its values from resnet18 \(ResNet18_Weights"):
        network = models.get_model("td_resnet18", weights=models.ResNet18_Weights.DEFAULT, finest_reduction=8)
    copied, total = network.plan.inherited
    assert 0 < copied < total
    assert torch.equal(network.get_parameter("r32.layer4.1.conv1.weight"), state["layer4.1.conv1.weight"])
    with pytest.raises(OptionError, match="inherit=None"):
        models.get_model("td_resnet18", weights="DEFAULT", inherit=None)


def test_mistakes_are_named() -> None:
    with pytest.raises(UnknownModelError, match="Did you mean 'td_resnet18'"):
        models.get_model("td_resnt18")
    with pytest.raises(UnknownModelError, match="vit_b_16 is no convolutional classifier"):
        models.get_model("TD_vit_b_16")
    with pytest.raises(ValueError, match="Unknown model resnt18"):
        models.get_model("resnt18")
    with pytest.raises(TypeError, match=r"no option 'num_clases'.*'num_classes'"):
        models.get_model("td_resnet18", num_clases=3)
    with pytest.raises(OptionError, match="merge='ad'"):
        models.get_model("td_resnet18", merge="ad")


def test_under_the_meta_device() -> None:
    with torch.device("meta"):
        network = models.get_model("tdrev_googlenet", num_classes=3, finest_reduction=4)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert network.num_classes == 3
