"""Counters (torch, fvcore, ptflops, thop): multiply-accumulates are the plan's, plus the pyramid's."""

from typing import Any

import pytest
import torch
from ecosystem.kit import SIZE, client, images


def near(found: float, plain: Any) -> bool:
    """Convolutions and the classifier are counted by all, norms and resampling by some."""
    return bool(0.98 <= found / plain.plan.cost.macs <= 1.2)


def test_torch(plain: Any) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        plain(images(1))
    assert near(counter.get_total_flops() / 2, plain)


def test_torch_counts_savings(network: Any, plain: Any) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(images(1))
    assert counter.get_total_flops() / 2 <= 1.2 * plain.plan.cost.macs


def test_fvcore(plain: Any) -> None:
    assert near(
        client("fvcore.nn").FlopCountAnalysis(plain, images(1)).unsupported_ops_warnings(False).total(), plain
    )


@pytest.mark.parametrize("backend", ["pytorch", "aten"])
def test_ptflops(plain: Any, backend: str) -> None:
    count = client("ptflops").get_model_complexity_info
    macs, parameters = count(
        plain, (3, SIZE, SIZE), as_strings=False, print_per_layer_stat=False, verbose=False, backend=backend
    )
    assert near(macs, plain)
    assert parameters == sum(p.numel() for p in plain.parameters())


def test_thop(plain: Any) -> None:
    macs, parameters = client("thop").profile(plain, (images(1),), verbose=False)
    assert near(macs, plain)
    assert parameters == sum(p.numel() for p in plain.parameters())
