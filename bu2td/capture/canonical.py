"""A traced graph -> its canonical form, in which everything is written in one way.

A rewrite changes the whole graph, does not change what it computes, and says whether it changed anything. The order
counts: modules are told from functions before activations are told from their parts.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx, nn

from bu2td.capture.activations import handwritten_activations
from bu2td.capture.concats import growing_concats
from bu2td.capture.draft import Draft
from bu2td.capture.forms import functional_forms, whole_map_pools
from bu2td.capture.rewrites import identities, in_place_methods, in_place_operators, single_output, views

REWRITES: tuple[Callable[[Draft], bool], ...] = (
    single_output,
    in_place_methods,
    in_place_operators,
    identities,
    views,
    functional_forms,
    whole_map_pools,
    handwritten_activations,
    growing_concats,
)


def canonicalise(root: nn.Module, traced: fx.Graph, training: bool) -> fx.GraphModule:
    """Build the canonical graph out of a traced one, which is used up.

    Needs: the traced root, whose one submodule ``model`` is the network, and its graph.
    Returns: a graph module with the network's own module paths. Functional activations, poolings and dropout
        are modules, in-place arithmetic is out of place, identities and dead code are gone.
    Guarantees: it computes what the traced graph computes, and returns one tensor.

    Raises:
        CaptureError: the forward makes tensors of its own.
        ModelOutputError: it returns anything else than one tensor (auxiliary outputs aside).
    """
    draft = Draft(root, traced, training)
    for rewrite in REWRITES:
        rewrite(draft)
    return draft.graph_module()
