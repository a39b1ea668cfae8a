"""The paper's networks: golden parameter counts, golden pyramid, function equal to hand-written references."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from nets import REWRITTEN, FlatResNet, convert_baseline, parameters
from reference import paper
from reference.fill import fill, picture
from torch import nn

from bu2td.models import baselines

GOLDENS = Path(__file__).parent / "goldens"
COUNTS = {k: v for k, v in json.loads((GOLDENS / "parameters.json").read_text()).items() if k[0] != "_"}
NETWORKS = [
    (name, "td" if key.startswith("td") else key) for name, row in COUNTS.items() for key in row if key != "bu"
]


def difference(network: nn.Module, reference: nn.Module, shape: tuple[int, int, int]) -> float:
    """Largest difference of the logits, in eval mode, with all weights a function of kind and shape."""
    fill(network.eval())
    fill(reference.eval())
    images = picture(2, *shape)
    with torch.no_grad():
        return float((network(images) - reference(images)).abs().max())


@pytest.mark.parametrize("name", COUNTS)
def test_bottom_up_parameters(name: str) -> None:
    assert parameters(getattr(baselines, name)()) == COUNTS[name]["bu"]


@pytest.mark.parametrize(("name", "arrangement"), NETWORKS)
def test_top_down_parameters(name: str, arrangement: str) -> None:
    key = next(k for k in COUNTS[name] if k.startswith(arrangement))
    network = convert_baseline(name, arrangement, device="meta")
    assert parameters(network) == COUNTS[name][key]
    assert network.plan.relaxations == ()


def test_there_are_eighteen_golden_numbers() -> None:
    assert sum(len(row) for row in COUNTS.values()) == 18
    assert len(NETWORKS) == 13


@pytest.mark.parametrize(("name", "arrangement"), NETWORKS)
def test_function_equals_reference(name: str, arrangement: str) -> None:
    network, reference = convert_baseline(name, arrangement), paper.build(name, arrangement)
    channels, height, width = baselines.INPUT_SIZES[name]
    assert difference(network, reference, (channels, height, width)) < 1e-5
    assert difference(network, reference, (channels, 37, 45)) < 1e-5


@pytest.mark.parametrize(
    ("name", "arrangement", "mutant"), [(n, a, m) for n, a in NETWORKS if n != "nin" for m in paper.mutants(n, a)]
)
def test_the_comparison_notices_mutants(name: str, arrangement: str, mutant: str) -> None:
    network, reference = convert_baseline(name, arrangement), paper.build(name, arrangement, mutant)
    assert difference(network, reference, baselines.INPUT_SIZES[name]) > 1e-3


def test_every_mutant_is_tried() -> None:
    assert set(paper.MUTANTS) == {m for n, a in NETWORKS if n != "nin" for m in paper.mutants(n, a)}
    assert len(paper.MUTANTS) == 8


@pytest.mark.parametrize("arrangement", ["td", "uni", "rev"])
@pytest.mark.parametrize("writing", REWRITTEN)
def test_other_ways_of_writing(writing: str, arrangement: str) -> None:
    name, build = REWRITTEN[writing]
    if name == "resnet18_imagenette" and arrangement != "td":
        pytest.skip("the paper has this network in td only")
    network = convert_baseline(name, arrangement, build())
    assert difference(network, paper.build(name, arrangement), baselines.INPUT_SIZES[name]) < 1e-5


@pytest.mark.parametrize("arrangement", ["td", "uni", "rev"])
@pytest.mark.parametrize(("widths", "blocks"), [((8, 12, 20), 2), ((24, 24), 3), ((6, 10, 14, 22), 1)])
def test_other_widths_and_depths(widths: tuple[int, ...], blocks: int, arrangement: str) -> None:
    """Two writings of one network give one top-down network, whose parameters follow from the rules."""
    nested = convert_baseline("resnet32", arrangement, baselines.PreActResNet(widths, blocks, stem_width=widths[0]))
    flat = convert_baseline("resnet32", arrangement, FlatResNet(widths, blocks))
    assert difference(nested, flat, (3, 32, 32)) < 1e-6
    given = {
        "td": list(reversed(widths)),
        "rev": list(widths),
        "uni": [widths[(len(widths) - 1) // 2]] * len(widths),
    }[arrangement]
    assert list(nested.plan.widths) == given
    assert parameters(nested) == _preactivation_count(given, blocks)


def _preactivation_count(widths: list[int], blocks: int) -> int:
    """Parameters of a pre-activation top-down ResNet, level widths coarse to fine, by section 3 of the rules."""

    def conv(inputs: int, outputs: int, kernel: int) -> int:
        return kernel * kernel * inputs * outputs + outputs

    def block(inputs: int, outputs: int) -> int:
        count = 2 * inputs + conv(inputs, outputs, 3) + 2 * outputs + conv(outputs, outputs, 3)
        return count + (conv(inputs, outputs, 1) if inputs != outputs else 0)

    first = widths[0]
    count = conv(3, first, 3) + blocks * block(first, first)
    for before, width in itertools.pairwise(widths):
        merge = conv(3, width, 3) + 2 * (2 * width) + conv(2 * width, width, 3)
        count += block(before, width) + merge + (blocks - 1) * block(width, width)
    return count + 2 * widths[-1] + widths[-1] * 10 + 10


def test_dropouts_follow_the_merges() -> None:
    network = convert_baseline("nin_light", "td", device="meta")
    dropouts = [name for name, m in network.named_modules() if isinstance(m, nn.Dropout)]
    assert dropouts == ["r2_dropout", "r1_dropout"]


def test_lenet_first_unit_exists_twice() -> None:
    network = convert_baseline("lenet_fc", "td", device="meta")
    assert tuple(network.r1_lateral.conv.weight.shape) == (6, 1, 5, 5)
    assert tuple(network.get_parameter("r1.unit1.0.weight").shape) == (6, 6, 5, 5)
    assert [network.get_submodule(f"r{r}_lateral.conv").kernel_size for r in (2, 1)] == [(5, 5), (5, 5)]
    assert network.get_submodule("r4.unit3.0").kernel_size == (3, 3)


# --- the pyramid --------------------------------------------------------------------------------------
