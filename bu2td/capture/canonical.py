"""A traced graph -> its canonical form, in which everything is written in one way.

A rewrite looks at a node, may write it in another way that computes the same, and says whether it did. Each goes
through the whole graph before the next; modules are made of functions before activations are made of modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, fx, nn

from bu2td.capture.activations import handwritten_activation
from bu2td.capture.assignments import assigned_part
from bu2td.capture.concats import growing_concat
from bu2td.capture.draft import Draft
from bu2td.capture.forms import functional_form, whole_map_pool
from bu2td.capture.layers import functional_layer
from bu2td.capture.makers import made_where_maps_are, padded_by_zeros
from bu2td.capture.rewrites import (
    flattened,
    identity,
    in_place_method,
    own_batch,
    single_output,
    spread_shape,
    view,
    written_out,
)
from bu2td.capture.tracer import Traced
from bu2td.ir import FrozenMap

REWRITES: tuple[Callable[[Draft, fx.Node], bool], ...] = (
    assigned_part,
    in_place_method,
    identity,
    written_out,
    spread_shape,
    own_batch,
    flattened,
    padded_by_zeros,
    made_where_maps_are,
    view,
    functional_layer,
    functional_form,
    whole_map_pool,
    handwritten_activation,
    growing_concat,
)


@dataclass(frozen=True, eq=False)
class Canonical:
    """A canonical graph, and what is to be known beside it.

    Attributes:
        tensors: parameters and buffers of the graph that the model has under another name, or not at all.
        chosen: what to say of the output that was chosen, if there was a choice.
        others: labels of the other outputs that may be the logits.
        notes: what else is to be said.
    """

    graph_module: fx.GraphModule
    tensors: FrozenMap[str, Tensor]
    chosen: tuple[str, ...]
    others: tuple[str, ...]
    notes: tuple[str, ...]

    def noting(self, *notes: str) -> Canonical:
        """The same with more notes."""
        return replace(self, notes=(*self.notes, *notes))


def canonicalise(traced: Traced, source: nn.Module, choice: int = 0) -> Canonical:
    """Build the canonical graph out of a traced one, which is used up.

    Needs: what tracing a copy of ``source`` gave; which of the outputs that may be the logits is chosen, the
        likeliest by default.
    Returns: a graph module with the network's own module paths. Activations, poolings, dropout and layers that are
        written as functions are modules, methods that work in place make new tensors, identities and what is dead
        are gone.
    Guarantees: it computes what the traced graph computes, and returns one tensor.

    Raises:
        ModelOutputError: it returns nothing that may be logits.
    """
    draft = Draft(traced, source)
    chosen, others = single_output(draft, choice)
    for rewrite in REWRITES:
        for node in list(draft.graph.nodes):
            rewrite(draft, node)
    graph_module = draft.graph_module()
    own = {name for name, _ in [*graph_module.named_parameters(), *graph_module.named_buffers()]}
    tensors = {name: tensor for name, tensor in draft.tensors.items() if name in own}
    return Canonical(graph_module, FrozenMap(tensors), chosen, others, traced.notes)
