"""The registry: converters come through entry points, ours and anybody's."""

import importlib.metadata
import operator
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from bu2td.ops import Role, converter_for, converter_for_type, registered


def test_our_converters_come_through_the_entry_point() -> None:
    assert "bu2td_converters" in {e.value for e in importlib.metadata.entry_points(group="bu2td.converters")}
    names = dict(registered())
    assert {"torch.nn.modules.conv.Conv2d", "timm.layers.norm_act.BatchNormAct2d", "method:chunk"} <= set(names)
    assert all(type(c).__doc__ for c in names.values())
    assert converter_for_type(nn.Module) is None


def test_a_checkout_on_the_path_needs_no_installation() -> None:
    """Without the metadata of an installed bu2td its own converters are there all the same."""
    code = """
import importlib.metadata
importlib.metadata.entry_points = lambda **group: ()
from bu2td.ops import registered
print("torch.nn.modules.conv.Conv2d" in dict(registered()))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert result.stdout.strip() == "True", result.stderr


def test_a_package_brings_its_converters(tmp_path: Path) -> None:
    """A distribution with an entry point in the group is loaded at the first look-up."""
    (tmp_path / "their_converters.py").write_text(
        textwrap.dedent("""
            import bu2td

            @bu2td.register_converter("their_package.Op")
            class OpConverter(bu2td.Converter):
                role = bu2td.Role.PASS
        """)
    )
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[bu2td.converters]\ntheirs = their_converters\n")
    code = "from bu2td.ops import registered; print('their_package.Op' in dict(registered()))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path), "PATH": ""}
    )
    assert result.stdout.strip() == "True", result.stderr


def test_a_method_is_what_the_function_of_its_name_is() -> None:
    """However people write an operation, it is known."""

    def by_method(x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return a.abs().add(b).mean((2, 3))

    def by_function(x: Tensor) -> Tensor:
        a, b = torch.chunk(x, 2, 1)
        return torch.mean(torch.add(torch.abs(a), b), (2, 3))

    def roles(written: Callable[[Tensor], Tensor], op: str) -> list[Role]:
        nodes = fx.symbolic_trace(written).graph.nodes
        return [converter_for(n, None).role for n in nodes if n.op == op and n.target is not operator.getitem]

    found = roles(by_method, "call_method")
    assert len(found) == 4
    assert found == roles(by_function, "call_function")
    assert Role.OPAQUE not in found
