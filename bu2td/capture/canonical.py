"""A traced graph -> its canonical form, in which everything is written in one way.

A rewrite looks at a node, may write it in another way that computes the same, and says whether it did. Each goes
through the whole graph before the next; modules are made of functions before activations are made of modules.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx, nn

from bu2td.capture.activations import handwritten_activation
from bu2td.capture.concats import growing_concat
from bu2td.capture.draft import Draft
from bu2td.capture.forms import functional_form, whole_map_pool
from bu2td.capture.rewrites import identity, in_place_method, single_output, view

REWRITES: tuple[Callable[[Draft, fx.Node], bool], ...] = (
    single_output,
    in_place_method,
    identity,
    view,
    functional_form,
    whole_map_pool,
    handwritten_activation,
    growing_concat,
)


def canonicalise(root: nn.Module, traced: fx.Graph, training: bool) -> fx.GraphModule:
    """Build the canonical graph out of a traced one, which is used up.

    Needs: the traced root, whose one submodule ``model`` is the network, and its graph.
    Returns: a graph module with the network's own module paths. Functional activations, poolings and dropout
        are modules, methods that work in place make new tensors, identities and dead code are gone.
    Guarantees: it computes what the traced graph computes, and returns one tensor.

    Raises:
        CaptureError: the forward makes tensors of its own.
        ModelOutputError: it returns anything else than one tensor (auxiliary outputs aside).
    """
    draft = Draft(root, traced, training)
    for rewrite in REWRITES:
        for node in list(draft.graph.nodes):
            rewrite(draft, node)
    return draft.graph_module()
