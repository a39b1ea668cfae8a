"""Edits are read in one place: who makes what a reader reads, what is left, what is read upsampled."""

from nets import head, unit
from torch import Tensor, nn

import bu2td
from bu2td.graph import GraphView
from bu2td.graph.edited import Edited
from bu2td.ir import Edits, FrozenMap, Projection, UnitSpec


class Net(nn.Module):
    """A block with a pooled projection: its nodes are ``a``, ``b``, ``pool``, ``project`` and ``add``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = unit(3, 8)
        self.a, self.b = nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.pool, self.project = nn.AvgPool2d(2), nn.Conv2d(8, 16, 1)
        self.head = head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.b(self.a(x)) + self.project(self.pool(x)))


NODES = ("a", "b", "pool", "project", "add")


def edited(**edits: object) -> Edited:
    analysis = bu2td.analyze(Net())
    view = GraphView(analysis.capture, analysis.dims)
    assert set(NODES) <= set(view.nodes)
    return Edited(view, NODES, "add", Edits(**edits))  # type: ignore[arg-type]


def entry(run: Edited) -> str:
    return run.view.inputs("a")[0]


def shortcut(source: str) -> Projection:
    return Projection("add", "project", source, UnitSpec(8, 24, (1, 1), "project"))


def test_without_edits_everything_is_itself() -> None:
    run = edited()
    assert run.alive == set(NODES)
    assert run.producer("pool") == run.source("pool", "project") == "pool"
    assert run.projection("project", "add") is None
    assert not run.upsampled("b", "add")


def test_bypassed_nodes_hand_on_what_took_their_place() -> None:
    run = edited(bypass=FrozenMap({"pool": "stem_2", "project": "pool"}))
    assert entry(run) == "stem_2"
    assert run.producer("project") == "stem_2"  # through the pool
    assert run.source("project", "add") == "stem_2"
    assert run.alive == {"a", "b", "add"}


def test_a_bypassed_exit_leaves_what_stands_before_it() -> None:
    assert edited(bypass=FrozenMap({"add": "b"})).alive == {"a", "b"}


def test_a_projection_stands_in_for_its_operand_and_for_its_reader_alone() -> None:
    run = edited(projections=(shortcut("stem_2"),))
    assert run.projection("project", "add") == shortcut("stem_2")
    assert run.projection("project", "b") is None
    assert run.source("project", "add") == "stem_2"
    assert run.source("project", "b") == "project"
    assert run.alive == {"a", "b", "add"}  # the old shortcut is dead code


def test_upsamplings_are_found_behind_what_was_dropped() -> None:
    run = edited(bypass=FrozenMap({"pool": "stem_2"}), upsample=frozenset({("stem_2", "project"), ("b", "")}))
    assert run.upsampled("pool", "project")
    assert not run.upsampled("stem_2", "a")
    assert run.upsampled("b", "")


def test_a_projection_is_upsampled_under_its_operand() -> None:
    run = edited(projections=(shortcut("stem_2"),), upsample=frozenset({("project", "add")}))
    assert run.upsampled_as("project", "add") == "project"
    assert run.upsampled("project", "add")
    assert not run.upsampled("stem_2", "a")
