"""The rules of the house as functions over a source tree: each returns what breaks it, a line per place.

A tree is a folder that holds ``bu2td/``, and beside it what ships or tests it (``converters/``, ``tests/``,
``pyproject.toml``). `tests/test_house.py` asks them of this one, and of small ones in which a violation is planted.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import networkx

#: Packages and single modules, lowest first: each imports those before it alone. "bu2td" is what users see.
FLOORS = (
    *("errors", "files", "packages", "version", "settings", "nn", "options", "models", "ir", "ops", "graph"),
    *("capture", "probe", "analyse", "arrange", "rewrite", "measure", "programs", "verification", "runtime"),
    *("conversion", "maps", "detection", "budget", "optimization", "io", "deployment", "bu2td"),
    *("names", "timm", "torchvision"),
    *("arguments", "zoo", "draw", "erf", "evaluate", "cli"),
)
#: What a converter is written with.
UNDER_CONVERTERS = ("errors", "nn", "ir", "ops")
#: Whom a package must not reach, by whatever way.
STRANGERS = {"verification": ("analyse", "arrange", "rewrite")}
#: The stages of a conversion, and the function that each one is.
STAGES = {
    "capture": "capture",
    "probe": "probe",
    "analyse": "analyse",
    "arrange": "arrange",
    "rewrite": "rewrite",
    "verification": "verify_graph",
}
#: Packages that others import through their face alone.
FACES = (*STAGES, "measure", "runtime", "optimization")
#: Where an operation, a library or a family of models is nobody's business.
BLIND = ("graph", *STAGES, "measure", "runtime", "optimization", "conversion")
#: Functions that are not held to the rule of size yet.
LATER = ("bu2td.evaluate.settings.check",)

LINES, DECISIONS = 60, 15
LIBRARIES = ("timm", "torchvision")
FAMILIES = (
    *("alexnet", "convnext", "densenet", "dla", "efficientnet", "ghostnet", "googlenet", "inception", "lenet"),
    *("mnasnet", "mobilenet", "nasnet", "nfnet", "regnet", "resnest", "resnet", "rexnet", "senet", "shufflenet"),
    *("squeezenet", "vgg", "vovnet", "xception"),
)


# --- a source tree ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Module:
    """A parsed file: its dotted name, and the floor that it belongs to."""

    name: str
    floor: str
    tree: ast.Module
    is_package: bool

    def place(self, node: Any, name: str = "") -> str:
        """Where something is, to be read."""
        return f"{self.name}{'.' if name else ''}{name}:{node.lineno}"


class House:
    """The modules of a source tree by name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.modules: dict[str, Module] = {}
        for top, name in (("bu2td", "bu2td"), ("converters", "bu2td_converters")):
            for file in sorted((root / top).rglob("*.py")):
                parts = (name, *file.relative_to(root / top).with_suffix("").parts)
                is_package = parts[-1] == "__init__"
                if is_package:
                    parts = parts[:-1]
                if parts == ("bu2td", "__main__"):
                    floor = "cli"
                else:
                    floor = parts[1] if name == "bu2td" and len(parts) > 1 else name
                dotted = ".".join(parts)
                self.modules[dotted] = Module(dotted, floor, ast.parse(file.read_text()), is_package)

    def on(self, *floors: str) -> list[Module]:
        """The modules of some floors."""
        return [module for module in self.modules.values() if module.floor in floors]

    @cached_property
    def imports(self) -> list[Import]:
        """Every import of a module of the tree, inside functions too, but for those under TYPE_CHECKING."""
        return [found for module in self.modules.values() for found in _imports(module, self.modules)]

    @cached_property
    def arrows(self) -> networkx.DiGraph:
        """Which module imports which."""
        graph = networkx.DiGraph()
        graph.add_nodes_from(self.modules)
        graph.add_edges_from((found.importer.name, found.target.name) for found in self.imports)
        return graph


@dataclass(frozen=True)
class Import:
    """``from target import name``; no name where the module itself is imported."""

    importer: Module
    target: Module
    name: str
    line: int

    @property
    def place(self) -> str:
        """Where it stands, to be read."""
        return f"{self.importer.name}:{self.line}"

    @property
    def crosses(self) -> bool:
        """Whether it leaves its floor."""
        return self.importer.floor != self.target.floor


def _imports(module: Module, known: dict[str, Module]) -> Iterator[Import]:
    for node in _running(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in known:
                    yield Import(module, known[alias.name], "", node.lineno)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                parts = module.name.split(".")
                base = parts[: len(parts) - node.level + module.is_package]
                source = ".".join([*base, source] if source else base)
            for alias in node.names:
                inside = f"{source}.{alias.name}"
                if inside in known and alias.name not in _bound(known[source]):
                    yield Import(module, known[inside], "", node.lineno)
                elif source in known:
                    yield Import(module, known[source], alias.name, node.lineno)


def _bound(package: Module) -> set[str]:
    """Names that a package takes from its modules: a function hides a module of the same name."""
    lines = [n for n in package.tree.body if isinstance(n, ast.ImportFrom) and n.module != package.name]
    return {alias.asname or alias.name for line in lines for alias in line.names}


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run: everything but the bodies of ``if TYPE_CHECKING``."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from _running(other)
        else:
            yield from _running(child)


Function = ast.FunctionDef | ast.AsyncFunctionDef


def _functions(module: Module) -> Iterator[tuple[str, Function]]:
    """The functions and methods of a module with their names; one inside another belongs to it."""

    def inside(node: ast.AST, path: str) -> Iterator[tuple[str, Function]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                yield f"{path}{child.name}", child
            elif isinstance(child, ast.ClassDef):
                yield from inside(child, f"{path}{child.name}.")
            else:
                yield from inside(child, path)

    return inside(module.tree, "")


# --- 1 and 2: who imports whom ------------------------------------------------------------------------


def unknown_floors(house: House) -> list[str]:
    """Packages and modules without a floor."""
    return sorted({m.floor for m in house.modules.values()} - {*FLOORS, "bu2td_converters"})


def upward_imports(house: House) -> list[str]:
    """Imports of a floor above."""
    return [
        f"{found.place} ({found.importer.floor}) imports {found.target.name}"
        for found in house.imports
        if found.crosses and found.target.floor not in _below(found.importer.floor)
    ]


def _below(floor: str) -> Sequence[str]:
    if floor == "bu2td_converters":
        return UNDER_CONVERTERS
    return FLOORS[: FLOORS.index(floor)] if floor in FLOORS else FLOORS


def circles(house: House) -> list[str]:
    """Modules that import one another, directly or through others."""
    rings = networkx.strongly_connected_components(house.arrows)
    own = [f"{name} imports itself" for name in house.arrows if house.arrows.has_edge(name, name)]
    return sorted(own + [" <-> ".join(sorted(ring)) for ring in rings if len(ring) > 1])


def private_imports(house: House) -> list[str]:
    """Names with an underscore that another package imports, or reads off a module that it imports."""
    found = [
        f"{one.place} imports {one.name} of {one.target.name}"
        for one in house.imports
        if one.crosses and _is_private(one.name or one.target.name.rpartition(".")[2])
    ]
    for module in house.modules.values():
        modules = _module_names(module, house)
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and _is_private(node.attr):
                owner = modules.get(ast.unparse(node.value))
                if owner is not None and owner.floor != module.floor:
                    found.append(f"{module.place(node)} reads {node.attr} of {owner.name}")
    return found


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def _module_names(module: Module, house: House) -> dict[str, Module]:
    """What a module calls the modules that it imports."""
    names = {}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            source = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                if f"{source}{alias.name}" in house.modules:
                    names[alias.asname or alias.name] = house.modules[f"{source}{alias.name}"]
    return names


def imports_behind_faces(house: House) -> list[str]:
    """Imports of the inside of a stage from without."""
    return [
        f"{found.place} imports {found.target.name}, not bu2td.{found.target.floor}"
        for found in house.imports
        if found.crosses and found.target.floor in FACES and found.target.name.count(".") > 1
    ]


def met_strangers(house: House) -> list[str]:
    """Packages that reach, through whatever they import, one that they must know nothing of."""
    found = []
    for floor, strangers in STRANGERS.items():
        for module in house.on(floor):
            for name in sorted(networkx.descendants(house.arrows, module.name)):
                if house.modules[name].floor in strangers:
                    found.append(f"{module.name} reaches {name}")
    return found


# --- 4: frozen data -----------------------------------------------------------------------------------


def soft_data(house: House) -> list[str]:
    """Dataclasses of `bu2td.ir` that are not frozen, and their fields that can be changed in place."""
    found = []
    for module in house.on("ir"):
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ClassDef):
                continue
            decorators = [ast.unparse(d) for d in node.decorator_list if "dataclass" in ast.unparse(d)]
            if not decorators:
                continue
            if not any("frozen=True" in text for text in decorators):
                found.append(f"{module.place(node, node.name)} is not frozen")
            for line in node.body:
                if isinstance(line, ast.AnnAssign):
                    words = set(re.findall(r"\w+", ast.unparse(line.annotation)))
                    if words & {"dict", "list", "set", "Dict", "List", "Set", "bytearray"}:
                        found.append(f"{module.place(line, node.name)}: {ast.unparse(line)}")
    return found


# --- 6: small functions -------------------------------------------------------------------------------


def large_functions(house: House) -> list[str]:
    """Functions of more than `LINES` lines (the docstring is none) or `DECISIONS` decisions."""
    found = []
    for module in house.modules.values():
        for name, function in _functions(module):
            lines, decisions = count_lines(function), count_decisions(function)
            if (lines > LINES or decisions > DECISIONS) and f"{module.name}.{name}" not in LATER:
                found.append(f"{module.place(function, name)}: {lines} lines, {decisions} decisions")
    return found


def count_lines(function: Function) -> int:
    """Lines from ``def`` to the end, less those of the docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
    return lines


def count_decisions(function: Function) -> int:
    """The places where a run can go two ways: branches and loops as McCabe counts them.

    One for every if, elif, conditional expression, for, while, except, case, and for every comprehension with its
    condition. A condition counts once, however many ``and`` and ``or`` it has.
    """
    kinds = (ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler, ast.match_case, ast.comprehension)
    return sum(isinstance(node, kinds) for node in ast.walk(function))


# --- 7: knowledge of operations and libraries ---------------------------------------------------------


def worldly_names(house: House) -> list[str]:
    """Names of libraries, of their classes, and of families of models where nobody is to know them.

    Strings and identifiers are read; docstrings, and messages of an error, which may give an example, are not.
    """
    classes = library_classes(house)
    found = []
    for module in house.on(*BLIND):
        for node, text in _texts(module.tree):
            if text in dir(builtins):  # Exception holds the name of a family
                continue
            words, low = re.findall(r"\w+", text), text.lower()
            known = [name for name in (*LIBRARIES, *FAMILIES) if name in low]
            known += [name for name in classes if name in words]
            if known:
                found.append(f"{module.place(node)}: {text[:60]!r} ({', '.join(known)})")
    return found


def library_classes(house: House) -> list[str]:
    """The classes and functions of libraries that converters are registered for by name."""
    strings = [
        node.value
        for module in house.on("bu2td_converters")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    dotted = [s for s in strings if s.split(".")[0] in LIBRARIES and re.fullmatch(r"[\w.]+", s)]
    return sorted({s.rpartition(".")[2] for s in dotted if s.count(".") > 1} - _torch_names())


@cache
def _torch_names() -> set[str]:
    from torch import nn

    return {*dir(nn), *dir(nn.functional)}


def _texts(tree: ast.Module) -> Iterator[tuple[Any, str]]:
    """Strings and identifiers of a module with their nodes."""
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(node.value)  # a docstring
        elif isinstance(node, ast.Raise):
            skipped |= {n for n in ast.walk(node) if isinstance(n, ast.Constant)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node, node.value
        elif isinstance(node, ast.Name):
            yield node, node.id
        elif isinstance(node, ast.Attribute):
            yield node, node.attr
        elif isinstance(node, Function | ast.ClassDef):
            yield node, node.name
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            yield node, node.arg
        elif isinstance(node, ast.ImportFrom | ast.Import):
            yield node, f"{getattr(node, 'module', '')} {' '.join(alias.name for alias in node.names)}"


# --- what a stage says of itself ----------------------------------------------------------------------

CONTRACT = ("Needs:", "Returns:", "Guarantees:")


def unstated_contracts(house: House) -> list[str]:
    """Stages that do not say what they need, return and guarantee, and functions that say it in part."""
    found = []
    for floor, stage in STAGES.items():
        seen = False
        for module in house.on(floor):
            for name, function in _functions(module):
                text = ast.get_docstring(function) or ""
                seen |= name == stage
                if (name == stage or "Needs:" in text) and not all(word in text for word in CONTRACT):
                    found.append(f"{module.place(function, name)} does not state {', '.join(CONTRACT)}")
        if not seen:
            found.append(f"bu2td.{floor} has no function {stage}")
    return found


# --- 8: files -----------------------------------------------------------------------------------------


def unlisted_packages(house: House) -> list[str]:
    """Packages that pyproject.toml does not list, and those that it lists and nobody finds."""
    text = (house.root / "pyproject.toml").read_text()
    match = re.search(r"^packages = (\[.*?\])", text, re.DOTALL | re.MULTILINE)
    listed = set(ast.literal_eval(match[1])) if match else set()
    return sorted(listed ^ {name for name, module in house.modules.items() if module.is_package})


def untold_packages(house: House) -> list[str]:
    """Packages that CONTRIBUTING's section on the inside does not name."""
    text = (house.root / "CONTRIBUTING.md").read_text().partition("## Inside")[2]
    packages = {m.floor for m in house.modules.values() if m.is_package} - {"bu2td", "bu2td_converters"}
    return [f"CONTRIBUTING.md does not tell of {name}" for name in sorted(packages) if f"`{name}`" not in text]


def misplaced_tests(house: House) -> list[str]:
    """Packages without a folder of tests, and folders of tests without a package."""
    packages = {m.floor for m in house.modules.values() if m.is_package} - {"bu2td", "bu2td_converters"}
    tests = {file.parent for file in (house.root / "tests").rglob("test_*.py")} - {house.root / "tests"}
    folders = {folder.relative_to(house.root / "tests").parts[0] for folder in tests}
    missing = [f"tests/{name} holds no test" for name in sorted(packages - folders)]
    return missing + [f"tests/{n} tests no package" for n in sorted(folders - packages - set(BESIDE))]


#: Folders of tests that mirror no package of bu2td: converters lie beside it, and references are whole networks.
BESIDE = ("converters", "ecosystem", "reference")

RULES: tuple[Callable[[House], list[str]], ...] = (
    unknown_floors,
    upward_imports,
    circles,
    private_imports,
    imports_behind_faces,
    met_strangers,
    soft_data,
    large_functions,
    worldly_names,
    unstated_contracts,
    unlisted_packages,
    untold_packages,
    misplaced_tests,
)
