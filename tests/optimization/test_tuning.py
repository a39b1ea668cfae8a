"""Measured choices: what a stopwatch decides, what is taken back, what is kept, what is refused."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import unit
from reference.fill import fill as fill_in_place
from torch import Tensor, nn

import bu2td
from bu2td.errors import OptimizeError, OptionError
from bu2td.optimization import tuning
from bu2td.optimization.cost_model import DECLINED, MARGIN, Chooser
from bu2td.optimization.kernels import Layout, SplitMerge, UpsampledConv2d, WinogradConv2d, lay_out_weights
from bu2td.optimization.memory import Memory, cache_folder, place_key
from bu2td.optimization.places import Form, Place
from bu2td.optimization.rules import BY_MACHINE, RULES
from bu2td.optimization.stopwatch import Budget, Stopwatch
from bu2td.optimization.trials import trial

MODES = ("training", "inference")
CPU = torch.device("cpu")
WIDE = Place("winograd", 64, 64, (3, 3), (8, 8))


class Residual(nn.Module):
    """A block that strides: an up-block in the top-down network."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs))
        self.short = nn.Conv2d(inputs, outputs, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.short(x))


class Tiny(nn.Module):
    def __init__(self, first: int = 8, second: int = 32, third: int = 40) -> None:
        super().__init__()
        self.body = nn.Sequential(unit(3, first), Residual(first, second), Residual(second, third))
        self.classifier = nn.Linear(third, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(x).mean((2, 3)))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BU2TD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 16, 16)


@pytest.fixture
def network(images: Tensor) -> Any:
    made: Any = bu2td.convert(Tiny(), example_inputs=images, seed=0)
    fill_in_place(made)
    return made


class Told(Stopwatch):
    """A stopwatch that is told what it finds: of a place by its rule, of networks by the modules that they have."""

    def __init__(self, gains: dict[str, float], slow: tuple[type, ...] = (), fast: tuple[type, ...] = ()) -> None:
        super().__init__(CPU)
        self.gains, self.slow, self.fast = gains, slow, fast
        self.asked: list[str] = []

    def pair(self, old: Any, new: Any, rounds: int = 5) -> tuple[float, float]:
        self.asked.append(new.rule)
        return 1e-3, 1e-3 / self.gains.get(new.rule, 0.5)

    def rounds(self, steps: Any, rounds: int, sample: float = 0.0) -> dict[str, list[float]]:
        return {name: [self._time(step)] * 3 for name, step in steps.items()}

    def _time(self, step: Any) -> float:
        kinds = {type(module) for module in step.args[0].modules()}
        return (2.0 if kinds & {*self.slow} else 1.0) * (0.5 if kinds & {*self.fast} else 1.0)


def told(network: Any, mode: str, images: Tensor, watch: Told) -> tuple[Any, Any, Any]:
    task = tuning.Task(network, mode, images, {}, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "trial", lambda place, *rest: (place, place))
        return tuning.tuned(task, watch, Budget(1.0, lambda: 0.0))


def made(choose: Chooser) -> set[str]:
    return {rewrite.rule for rewrite in choose.made if rewrite.chosen}


# --- one place ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("times", "chosen"), [((2.0, 1.0), True), ((1.0, 0.99), False), ((1.0, 2.0), False)])
def test_a_measured_place_is_decided_by_its_times(times: tuple[float, float], chosen: bool) -> None:
    choose = Chooser("training", "cpu", tune="measure", clock=lambda place: times)
    assert choose("winograd", "a", place=WIDE) == chosen
    assert (choose.made[0].seconds, choose.made[0].reason) == (times, "measured")


def test_places_that_change_together_are_added_up() -> None:
    clock = {8: (1.0, 3.0), 16: (9.0, 2.0)}
    choose = Chooser("training", "cpu", tune="measure", clock=lambda place: clock[place.inputs])
    parts = [Place("channels_last", width, width, (3, 3), (8, 8)) for width in clock]
    assert choose("channels_last", "a", parts=parts)
    assert choose.made[0].seconds == (10.0, 5.0)


def test_without_a_time_the_model_decides() -> None:
    choose = Chooser("training", "cpu", tune="measure", clock=lambda place: None)
    model = Chooser("training", "cpu")
    assert choose("winograd", "a", place=WIDE) == model("winograd", "a", place=WIDE)
    assert choose.made == model.made


def test_off_leaves_to_the_machine_what_depends_on_it() -> None:
    choose = Chooser("training", "cpu", tune="off", rules={"merge": "always"})
    assert not choose("upsample_conv", "a", place=replace(WIDE, rule="upsample_conv", factor=2))
    assert choose("merge", "a", place=replace(WIDE, rule="merge", inputs=128, join="concat"))
    assert choose("schedule", "a")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("groups", [1, 4, 16])
@pytest.mark.parametrize(("rule", "factor"), [("upsample_conv", 2), ("merge", 2), ("merge", 1), ("winograd", 1)])
def test_both_forms_of_a_trial_compute_the_same(rule: str, factor: int, groups: int, mode: str) -> None:
    if rule != "upsample_conv" and groups > 1:
        pytest.skip("dense forms")
    join = "add_concat" if rule == "merge" else ""
    outputs = 8 if rule == "merge" else 16
    place = Place(rule, 16, outputs, (3, 3), (6, 4), groups, factor=factor, join=join, bias=True)
    old, new = trial(place, mode == "training", 2)
    torch.testing.assert_close(new(), old(), rtol=1e-4, atol=1e-5)


def test_the_model_leaves_alone_what_it_is_not_sure_of() -> None:
    """Independent measurements: 1.38 times as fast, 0.81, and a merge by a 1x1 convolution."""
    for width, side, batch, wanted in ((512, 14, 8, True), (128, 56, 4, False)):
        place = Place("winograd", width, width, (3, 3), (side, side))
        assert Chooser("training", "cpu", batch)("winograd", "a", place=place) == wanted
    choose = Chooser("inference", "cpu", 4)
    assert not choose("merge", "a", place=Place("merge", 768, 384, (1, 1), (7, 7), factor=2, join="add_concat"))
    assert choose.made[0].reason == "unsure"


def test_works_of_forms_are_those_of_the_derivations() -> None:
    """3x3 over an upsampled map: 16 of 36 multiplications; a 7x7 of 8 channels, by hand."""
    before, after = Place("upsample_conv", 8, 8, (3, 3), (7, 7), factor=2).forms(training=False)
    assert (before.macs, after.macs) == (14 * 14 * 9 * 64, 7 * 7 * 16 * 64)
    assert before.maps == 14 * 14 * 16
    assert after.maps == 7 * 7 * 8 + 14 * 14 * 8
    assert Form(3.0, 5.0, 7.0, 11.0).terms(2) == (1.0, 6.0, 10.0, 7.0, 22.0)


# --- the whole network --------------------------------------------------------------------------------

GAINS: dict[str, tuple[Callable[[frozenset[str]], float], tuple[str, ...] | None]] = {
    "all pays": (lambda declined: 1.5, ()),
    "the format does not": (lambda declined: 1.3 if "channels_last" in declined else 0.8, ("channels_last",)),
    "two do not": (lambda declined: 0.7 * 1.2 ** len(declined & {"merge", "winograd"}), ("merge", "winograd")),
    "only all of them together": (lambda declined: 1.1 if declined >= {*BY_MACHINE} else 0.9, BY_MACHINE),
    "nothing pays": (lambda declined: 0.9, None),
}


@pytest.mark.parametrize("case", GAINS)
def test_what_does_not_pay_is_taken_back(case: str) -> None:
    speed, expected = GAINS[case]

    def gain(old: Sequence[str] | None, new: Sequence[str]) -> float:
        return speed(frozenset(new)) / (1.0 if old is None else speed(frozenset(old)))

    groups = (*BY_MACHINE, "pool")
    declined, _ = tuning.settle(groups, gain)
    assert set(declined) == set(RULES if expected is None else expected)


def test_without_time_nothing_is_taken_back() -> None:
    assert tuning.settle(("merge",), lambda old, new: None) == ((), None)


def test_a_slow_network_keeps_what_went_in(network: Any, images: Tensor) -> None:
    """Every place gains alone, and the network as a whole loses: nothing is left of it."""
    watch = Told(dict.fromkeys(BY_MACHINE, 2.0))
    watch.rounds = lambda *rest, **more: {"old": [1.0], "new": [2.0]}  # type: ignore[method-assign]
    twin, choose, found = told(network, "training", images, watch)
    assert made(choose) == set()
    assert found.declined == tuple(RULES)
    assert {r.reason for r in choose.made if r.rule in BY_MACHINE} == {DECLINED}
    assert not {UpsampledConv2d, SplitMerge, WinogradConv2d, Layout} & {type(m) for m in twin.modules()}


def test_a_rule_that_is_slow_in_the_network_goes(network: Any, images: Tensor) -> None:
    watch = Told(dict.fromkeys(BY_MACHINE, 2.0), slow=(WinogradConv2d,), fast=(UpsampledConv2d,))
    _, choose, found = told(network, "training", images, watch)
    assert found.declined == ("winograd",)
    assert {"upsample_conv", "merge", "channels_last"} <= made(choose)
    assert found.seconds == (1.0, 0.5)


def test_every_shape_is_measured_once(network: Any, images: Tensor) -> None:
    watch = Told({})
    told(network, "training", images, watch)
    memory = Memory(CPU)
    assert len(memory.times) == len(watch.asked) > 5
    assert "upsample_conv" in watch.asked


# --- the real thing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_measured_and_measured_no_more(
    network: Any, images: Tensor, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "SECONDS", 60.0)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    fast = bu2td.optimize(network, mode, example_inputs=images)
    done = fast.optimization
    assert (done.tune, done.batch_size, done.image_size) == ("measure", 2, (16, 16))
    with torch.no_grad():
        expected, found = network.eval()(images), fast.eval()(images)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())

    def refuse(*args: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(tuning, "trial", refuse)
    monkeypatch.setattr(Stopwatch, "seconds", refuse)
    again = bu2td.optimize(network, mode, example_inputs=images)
    assert again.optimization == done
    bu2td.save(fast, tmp_path / "td.pt")
    monkeypatch.setenv("BU2TD_CACHE", str(tmp_path / "other"))
    loaded = bu2td.load(tmp_path / "td.pt", Tiny())
    assert loaded.optimization == done
    for name, module in fast.named_modules():
        assert type(loaded.get_submodule(name)).__name__ == type(module).__name__, name
    assert not (tmp_path / "other").exists()
    if done.seconds is not None:
        assert "the whole network, 2 images" in str(done)
    assert any(row["ms"] for row in done.rows())


# --- formats ------------------------------------------------------------------------------------------


def test_levels_have_formats_of_their_own(network: Any, images: Tensor, tmp_path: Path) -> None:
    """Coarse levels contiguous and the finest channels-last: the same step, files, checkpointing."""
    stages = network.stages.levels
    force = {stages[0].image: False, stages[1].image: True, stages[2].image: False}
    fast = bu2td.optimize(network, "training", force=force)
    assert sum(isinstance(m, Layout) for m in fast.modules()) == 2
    assert list(fast.state_dict()) == list(network.state_dict())
    seen: dict[str, bool] = {}
    for stage in fast.stages.levels:
        part = fast.get_submodule(stage.output)
        part.register_forward_hook(
            lambda m, a, y, name=stage.output: seen.update(
                {name: y.is_contiguous(memory_format=torch.channels_last)}
            )
        )
    network.train(), fast.train()
    for model in (network, fast):
        model(images).square().sum().backward()
    assert list(seen.values()) == [False, True, False]
    for (name, p), q in zip(network.named_parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-4, msg=name)
    plain = bu2td.optimize(network, "training", force=force)
    bu2td.save(plain, tmp_path / "td.pt")
    loaded = bu2td.load(tmp_path / "td.pt", Tiny())
    assert [n.name for n in loaded.graph.nodes] == [n.name for n in plain.graph.nodes]
    plain.set_grad_checkpointing(inside=True)
    plain.train()(images).sum().backward()
    plain.set_grad_checkpointing(False)
    assert {"compile", "export"} <= set(bu2td.verify(plain, full=True).checks)


def test_weights_lie_as_their_maps(network: Any, tmp_path: Path) -> None:
    given: Any = {"rules": {"channels_last": "always"}}
    lean = bu2td.optimize(network, "training", **given)
    weights = [p for p in lean.parameters() if p.dim() == 4 and min(p.shape) > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    plain = lean.to(memory_format=torch.contiguous_format)  # as docs/ecosystem.md says
    assert all(p.is_contiguous() for p in plain.parameters())
    never = bu2td.optimize(network, "training", rules={**given["rules"], "weights": "never"})
    assert all(p.is_contiguous() for p in never.parameters())
    lean = bu2td.optimize(network, "training", **given)
    bu2td.save(lean, tmp_path / "td.pt")
    again = bu2td.load(tmp_path / "td.pt", Tiny())
    for one, other in zip(lean.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


def test_a_model_decides_on_one_format(network: Any) -> None:
    """A sum over all convolutions is chosen where it gains, a single place only where that is sure."""
    formats = [r for r in bu2td.optimize(network, "training").optimization.rewrites if r.rule == "channels_last"]
    assert len({(r.gain, r.chosen) for r in formats}) == 1
    place = Place("channels_last", 64, 64, (3, 3), (28, 28))
    (one,), (many,) = (_decided("training", parts) for parts in ([place], [place] * 2))
    assert one.gain == pytest.approx(many.gain)
    assert 1 < many.gain < 1 / MARGIN
    assert (one.chosen, many.chosen) == (False, True)


def _decided(mode: str, parts: list[Place], norms: Sequence[tuple[int, int]] = ()) -> list[Any]:
    choose = Chooser(mode, "cpu", batch=8)
    choose("channels_last", "r1_image", parts=parts, norms=norms)
    return choose.made


def test_norms_over_few_channels_speak_against_channels_last() -> None:
    place = Place("channels_last", 64, 64, (3, 3), (28, 28))
    (plain,), (narrow,), (wide,) = (
        _decided("training", [place] * 2, norms) for norms in ([], [(6, 28 * 28)] * 200, [(64, 28 * 28)] * 200)
    )
    assert narrow.gain < 1 < plain.gain < wide.gain
    assert (plain.chosen, narrow.chosen, wide.chosen) == (True, False, True)


@pytest.mark.parametrize(("width", "chosen"), [(6, (False, "too narrow")), (16, (True, "cost model"))])
def test_channels_that_do_not_fill_vectors_stay_as_they_are(width: int, chosen: tuple[bool, str]) -> None:
    td = bu2td.convert(Tiny(width, width, width), example_inputs=torch.zeros(2, 3, 16, 16), seed=0)
    rewrites = bu2td.optimize(td, "training", batch_size=1).optimization.rewrites
    assert {(r.chosen, r.reason) for r in rewrites if r.rule == "channels_last"} == {chosen}


def test_weights_of_1x1_are_laid_out_too() -> None:
    """Behind a map that has no format of its own, such as a shuffled one, they decide on that of the result."""
    conv = nn.Conv2d(16, 8, 1)
    lay_out_weights(conv)
    assert conv(torch.rand(2, 16, 4, 4)).is_contiguous(memory_format=torch.channels_last)


def test_a_gpu_trains_without_more_calls() -> None:
    choose = Chooser("training", "cuda", batch=8)
    forms = Form(9e9), Form(4e9)
    assert not any(choose(rule, "a", *forms) for rule in ("upsample_conv", "merge", "winograd"))
    assert choose("channels_last", "a", parts=[Place("channels_last", 8, 8, (3, 3), (4, 4))])
    assert Chooser("inference", "cuda", batch=8)("upsample_conv", "a", *forms)


def test_files_of_one_format_still_have_it(network: Any) -> None:
    """Files of earlier versions name the pyramid, which means all levels."""
    from bu2td.optimization import retransform

    name = network.stages.pyramid
    done = bu2td.optimize(network, "training", rules=dict.fromkeys(RULES, "never")).optimization
    one = replace(done.rewrites[0], rule="channels_last", site=name, chosen=True)
    retransform(network, replace(done, rewrites=(one,)))
    assert network.get_submodule(name).channels_last is True


# --- what is kept -------------------------------------------------------------------------------------


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("BU2TD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "bu2td"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "bu2td"


def test_measurements_are_kept_apart_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Memory(CPU), Memory(CPU)
    keys = [
        place_key(WIDE, mode, batch, dtype)
        for mode in MODES
        for batch in (1, 2)
        for dtype in (torch.half, torch.float)
    ]
    keys += [place_key(replace(WIDE, last=False), "training", 1, torch.float)]
    assert len(set(keys)) == 9
    first.times[keys[0]], second.times[keys[1]] = (1.0, 2.0), (3.0, 4.0)
    first.write()
    second.write()
    assert Memory(CPU).times == {keys[0]: (1.0, 2.0), keys[1]: (3.0, 4.0)}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert Memory(CPU).times == {}


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", '{"format": "other"}', "\x00" * 9, "[" * 100000],
    ids=["empty", "cut", "list", "null", "number", "other", "zeros", "deep"],
)
def test_garbage_is_measured_again(text: str, cache: Path) -> None:
    memory = Memory(CPU)
    memory.times["a"] = (1.0, 2.0)
    memory.write()
    assert memory.file is not None
    memory.file.write_text(text)
    again = Memory(CPU)
    assert (again.times, again.networks) == ({}, {})
    again.times["b"] = (1.0, 2.0)
    again.write()
    assert Memory(CPU).times == {"b": (1.0, 2.0)}
    assert len(list(cache.iterdir())) == 1


def test_entries_that_make_no_sense_are_left_out() -> None:
    memory = Memory(CPU)
    memory.write()
    assert memory.file is not None
    data = json.loads(memory.file.read_text())
    data["times"] = {"a": [1, 2], "b": [1], "c": "no", "d": [0.0, 1.0], "e": [1.0, float("nan")], "f": [True, 1.0]}
    good = {"declined": ["merge"], "seconds": [1.0, 0.5], "batch": 2}
    data["networks"] = {"a": good, "b": {}, "c": {**good, "declined": "x"}, "d": {**good, "seconds": [1]}, "e": 3}
    memory.file.write_text(json.dumps(data))
    again = Memory(CPU)
    assert (set(again.times), again.networks) == ({"a"}, {"a": good})


def test_a_folder_that_is_none_keeps_nothing(cache: Path, network: Any, images: Tensor) -> None:
    cache.write_text("a file")
    _, choose, _ = told(network, "inference", images, Told({"upsample_conv": 2.0}))
    assert "upsample_conv" in made(choose)
    assert cache.read_text() == "a file"


def test_other_rules_are_another_network(network: Any, images: Tensor) -> None:
    task = tuning.Task(network, "training", images, {}, {})
    others = [
        replace(task, mode="inference"),
        replace(task, images=images[:1]),
        replace(task, rules={"merge": "never"}),
        replace(task, force={"r1_merge": True}),
        replace(task, network=bu2td.optimize(network, "training", rules={"upsample_conv": "always"})),
    ]
    assert len({task.key(), *(other.key() for other in others)}) == 6
    assert task.key() == replace(task, images=images * 2).key()


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tune": "mesure"}, "did you mean"),
        ({"tune": 7}, "must be one of"),
        ({"example_inputs": [1]}, "found list"),
        ({"example_inputs": torch.rand(3, 16, 16)}, r"found torch.float32 of shape \(3, 16, 16\)"),
        ({"example_inputs": torch.rand(2, 4, 16, 16)}, "images \\(N, 3, H, W\\)"),
        ({"example_inputs": torch.rand(0, 3, 16, 16)}, "images \\(N, 3, H, W\\)"),
        ({"example_inputs": torch.zeros(2, 3, 16, 16, dtype=torch.uint8)}, "torch.uint8"),
        ({"example_inputs": torch.rand(2, 3, 16, 16, device="meta")}, "on meta, the network on cpu"),
        ({"example_inputs": torch.rand(2, 3, 16, 16), "batch_size": 3}, "batch_size=3 contradicts"),
        ({"example_inputs": torch.rand(2, 3, 16, 16), "image_size": 32}, "image_size=.* contradicts"),
    ],
)
def test_bad_words_are_refused(network: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=f"(?i){said}"):
        bu2td.optimize(network, **options)


def test_images_that_cannot_be_trained_on_are_refused(network: Any) -> None:
    """A batch norm needs two values per channel, which one image of one pixel at the coarsest level has not."""
    with pytest.raises(OptimizeError, match=r"a step of training on images of shape \(1, 3, 4, 4\)"):
        bu2td.optimize(network, "training", example_inputs=torch.rand(1, 3, 4, 4))


def test_other_sizes_than_tuned_for(network: Any, images: Tensor) -> None:
    twin, _, _ = told(network, "inference", images, Told(dict.fromkeys(BY_MACHINE, 2.0)))
    other = torch.rand(3, 3, 23, 18)
    with torch.no_grad():
        torch.testing.assert_close(twin(other), network.eval()(other), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_measured_on_a_gpu(network: Any, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "SECONDS", 5.0)
    network, images = network.cuda(), images.cuda()
    for mode in MODES:
        done = bu2td.optimize(network, mode, example_inputs=images).optimization
        assert done.device == "cuda"
        assert any(rewrite.seconds for rewrite in done.rewrites)
