"""Quantisation (torchao): eight-bit weights and activations, ahead of time, by PyTorch 2's export."""

from typing import Any

import pytest
import torch
from ecosystem.kit import client, images, relative

pytestmark = pytest.mark.slow


def test_static_quantisation_of_an_exported_network(network: Any, plain: Any) -> None:
    steps = client("torchao.quantization.pt2e.quantize_pt2e")
    x86 = client("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    with torch.no_grad():
        prepared = steps.prepare_pt2e(torch.export.export(network, (images(),)).module(), quantizer)
        prepared(images())
        found = steps.convert_pt2e(prepared)(images())
    assert 1e-5 < relative(found, plain(images())) < 0.2


def test_weights_in_eight_bits(network: Any, plain: Any) -> None:
    ao = client("torchao.quantization")
    ao.quantize_(network, ao.Int8WeightOnlyConfig())
    assert 0 < relative(network(images()), plain(images())) < 0.05
