"""The house keeps its rules (`house` has them), and every rule notices what breaks it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import house
import pytest
from house import House

ROOT = Path(__file__).parents[1]

STAGE = '''
def {name}():
    """Do it.

    Needs: nothing.
    Returns: nothing.
    Guarantees: nothing.
    """
'''


def _packages(*names: str) -> str:
    return f"packages = {[*names, *(f'bu2td.{floor}' for floor in house.STAGES)]}\n"


#: A tree without a fault: the stages, data, operations, a converter, tests of every package.
SOUND = {
    **{f"bu2td/{name}/__init__.py": f"from bu2td.{name}.inside import {f}" for name, f in house.STAGES.items()},
    **{f"bu2td/{name}/inside.py": STAGE.format(name=f) for name, f in house.STAGES.items()},
    **{f"tests/{name}/test_{name}.py": "" for name in (*house.STAGES, "ir", "ops")},
    "bu2td/__init__.py": "from bu2td.conversion import convert",
    "bu2td/conversion.py": "from bu2td.analyse import analyse\n\ndef convert(): ...\n",
    "bu2td/errors.py": "class Bu2tdError(Exception): ...\n",
    "bu2td/io.py": "from bu2td.analyse import analyse",
    "bu2td/ir/__init__.py": "@dataclass(frozen=True)\nclass Plan:\n    widths: tuple[int, ...]\n",
    "bu2td/ops/__init__.py": "",
    "bu2td/ops/b.py": "from bu2td.ops.a import a",
    "bu2td/ops/c.py": "from bu2td.ops import b",
    "bu2td/ops/hints.py": "if TYPE_CHECKING:\n    from bu2td.io import load\nelse:\n    import bu2td.errors",
    "bu2td/ops/told.py": 'def told(x):\n    """Long.\n' + "    line\n" * 60 + '    """\n' + "    x = 1\n" * 50,
    "bu2td/analyse/words.py": "layers = ['Linear']",
    "bu2td/analyse/refuse.py": "raise Bu2tdError('try timm.create_model(\"resnet18\")')",
    "converters/conv.py": "from bu2td.ops import *",
    "converters/linear.py": "keys = 'timm.layers.DropPath', 'timm.layers.Linear', 'timm.layers'",
    "converters/__init__.py": "from bu2td_converters import conv, linear",
    "CONTRIBUTING.md": "## Inside\n" + ", ".join(f"`{name}`" for name in (*house.STAGES, "ir", "ops")),
    "pyproject.toml": _packages("bu2td", "bu2td_converters", "bu2td.ir", "bu2td.ops"),
}

LONG = "def long():\n" + "    x = 1\n" * 60
LONG_METHOD = "class A:\n    def long(self):\n" + "        x = 1\n" * 60
BRANCHY = "def branchy(x):\n" + "    x = 1 if x else 2\n" * 16
#: (rule, file, its text, what the rule says).
PLANTED = [
    (house.unknown_floors, "bu2td/attic.py", "", "attic"),
    (house.upward_imports, "bu2td/ir/plan.py", "from bu2td.conversion import convert", "bu2td.conversion"),
    (house.upward_imports, "bu2td/ir/plan.py", "def late():\n    import bu2td.analyse", "bu2td.analyse"),
    (house.upward_imports, "bu2td/ir/plan.py", "from ..conversion import convert", "bu2td.conversion"),
    (house.upward_imports, "converters/conv.py", "from bu2td.analyse import analyse", "bu2td.analyse"),
    (house.circles, "bu2td/ops/a.py", "from bu2td.ops.c import c", "a <-> bu2td.ops.b <-> bu2td.ops.c"),
    (house.circles, "bu2td/ops/a.py", "def late():\n    from bu2td.ops.b import b", "bu2td.ops.a <-> bu2td.ops.b"),
    (house.circles, "bu2td/ops/a.py", "import bu2td.ops.a", "itself"),
    (house.private_imports, "bu2td/io.py", "from bu2td.conversion import _build", "_build"),
    (house.private_imports, "bu2td/io.py", "from bu2td import conversion as c\nc._build()", "_build"),
    (house.private_imports, "bu2td/io.py", "import bu2td.conversion\nbu2td.conversion._build()", "_build"),
    (house.imports_behind_faces, "bu2td/io.py", "from bu2td.analyse.inside import analyse", "not bu2td.analyse"),
    (house.imports_behind_faces, "bu2td/io.py", "from bu2td.analyse import inside", "not bu2td.analyse"),
    (house.met_strangers, "bu2td/verification/inside.py", "from bu2td.arrange import arrange", "bu2td.arrange"),
    (house.met_strangers, "bu2td/verification/inside.py", "from bu2td.io import a", "reaches bu2td.analyse"),
    (house.soft_data, "bu2td/ir/a.py", "@dataclass\nclass A:\n    x: int", "is not frozen"),
    (
        house.soft_data,
        "bu2td/ir/a.py",
        "@dataclass(frozen=True)\nclass A:\n    x: tuple[dict[str, int], ...]",
        "dict",
    ),
    (house.large_functions, "bu2td/ops/a.py", LONG, "61 lines"),
    (house.large_functions, "bu2td/ops/a.py", LONG_METHOD, "A.long"),
    (house.large_functions, "bu2td/ops/a.py", BRANCHY, "16 decisions"),
    (house.worldly_names, "bu2td/analyse/a.py", "if name == 'resnet18': ...", "resnet"),
    (house.worldly_names, "bu2td/analyse/a.py", "is_dla = True", "dla"),
    (house.worldly_names, "bu2td/analyse/a.py", "def f(densenet=1): ...", "densenet"),
    (house.worldly_names, "bu2td/analyse/a.py", "import timm.layers as layers", "timm"),
    (house.worldly_names, "bu2td/analyse/a.py", "drops = ('DropPath',)", "DropPath"),
    (house.unstated_contracts, "bu2td/probe/inside.py", "def probe():\n    '''Needs: a. Returns: b.'''", "probe"),
    (house.unstated_contracts, "bu2td/probe/inside.py", "", "has no function probe"),
    (house.unstated_contracts, "bu2td/probe/a.py", "def part():\n    '''Needs: a.'''", "part"),
    (house.unlisted_packages, "bu2td/graph/__init__.py", "", "bu2td.graph"),
    (house.unlisted_packages, "pyproject.toml", "packages = []", "bu2td.ir"),
    (house.untold_packages, "bu2td/graph/__init__.py", "", "graph"),
    (house.untold_packages, "CONTRIBUTING.md", "`ir`\n## Inside\n`ops`", "ir"),
    (house.misplaced_tests, "bu2td/graph/__init__.py", "", "tests/graph"),
    (house.misplaced_tests, "tests/attic/test_attic.py", "", "tests/attic"),
]


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., House]:
    """Write a tree, by default the sound one, and read it."""

    def written(files: dict[str, str]) -> House:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return House(tmp_path)

    return written


@pytest.fixture(scope="module")
def this() -> House:
    return House(ROOT)


@pytest.mark.parametrize("rule", house.RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_the_rule(rule: Callable[[House], list[str]], this: House) -> None:
    found = rule(this)
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("rule", house.RULES, ids=lambda rule: rule.__name__)
def test_a_sound_tree_breaks_no_rule(rule: Callable[[House], list[str]], tree: Callable[..., House]) -> None:
    assert rule(tree(SOUND)) == []


@pytest.mark.parametrize(("rule", "file", "text", "said"), PLANTED)
def test_a_planted_violation_is_found(
    rule: Callable[[House], list[str]], file: str, text: str, said: str, tree: Callable[..., House]
) -> None:
    found = rule(tree({**SOUND, file: text}))
    assert any(said in line for line in found), found


def test_every_rule_has_a_planted_violation() -> None:
    assert {rule for rule, *_ in PLANTED} == set(house.RULES)


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
