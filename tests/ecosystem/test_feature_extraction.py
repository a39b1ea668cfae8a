"""Feature extraction (torchvision): outputs of levels, by the names that the graph has."""

from typing import Any

from ecosystem.kit import client, images, relative


def test_levels(form: str, network: Any, plain: Any) -> None:
    extraction = client("torchvision.models.feature_extraction")
    expected = plain.features(images())
    wanted = {stage.output: str(stage.reduction) for stage in network.stages.levels}
    found = extraction.create_feature_extractor(network, wanted).eval()(images())
    for stage, value in zip(plain.stages.levels, expected, strict=True):
        assert relative(found[str(stage.reduction)], value) < 1e-5
