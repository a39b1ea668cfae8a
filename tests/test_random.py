"""Random networks of the grammar: each converts, or is refused with a cause that the errors list."""

from typing import Any

import pytest
import torch
from grammar import REFUSALS, Seeded, Spec, build, draw_spec, ladder, spec_of, specs
from hypothesis import HealthCheck, Phase, given, settings

import bu2td
from bu2td.options import ARRANGEMENTS

#: Seeds whose networks are converted one by one, and how many of the conversions may be refused.
SEEDS, REFUSED = range(30), 0.05

#: Networks that are also run on real tensors: seed -> arrangement.
RUN = {seed: ARRANGEMENTS[seed % 3] for seed in range(100, 109)}


def analysis_of(spec: Spec, device: str = "meta") -> bu2td.Analysis:
    return bu2td.analyze(build(spec, device), example_inputs=torch.empty(2, *spec["image"], device="meta"))


def converted(analysis: bu2td.Analysis, arrangement: str, device: str = "meta") -> bu2td.TopDownNetwork:
    return bu2td.convert(analysis, arrangement, device=device, max_macs_ratio=None, seed=0)


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # add Phase.shrink for a smaller network, which takes minutes
)
@given(specs())
def test_every_network_converts_or_is_refused(spec: Spec) -> None:
    """Every conversion verifies itself; a `VerificationError` is none of the refusals."""
    try:
        analysis = analysis_of(spec)
    except REFUSALS:
        return
    assert analysis.ladder == ladder(spec)
    for arrangement in ARRANGEMENTS:
        try:
            network = converted(analysis, arrangement)
        except REFUSALS:
            continue
        assert network.plan.ladder == ladder(spec)


def test_few_are_refused() -> None:
    causes: list[Any] = []
    for seed in SEEDS:
        try:
            spec = spec_of(seed)
            analysis = analysis_of(spec)
        except REFUSALS as error:
            causes += [(seed, repr(error))] * len(ARRANGEMENTS)
            continue
        assert analysis.ladder == ladder(spec)
        for arrangement in ARRANGEMENTS:
            try:
                assert converted(analysis, arrangement).plan.ladder == ladder(spec)
            except REFUSALS as error:
                causes.append((seed, arrangement, repr(error)))
    assert len(causes) <= REFUSED * len(SEEDS) * len(ARRANGEMENTS), causes


@pytest.mark.parametrize("seed", RUN)
def test_converted_networks_run_and_learn(seed: int) -> None:
    spec = spec_of(seed)
    network = converted(analysis_of(spec), RUN[seed], device="cpu")
    channels, height, width = spec["image"]
    for size in ((height, width), (height + 3, width + 6)):
        logits = network(torch.rand(2, channels, *size))
        assert logits.shape == (2, 10)
        assert torch.isfinite(logits).all()
        network.zero_grad()
        (logits * torch.linspace(-1, 1, 10)).sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def test_a_seed_is_a_network() -> None:
    """The same seed gives the same spec, and a spec that was printed and read back gives the same network."""
    import ast

    for seed in range(20):
        spec = spec_of(seed)
        assert spec == draw_spec(Seeded(seed)) == ast.literal_eval(repr(spec))
        first, second = build(spec).state_dict(), build(ast.literal_eval(repr(spec))).state_dict()
        assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in second.items()}
    assert len({repr(spec_of(seed)) for seed in range(200)}) == 200
