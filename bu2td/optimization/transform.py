"""Applies the rewrites of `bu2td.optimize` to a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from bu2td.ir import Optimization
from bu2td.nn import Part, contain
from bu2td.ops import meta_copy
from bu2td.optimization.branches import fold_branches
from bu2td.optimization.cost_model import Chooser
from bu2td.optimization.fuse import fuse
from bu2td.optimization.simplify import Shapes, simplify
from bu2td.runtime import TopDownNetwork


def transform(network: TopDownNetwork, choose: Chooser, image_shape: Sequence[int]) -> None:
    """Rewrite a network in place.

    Args:
        network: without checkpointing.
        choose: decides, and keeps its decisions.
        image_shape: (N, C, H, W) that the decisions are for; N is taken as 1.
    """
    if not choose.training:
        fold_branches(network.eval(), _shapes(network, image_shape), choose)
    simplify(network, _shapes(network, image_shape), choose)
    network.record = replace(network.record, stages=network.stages.within(network.graph))
    if not choose.training:
        fuse(network, _shapes(network, image_shape), choose)
        network.requires_grad_(False)
    for part in [module for module in network.modules() if isinstance(module, Part)]:
        contain(part)  # what was written out lies in new containers


def _shapes(network: TopDownNetwork, image_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    twin: Any = meta_copy(network)
    recorder = Shapes(twin.eval())
    dtype = next(network.parameters()).dtype
    with torch.no_grad():
        recorder.run(torch.empty((1, *image_shape[1:]), device="meta", dtype=dtype))
    return recorder.found


def retransform(network: TopDownNetwork, done: Optimization) -> None:
    """Make the rewrites of a saved file in a network that was built from its recipe, in place."""
    pairs = [(rewrite.rule, rewrite.site) for rewrite in done.made]
    choose = Chooser(done.mode, done.device, done.batch_size, given=pairs)
    transform(network, choose, (*network.plan.image_shape[:2], *done.image_size))
    network.record = network.record.with_recipe(optimization=done)
