"""The house: floors import downwards only, importing is cheap, every pass says what it does."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: Floors, lowest first; a module imports only from modules above it in this list.
FLOORS = [
    *("errors", "files", "nn", "plan", "options", "fields", "converter"),
    *(
        "canonical",
        "capture",
        "probe",
        "intervals",
        "view",
        "severed",
        "regions",
        "layout",
        "units",
        "blocks",
        "analyse",
    ),
    *("channels", "kinds", "restructure", "arrange", "rewrite"),
    *("cost", "verify", "recompute", "network", "memory", "choose", "simplify", "fuse", "transform"),
    *("initialise", "baselines", "models", "convert", "optimize", "patches", "arguments"),
    *("zoo", "sweep", "draw", "erf", "evaluate", "cli"),
]

PASSES = {
    "capture": "capture",
    "probe": "probe",
    "canonical": "canonicalise",
    "severed": "set_aside_reads",
    "regions": "find_regions",
    "layout": "expose_maps",
    "units": "read_units",
    "blocks": "find_blocks",
    "analyse": "analyse",
    "channels": "solve_widths",
    "arrange": "arrange",
    "restructure": "restructure",
    "rewrite": "rewrite",
    "verify": "verify_graph",
}


def _imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        else:
            continue
        found |= {n.split(".")[1] for n in names if n.startswith("bu2td.") and n.split(".")[1] in FLOORS}
    return found


@pytest.mark.parametrize("floor", FLOORS)
def test_floors_import_only_from_below(floor: str) -> None:
    place = ROOT / "bu2td" / floor
    files = list(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    below = set(FLOORS[: FLOORS.index(floor)])
    for file in files:
        upward = _imports(file) - below - {floor}
        # `load` calls the factory of a recipe, which is the only reason for an import at run time.
        assert not upward, f"{file.name} imports upward: {upward}"


def test_every_module_has_a_floor() -> None:
    modules = {p.stem for p in (ROOT / "bu2td").glob("*.py")} | {"nn", "erf", "evaluate"}
    assert modules - {"__init__", "__main__"} == set(FLOORS)


def test_converters_stand_on_the_converter_floor() -> None:
    allowed = set(FLOORS[: FLOORS.index("converter") + 1])
    for file in (ROOT / "converters").glob("*.py"):
        assert _imports(file) <= allowed, file.name


@pytest.mark.parametrize("module", PASSES)
def test_passes_state_needs_returns_and_guarantees(module: str) -> None:
    import importlib

    function = getattr(importlib.import_module(f"bu2td.{module}"), PASSES[module])
    for word in ("Needs:", "Returns:", "Guarantees:"):
        assert word in function.__doc__


def test_no_family_names_in_the_passes() -> None:
    families = ("resnet", "mobilenet", "densenet", "inception", "vgg", "convnext", "squeezenet", "googlenet", "dla")
    for module in PASSES:
        tree = ast.parse((ROOT / "bu2td" / f"{module}.py").read_text())
        strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        docs = {
            ast.get_docstring(n, clean=False)
            for n in ast.walk(tree)
            if isinstance(n, ast.FunctionDef | ast.Module | ast.ClassDef)
        }
        examples = ("create_model(", "timm.models.nfnet")  # an error's example, a leaf that is no leaf
        code = [s.lower() for s in strings if s not in docs and not any(e in s for e in examples)]
        assert not [s for s in code for f in families if f in s]


def test_import_loads_nothing_optional() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import bu2td
loaded = {m.partition('.')[0] for m in set(sys.modules) - before}
optional = 'timm torchvision matplotlib sklearn foolbox lightning_fabric yaml onnx tqdm captum pandas'.split()
print(sorted(loaded & set(optional)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
