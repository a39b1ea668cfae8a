"""The zoo: which models are in it, what a row says, and a sweep that can be stopped at any moment."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bu2td import cli, errors
from bu2td.models.libraries import LIBRARIES
from bu2td.options import ARRANGEMENTS
from bu2td.zoo import sweeps, zoo
from bu2td.zoo.limits import limited
from bu2td.zoo.zoo import Row, ZooModel

timm = pytest.importorskip("timm")
pytest.importorskip("torchvision")

ZOO = zoo.list_zoo()
ONE, TWO = ZooModel("test_byobnet", "byobnet"), ZooModel("test_resnet", "resnet")
STARTED = 120  # seconds that a process may take to show a first row


def row(model: str = "resnet18", arrangement: str = "td", status: str = "verified", **values: Any) -> Row:
    return Row(model, values.pop("family", "resnet"), arrangement, status, **values)


def plan(*relaxations: str, macs: int = 300) -> Any:
    """A plan of levels with bodies, one per (comma-separated) relaxation."""
    levels = [
        SimpleNamespace(source="r1", relaxations=tuple(t for t in text.split(",") if t != "none"))
        for text in relaxations
    ]
    return SimpleNamespace(
        levels=[*levels, SimpleNamespace(source=None, relaxations=())],
        ladder=(4, 1),
        widths=(8, 2),
        relaxations=[("r1", what) for level in levels for what in level.relaxations],
        cost=SimpleNamespace(parameters=30, macs=macs),
        bottom_up_cost=SimpleNamespace(parameters=20, macs=100),
        image_shape=(1, 3, 128, 128),
        notes=(),
    )


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Sweeps that convert nothing; returns the (model, arrangements) that they asked for."""
    asked: list[tuple[str, ...]] = []

    def convert_model(model: ZooModel, arrangements: Sequence[str], real: bool, timeout: float) -> list[Row]:
        asked.append((model.word, *arrangements))
        return [Row(model.word, model.family, name, "verified") for name in arrangements]

    monkeypatch.setattr(sweeps, "convert_model", convert_model)
    return asked


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run ``bu2td zoo`` in an empty folder; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        status = cli.main(["zoo", *words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


# --- selection ----------------------------------------------------------------------------------------


def test_the_zoo() -> None:
    words = [model.word for model in ZOO]
    assert len(set(words)) == len(words)
    torchvision = [model for model in ZOO if model.family.startswith("torchvision:")]
    assert len(torchvision) == 68
    assert {model.word.partition(":")[0] for model in torchvision} == {"torchvision"}
    if timm.__version__ == "1.0.31":
        assert len(ZOO) == 68 + 683
    else:
        assert len(ZOO) > 68 + 600
    assert {model.family for model in ZOO if model not in torchvision} == set(LIBRARIES[""].modules)


def test_select() -> None:
    assert zoo.select(ZOO) == ZOO
    vgg = zoo.select(ZOO, ["vgg", "torchvision:vgg"])
    assert {model.family for model in vgg} == {"vgg", "torchvision:vgg"}
    assert [model.word for model in zoo.select(ZOO, ["vgg"], ["vgg1?"])] == ["vgg11", "vgg13", "vgg16", "vgg19"]
    assert [model.word for model in zoo.select(ZOO, [], ["alexn", "test_byob*"])] == [
        "torchvision:alexnet",
        "test_byobnet",
    ]


@pytest.mark.parametrize("count", [1, 4, 7])
def test_shards_hold_every_model_once(count: int) -> None:
    shards = [zoo.select(ZOO, shard=(index, count)) for index in range(1, count + 1)]
    assert sorted(m.word for shard in shards for m in shard) == sorted(m.word for m in ZOO)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    titles = [library.title for library in LIBRARIES.values()]
    assert titles[:2] == list(zoo.DEFAULT_LIBRARIES)
    assert zoo.list_zoo(["timm"]) == [model for model in ZOO if ":" not in model.word]
    assert zoo.list_zoo(["timm", "torchvision", "timm"]) == [*ZOO[68:], *ZOO[:68]]
    assert ZooModel("bu2td:nin", "bu2td:nin") in zoo.list_zoo(["bu2td"])
    with pytest.raises(errors.OptionError, match=r"no library 'pytorchvc'\. Did you mean 'pytorchcv'"):
        zoo.list_zoo(["pytorchvc"])


def test_the_smallest_of_every_variant() -> None:
    """In the order of the zoo, families and variants complete."""
    found = zoo.list_zoo(smallest=True)
    assert found == [model for model in ZOO if model in set(found)]
    assert {model.family for model in found} == {model.family for model in ZOO}
    words = [model.word for model in found]
    assert {"vgg11", "vgg11_bn", "densenet121", "torchvision:resnet18", "torchvision:vgg11_bn"} <= set(words)
    assert not {"vgg13", "vgg19_bn", "densenet201", "torchvision:resnet34"} & set(words)
    assert len(words) < 0.7 * len(ZOO)


# --- what a row says ----------------------------------------------------------------------------------


def test_convert_model() -> None:
    rows = zoo.convert_model(TWO, ARRANGEMENTS)
    assert [(r.model, r.family, r.arrangement, r.status) for r in rows] == [
        ("test_resnet", "resnet", name, "verified") for name in ARRANGEMENTS
    ]
    td, uni, rev = rows
    assert td.bottom_up_widths == td.widths
    assert len(set(uni.widths.split()[: uni.levels])) == 1
    assert rev.widths.split()[: rev.levels] == td.widths.split()[: td.levels][::-1]
    assert td.ladder.split()[-1] == "1"
    assert td.feature_info == "same"
    assert all(r.real and r.seconds and r.parameters and r.macs_ratio and r.none == r.levels for r in rows)
    assert not zoo.convert_model(TWO, ["td"], real=False)[0].real


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.TopologyError("no trunk"), "refused"),
        (errors.VerificationError("no trunk"), "failed"),
        (errors.ConverterError("no trunk"), "failed"),
        (ZeroDivisionError("no trunk"), "failed"),
    ],
)
def test_refused_or_failed(monkeypatch: pytest.MonkeyPatch, error: Exception, status: str) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(zoo, "convert", fails)
    for found in zoo.convert_model(TWO, ["td", "rev"]):
        assert (found.status, found.cause, found.levels) == (status, type(error).__name__, 0)
        assert found.message.startswith("no trunk")
        assert ("test_zoo.py:" in found.message) == isinstance(error, ZeroDivisionError)


def test_refused_by_the_analysis(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(timm.__file__).parent / "layers" / "norm.py"

    def fails(*args: Any, **kwargs: Any) -> None:
        raise errors.CaptureError(f"control flow\n  at {file}:7")

    monkeypatch.setattr(zoo, "analyze", fails)
    rows = zoo.convert_model(TWO, ARRANGEMENTS)
    assert {(r.status, r.cause) for r in rows} == {("refused", "CaptureError")}
    assert {r.message for r in rows} == {f"control flow at {Path('timm', 'layers', 'norm.py')}:7"}


@pytest.mark.parametrize("slow", ["analyze", "convert"])
def test_what_never_ends_has_failed(monkeypatch: pytest.MonkeyPatch, slow: str) -> None:
    """Though it catches whatever is raised inside; the next arrangement goes on."""
    calls = []
    real = getattr(zoo, slow)

    def hangs(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) > 1:
            return real(*args, **kwargs)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with suppress(Exception):
                time.sleep(0.01)
        raise AssertionError("nobody stopped it")

    monkeypatch.setattr(zoo, slow, hangs)
    handler = signal.getsignal(signal.SIGALRM)
    found = zoo.convert_model(TWO, ["td", "uni"], real=False, timeout=5)
    if slow == "analyze":
        assert {(row.status, row.cause) for row in found} == {("failed", "Timeout")}
    else:
        assert [(row.status, row.cause) for row in found] == [("failed", "Timeout"), ("verified", "")]
    assert found[0].message.startswith("it took longer than 5 seconds")
    assert signal.getsignal(signal.SIGALRM) == handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_no_limit_outside_of_the_main_thread() -> None:
    """Alarms reach the main thread alone."""
    ended = []

    def work() -> None:
        with limited(0.01):
            time.sleep(0.1)
        ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    with limited(None):
        assert ended == [True]


def test_a_model_that_a_function_builds() -> None:
    built = zoo.convert_built(lambda: timm.create_model("test_resnet"), ZooModel("mine", "my own"), ["rev"], False)
    assert [(row.model, row.family, row.arrangement, row.status) for row in built] == [
        ("mine", "my own", "rev", "verified")
    ]

    def broken() -> Any:
        raise errors.UnknownModelError("no such thing")

    [row] = zoo.convert_built(broken, ZooModel("mine", "my own"), ["td"])
    assert (row.status, row.cause, row.message) == ("refused", "UnknownModelError", "no such thing")


@pytest.mark.parametrize("broken", ["logits", "gradient"])
def test_a_network_that_does_not_run_has_failed(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = torch.nn.Linear(3, 2), torch.nn.Linear(1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x.mean((2, 3))) / (0 if broken == "logits" else 1)

    def convert(*args: Any, **kwargs: Any) -> Network:
        network: Any = Network()
        network.plan = plan("none")
        return network

    monkeypatch.setattr(zoo, "convert", convert)
    [found] = zoo.convert_model(TWO, ["td"])
    assert (found.status, found.cause, found.real, found.levels) == ("failed", "ArithmeticError", False, 1)
    expected = "logits is not finite" if broken == "logits" else "gradient of unused.weight is missing"
    assert found.message.startswith(expected)


@pytest.mark.parametrize(("macs", "runs"), [(10**7, [64, 128]), (4 * 10**9, [])])
def test_a_network_that_is_small_enough_runs(macs: int, runs: list[int]) -> None:
    """This one is bound to its own size, 128x128."""
    sizes = []

    class Network(torch.nn.Linear):
        plan = plan("none", macs=macs)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(x.shape[-1])
            if sizes[-1] != 128:
                raise errors.ImageSizeError("bound")
            return super().forward(x.mean((2, 3)))

    network: Any = Network(3, 2, device="meta")
    assert zoo._runs(network) == (128 in runs)
    assert sizes == runs


def test_relaxations_are_counted_once_a_level() -> None:
    analysis: Any = SimpleNamespace(levels=[SimpleNamespace(width=8), SimpleNamespace(width=2)])
    mixed = ("none", "none", "regroup", "regroup,entry adapter", "entry and exit adapter", "frozen,regroup")
    found = zoo._measured(row(), analysis, plan(*mixed))
    counts = (found.none, found.regroup, found.entry_adapter, found.exit_adapter, found.frozen)
    assert (found.levels, counts) == (6, (2, 1, 1, 1, 1))
    assert found.relaxations.count("r1: ") == 6
    assert (found.parameters_ratio, found.macs_ratio) == (1.5, 3.0)
    assert (found.ladder, found.bottom_up_widths, found.widths) == ("4 1", "8 2", "8 2")


@pytest.mark.parametrize(
    ("info", "says"),
    [
        (None, ""),
        ([(2, 16), (4, 32)], "same"),
        ([(2, 16), (4, 24)], "r4: 32 here, 24 there"),
        ([(2, 16), (4, 32), (8, 64)], "r8: only there"),
        ([(4, 32)], "r2: only here"),
        ([(2, 16), (4, 96)], "same, head conv counted there"),
        ([(2, 8), (8, 64)], "r2: 16 here, 8 there; r8: only there; r4: only here"),
    ],
)
def test_comparison_with_feature_info(info: Any, says: str) -> None:
    source = SimpleNamespace()
    if info is not None:
        source.feature_info = [{"reduction": r, "num_chs": width, "module": ""} for r, width in info]
    r4, r2, r1 = (SimpleNamespace(reduction=r, width=width) for r, width in ((4, 32), (2, 16), (1, 16)))
    head = SimpleNamespace(convs=[SimpleNamespace(width=96)])
    capture = SimpleNamespace(source=source)
    analysis: Any = SimpleNamespace(capture=capture, levels=[r4, r2, r1], bodies=[r4, r2], head=head)
    assert zoo.compare_feature_info(analysis) == says


# --- rows in files ------------------------------------------------------------------------------------

ODD = row(
    arrangement="uni",
    status="refused",
    cause="TopologyError",
    message='a "quoted", comma; two\nlines, déjà vu',
    levels=3,
    macs=10**13,
    macs_ratio=0.125,
    real=True,
    seconds=1.5,
)


def test_rows_survive_the_file(tmp_path: Path) -> None:
    file = tmp_path / "zoo.csv"
    sweeps.write_rows(file, [ODD, row()], {"seed": 0})
    assert sweeps.read_rows(file) == [ODD, row()]
    document = json.loads(file.with_suffix(".json").read_text())
    assert document == {"about": {"seed": 0}, **sweeps.summarise([ODD, row()])}
    file.write_text(file.read_text() * 2)  # two tables, one behind the other
    assert sweeps.read_rows(file) == [ODD, row()] * 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: "a thesis\n",
        lambda text: text[: len(text) - 8],
        lambda text: text.replace("verified", "splendid"),
        lambda text: text.replace(",td,", ",dt,"),
        lambda text: text.replace("False", "no"),
        lambda text: text[:-1] + ",more\n",
        lambda text: text.replace("model,", "modell,"),
    ],
)
def test_a_file_that_is_no_sweep(tmp_path: Path, spoil: Callable[[str], str]) -> None:
    file = tmp_path / "zoo.csv"
    sweeps.write_rows(file, [row()], {})
    file.write_text(spoil(file.read_text()))
    before = file.read_bytes()
    with pytest.raises(errors.FileError, match="not a table of bu2td zoo"):
        next(sweeps.sweep([ONE], file=file, resume=True))
    assert file.read_bytes() == before


# --- the summary --------------------------------------------------------------------------------------


def test_summary() -> None:
    four = {"levels": 4, "none": 3, "regroup": 1, "real": True, "seconds": 2.4}
    rows = [
        row("a", macs_ratio=2.0, feature_info="same", **four),
        row("a", "rev", feature_info="same", levels=4, none=4, seconds=3.0),
        row("b", macs_ratio=5.0, feature_info="r2: only here", levels=6, none=6, seconds=3.0),
        row("b", "rev", "failed", feature_info="r2: only here", cause="VerificationError", message="m", levels=6),
        row("c", status="refused", cause="TopologyError", family="hrnet"),
        row("c", "rev", "refused", cause="TopologyError", family="hrnet"),
    ]
    found = sweeps.summarise(rows)
    td, rev = found["arrangements"]
    assert td == {
        **{"arrangement": "td", "models": 3, "verified": 2, "refused": 1, "failed": 0, "ran": 1, "levels": 10},
        **{"none": 9, "regroup": 1, "none %": 90.0, "seconds": 5},
        **dict.fromkeys(("entry adapter", "exit adapter", "frozen"), 0),
    }
    assert (rev["verified"], rev["refused"], rev["failed"], rev["levels"], rev["none %"]) == (1, 1, 1, 4, 100.0)
    hrnet, resnet = found["families"]
    assert (hrnet["family"], hrnet["models"], hrnet["td"], hrnet["causes"]) == ("hrnet", 1, 0, "TopologyError")
    assert (resnet["models"], resnet["td"], resnet["uni"], resnet["rev"]) == (2, 2, 0, 1)
    assert (resnet["MACs ratio td"], resnet["none %"]) == (3.5, 92.9)
    assert found["causes"] == [
        {"status": "failed", "cause": "VerificationError", "networks": 1},
        {"status": "refused", "cause": "TopologyError", "networks": 2},
    ]
    assert found["feature_info"] == [{"same": 1, "head conv": 0, "different": 1, "none": 1}]
    assert [(r["model"], r["arrangement"], r["message"]) for r in found["failed"]] == [("b", "rev", "m")]
    text = sweeps.describe(found)
    assert [part.partition("\n")[0] for part in text.split("\n\n")][-1] == "arrangements"
    assert "b      rev          VerificationError  m" in text
    assert "failed\n" not in sweeps.describe(sweeps.summarise(rows[:1]))


# --- sweeps -------------------------------------------------------------------------------------------


def test_a_sweep_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two real models; the row that is there already is kept as it is, and only the others are run."""
    file = tmp_path / "zoo.csv"
    old = row(TWO.word, "uni", message="of an older version")
    sweeps.write_rows(file, [old], {})
    asked = []
    convert_model = zoo.convert_model

    def counted(model: ZooModel, arrangements: Sequence[str], real: bool, timeout: float) -> list[Row]:
        asked.append((model.word, *arrangements))
        return convert_model(model, arrangements, real, timeout)

    monkeypatch.setattr(sweeps, "convert_model", counted)
    steps = list(sweeps.sweep([TWO, ONE], file=file, resume=True, real=False))
    assert asked == [("test_resnet", "td", "rev"), ("test_byobnet", "td", "uni", "rev")]
    assert [(count, total, len(rows)) for count, total, rows in steps] == [(0, 2, 1), (1, 2, 3), (2, 2, 6)]
    rows = steps[-1][2]
    in_order = [(model.word, name) for model in (ONE, TWO) for name in ARRANGEMENTS]
    assert [(r.model, r.arrangement) for r in rows] == in_order  # of the zoo, not of the sweep
    assert sweeps.read_rows(file) == rows
    assert old in rows
    assert {r.status for r in rows} == {"verified"}
    about = json.loads(file.with_suffix(".json").read_text())["about"]
    assert (about["timm"], about["seed"], about["real"]) == (timm.__version__, 0, None)
    assert [(count, total) for count, total, _ in sweeps.sweep([TWO, ONE], file=file, resume=True)] == [(0, 0)]


def test_fresh_and_resumed(tmp_path: Path, done: list[tuple[str, ...]]) -> None:
    file = tmp_path / "zoo.csv"
    sweeps.write_rows(file, [ODD, replace(ODD, model="from elsewhere")], {})
    with pytest.raises(errors.FileError, match="--resume"):
        next(sweeps.sweep([ONE], file=file))
    assert sweeps.read_rows(file) == [ODD, replace(ODD, model="from elsewhere")]
    *_, (_, _, rows) = sweeps.sweep([ONE], ["td"], file=file, resume=True)
    assert [r.model for r in rows] == ["from elsewhere", ONE.word, "resnet18"]
    *_, (_, _, rows) = sweeps.sweep([ONE], ["rev"], file=file, fresh=True)
    assert [(r.model, r.arrangement) for r in rows] == [(ONE.word, "rev")]
    assert done == [(ONE.word, "td"), (ONE.word, "rev")]


@pytest.mark.slow
def test_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are renewed; the death of one ends the sweep, and leaves whole files to go on with."""
    monkeypatch.setattr(sweeps, "_MODELS_PER_WORKER", 2)
    file = tmp_path / "zoo.csv"
    models = zoo.select(ZOO, matches=["test_*"])
    steps = sweeps.sweep(models, ["td"], file=file, jobs=2, real=False)
    assert [len(rows) for _, _, rows in islice(steps, 5)] == [0, 1, 2, 3, 4]
    used = set(multiprocessing.active_children())
    _, _, first = next(steps)
    working = multiprocessing.active_children()
    assert not used.intersection(working)
    working[0].kill()
    with pytest.raises(errors.Bu2tdError, match=r"killed .* test_.* or test_.*--resume"):
        list(steps)
    end = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.02)
    assert not multiprocessing.active_children()
    kept = sweeps.read_rows(file)
    assert set(first) <= set(kept)
    assert len(kept) < len(models)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_killed_sweep_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "zoo.csv"
    words = [sys.executable, "-m", "bu2td", "zoo", "--match", "test_convnext*", "--no-real", "-o", str(file)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    end = time.monotonic() + STARTED
    while not (file.exists() and sweeps.read_rows(file)) and time.monotonic() < end:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    models = zoo.select(ZOO, matches=["test_convnext*"])
    kept = sweeps.read_rows(file)
    assert 0 < len(kept) < 3 * len(models)
    *_, (_, _, rows) = sweeps.sweep(models, file=file, resume=True, real=False)
    assert rows == sweeps.read_rows(file)
    assert [(r.model, r.arrangement) for r in rows] == [(m.word, a) for m in models for a in ARRANGEMENTS]
    assert rows[: len(kept)] == kept


# --- the command line ---------------------------------------------------------------------------------


def test_command(run: Any, done: list[tuple[str, ...]], tmp_path: Path) -> None:
    status, out, err = run("--match", "test_resnet", "--match", "test_byobnet", "--arrangement", "td", "rev")
    assert status == 0
    assert out.startswith("families\nfamily ")
    assert out.endswith("written to zoo.csv and zoo.json\n")
    assert "2/2" in err
    assert done == [("test_byobnet", "td", "rev"), ("test_resnet", "td", "rev")]
    status, out, _ = run("--family", "vgg", "--match", "vgg11", "--shard", "2/2", "--resume", "--json")
    assert (status, done[2:]) == (0, [("vgg11_bn", *ARRANGEMENTS)])
    assert json.loads(out) == json.loads(Path("zoo.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["zoo.csv", "zoo.json"]


def test_command_for_other_libraries(run: Any, done: list[tuple[str, ...]], tmp_path: Path) -> None:
    status, _, err = run(
        "--library", "bu2td", "torchvision", "--match", "nin", "vgg", "--smallest", "--timeout", "9"
    )
    assert status == 0, err
    words = ["bu2td:nin_light", "bu2td:nin", "torchvision:vgg11", "torchvision:vgg11_bn"]
    assert [asked[0] for asked in done] == words
    about = json.loads(Path("zoo.json").read_text())["about"]
    assert (about["timeout"], "timm" in about, "torchvision" in about) == (9, False, True)
    rows = sweeps.read_rows(Path("zoo.csv"))
    assert [row.model for row in rows[::3]] == [*words[2:], *words[:2]]  # the order of libraries


def test_rows_of_other_libraries_stay_in_their_order(tmp_path: Path, done: list[tuple[str, ...]]) -> None:
    file = tmp_path / "zoo.csv"
    old = [row(name, arrangement) for name in ("torchvision:vgg11", "vgg11") for arrangement in ARRANGEMENTS]
    sweeps.write_rows(file, old, {})
    *_, (_, _, rows) = sweeps.sweep([ZooModel("bu2td:nin", "bu2td:nin")], file=file, resume=True)
    assert rows[:6] == old
    assert [found.model for found in rows[6:]] == ["bu2td:nin"] * 3


def test_command_without_tqdm(run: Any, done: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    status, _, err = run("--match", "test_resnet", "-o", "other.csv")
    assert (status, err, len(done)) == (0, "", 1)


@pytest.mark.parametrize(("error", "expected"), [(errors.TopologyError("t"), 0), (ZeroDivisionError("z"), 1)])
def test_exit_status(run: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: int) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(zoo, "convert", fails)
    status, out, _ = run("--match", "test_resnet")
    assert (status, type(error).__name__ in out) == (expected, True)


def test_interrupted(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(model: ZooModel, arrangements: Sequence[str], real: bool, timeout: float) -> list[Row]:
        if model == TWO:
            raise KeyboardInterrupt
        return [row(model.word)]

    monkeypatch.setattr(sweeps, "convert_model", interrupted)
    status, out, _ = run("--match", ONE.word, TWO.word)
    assert (status, out) == (130, "")
    assert [r.model for r in sweeps.read_rows(Path("zoo.csv"))] == [ONE.word]


WRONG: dict[str, tuple[tuple[str, ...], str, str]] = {
    "family": (("--family", "resnt"), "OptionError", "Did you mean 'resnet'"),
    "family of torchvision": (("--family", "alexnet"), "OptionError", "Did you mean 'torchvision:alexnet'?"),
    "strange family": (("--family", "?"), "OptionError", "It has byoanet, byobnet"),
    "library": (("--library", "pytorchvc"), "OptionError", "Did you mean 'pytorchcv'"),
    "timeout": (("--timeout", "0"), "OptionError", "timeout=0 must be more than 0"),
    "match": (("--match", "resnett"), "OptionError", "no model of the zoo matches 'resnett'"),
    "shard": (("--shard", "5/3"), "OptionError", "no shard 5/3; shards are 1/3 to 3/3"),
    "no shards": (("--shard", "0/0"), "OptionError", "no shard 0/0"),
    "arrangement": (("--arrangement", "tdd"), "OptionError", "Did you mean 'td'?"),
    "widths": (("--arrangement", "8,4"), "OptionError", "It knows td, uni, rev."),
    "jobs": (("--jobs", "0"), "OptionError", "jobs=0 must be at least 1"),
    "suffix": (("-o", "zoo.json"), "OptionError", "must end in .csv"),
    "folder": (("-o", "nowhere/zoo.csv"), "FileError", "no folder nowhere"),
    "a folder": (("-o", "."), "FileError", "is a folder"),
    "not writable": (("-o", "/proc/zoo.csv"), "FileError", "/proc/zoo.csv cannot be written"),
    "there already": (("-o", "there.csv"), "FileError", "--fresh"),
    "not a sweep's": (("-o", "there.csv", "--resume"), "FileError", "not a table of bu2td zoo"),
}


@pytest.mark.parametrize(("words", "error", "says"), WRONG.values(), ids=WRONG)
def test_errors(
    run: Any, done: list[tuple[str, ...]], tmp_path: Path, words: tuple[str, ...], error: str, says: str
) -> None:
    """One line and status 2, before any model is built and without touching a file."""
    if words[-1].startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("no /proc here")
    Path("there.csv").write_text("a thesis")
    status, out, err = run(*words)
    assert (status, out, done) == (2, "", [])
    assert err.startswith(f"bu2td: {error}: ")
    assert err.count("\n") == 1
    assert says in err
    assert [path.name for path in tmp_path.iterdir()] == ["there.csv"]
    assert Path("there.csv").read_text() == "a thesis"


def test_missing_package(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    status, out, err = run()
    assert (status, out) == (2, "")
    assert err.startswith("bu2td: MissingPackageError: ")
