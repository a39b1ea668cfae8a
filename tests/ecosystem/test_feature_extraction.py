"""Feature extraction (torchvision): outputs of levels, by the names that the graph has."""

from typing import Any

import pytest
from ecosystem.kit import client, images, relative

from bu2td.errors import FusedNetworkError


def test_levels(form: str, network: Any, plain: Any, record_property: Any) -> None:
    extraction = client("torchvision.models.feature_extraction")
    expected = plain.features(images())
    wanted = {stage.output: str(stage.reduction) for stage in network.stages.levels}
    if form == "inference":  # it is traced in train mode, too
        with pytest.raises(FusedNetworkError, match="inference"):
            extraction.create_feature_extractor(network, wanted)
        record_property("refused", "a network that is optimised for inference has no train mode")
        return
    found = extraction.create_feature_extractor(network, wanted)(images())
    for stage, value in zip(plain.stages.levels, expected, strict=True):
        assert relative(found[str(stage.reduction)], value) < 1e-5
