"""Opacus (opacus): gradients per sample are those of one image at a time, after its own replacement of norms."""

from typing import Any

import pytest
import torch
from ecosystem.kit import client, gradients, images, labels, loss, same

pytestmark = pytest.mark.slow


def test_gradients_per_sample(trainable: Any, record_property: Any) -> None:
    client("opacus")
    fixed = client("opacus.validators").ModuleValidator.fix(trainable)
    expected = gradients(fixed)
    samples = client("opacus.grad_sample").GradSampleModule
    if trainable.optimization is not None:  # constants of a convolution at low resolution
        with pytest.raises(NotImplementedError, match="buffers"):
            samples(fixed, loss_reduction="mean")
        record_property("refused", "by Opacus: it takes no trainable layer with buffers")
        return
    private = samples(fixed, loss_reduction="mean")
    private.zero_grad()
    loss(private(images()), labels()).backward()
    found = {name: p.grad_sample.mean(0) for name, p in fixed.named_parameters()}
    same(found, expected)
    assert torch.isfinite(private(images())).all()
