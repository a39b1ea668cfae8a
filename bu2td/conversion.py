"""From a bottom-up network to its top-down network: the public functions, and the stages in their order."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, fx, nn

from bu2td.analyse import analyse
from bu2td.arrange import arrange
from bu2td.capture import capture
from bu2td.errors import Bu2tdError, CostError, NotAModelError, OptionError, PretrainedWarning
from bu2td.graph import flatten, owner_of, paused_collector, shapes_of, undisturbed
from bu2td.ir import Analysis, Cost, Plan, Stages, format_table
from bu2td.measure import measure_cost, signs_of_training, total
from bu2td.models import origin_of
from bu2td.nn import Reducer, UpsampleMode
from bu2td.options import Arrangement, Inherit, Merging, Options, Stem, as_device, as_sequence, suggests_names
from bu2td.probe import probe
from bu2td.rewrite import MapLimit, inherit_matching, initialise, matching_share, rewrite
from bu2td.runtime import FeatureNetwork, PixelNetwork, Recipe, Record, TopDownNetwork, described
from bu2td.verification import Beside, Expectation, LevelClaim, Measured, Report, verify_graph, verify_numbers

_NAMED = 6  # layers of a kind that a note names


@undisturbed()
def analyze(model: nn.Module, *, example_inputs: Tensor | None = None) -> Analysis:
    """Find the levels of a bottom-up network without converting it.

    Args:
        model: a live network that maps one image batch (N, C, H, W) to logits (N, classes).
        example_inputs: an image batch; by default the size in the model's own configuration, else
            1 x C x 224 x 224 with the channels of its first convolution.

    Returns:
        An `Analysis`; ``str()`` of it is a table, and `convert` takes it in place of the model.

    Raises:
        Bu2tdError: one of the subclasses in `bu2td.errors` that name a cause in the model.
    """
    with paused_collector():
        captured = capture(model, example_inputs)
        return analyse(captured, probe(captured))


@suggests_names
@undisturbed()
def convert(
    model: nn.Module | Analysis,
    arrangement: Arrangement | Sequence[int] = "td",
    *,
    width: int | None = None,
    stem: Stem = "mirror",
    reductions: Sequence[int] | None = None,
    finest_reduction: int = 1,
    upsample: UpsampleMode = "nearest",
    merge: Merging = "add_concat",
    merge_kernel: int = 3,
    pyramid: Reducer = "gaussian",
    sigma: float = 0.5,
    inherit: Inherit | None = None,
    example_inputs: Tensor | None = None,
    device: str | torch.device | None = None,
    seed: int | None = None,
    max_macs_ratio: float | None = 64.0,
) -> TopDownNetwork:
    """Convert a bottom-up network into its top-down network (Lelekas et al., 2020, section 3).

    Args:
        model: a live network, or the `Analysis` of one; it is never changed.
        arrangement: "td" (levels keep their widths), "uni" (one width), "rev" (levels in bottom-up order of
            widths and depths), or a list of level widths, coarse to fine.
        width: the common width of "uni"; by default that of the middle level with a body.
        stem: "mirror" mirrors the stem's reductions at the fine end; "coarse" turns every stride of the stem
            into an upsampling and merge at the coarsest stage's width, before the stages.
        reductions: the reductions to keep, out of the network's ladder.
        finest_reduction: where to stop; 1 ends at image size. Cost grows fourfold per level.
        upsample: "nearest", "bilinear" or "transpose" (learned).
        merge: "add_concat" (conv over cat(x + lateral, lateral)), "add" or "concat".
        merge_kernel: kernel of the merge's convolution, odd.
        pyramid: "gaussian", "strided", "max", "max_blur" or "average".
        sigma: blur width of the Gaussian pyramid in units of the reduction, at least 0.125.
        inherit: "matching" copies every bottom-up weight whose role and shape survive, "none" copies none; by
            default, none are copied, with a `PretrainedWarning` where the network is trained.
        example_inputs: an image batch (N, C, H, W) that fixes channels and nominal size.
        device: where the network is built; "meta" plans only. By default the model's own device.
        seed: of the initial weights; by default drawn from torch's global generator. Recorded in the plan.
        max_macs_ratio: refuse networks that cost more than this many times the bottom-up multiply-accumulates.

    Returns:
        A `TopDownNetwork`, in train mode.

    Raises:
        Bu2tdError: one of the subclasses in `bu2td.errors`; `CostError` where ``max_macs_ratio`` is exceeded,
            `OptionError` for an unknown value, with the nearest known one.

    Warns:
        PretrainedWarning: the model is trained, its weights are not used, and ``inherit`` was not given.
    """
    if not isinstance(arrangement, str):
        arrangement = as_sequence("arrangement", arrangement)
    reductions = None if reductions is None else as_sequence("reductions", reductions)
    seed = int(torch.randint(2**31, ()).item()) if seed is None else seed
    options = Options(
        arrangement=arrangement, width=width, stem=stem, reductions=reductions, finest_reduction=finest_reduction,
        upsample=upsample, merge=merge, merge_kernel=merge_kernel, pyramid=pyramid, sigma=sigma, inherit=inherit,
        max_macs_ratio=max_macs_ratio, seed=seed,
    )  # fmt: skip
    target = as_device(device)
    if not isinstance(model, Analysis):
        model = analyze(model, example_inputs=example_inputs)
    elif example_inputs is not None:
        raise OptionError("example_inputs is given to bu2td.analyze, whose result is converted here")
    with paused_collector():
        emission = emit(model, options)
        _check_cost(emission.network.plan)
        network = _with_weights(emission, model, target).train()
    if inherit is None and not (target is not None and target.type == "meta"):
        _tell_of_loss(emission, model)
    return network


@dataclass(frozen=True)
class Emission:
    """A top-down network that is emitted and verified, on the meta device.

    Attributes:
        network: the network; its plan is complete, but for what weights are inherited.
        origins: parameter or buffer -> its name in the bottom-up network.
        fixed: parameters that keep the values of the bottom-up network, and are not trained.
    """

    network: TopDownNetwork
    origins: Mapping[str, str]
    fixed: frozenset[str] = frozenset()


def emit(analysis: Analysis, options: Options) -> Emission:
    """Plan a network, emit it on the meta device, verify it, and measure what it costs.

    Raises:
        Bu2tdError: one of the subclasses in `bu2td.errors`.
    """
    planned = arrange(analysis, options)
    emitted = rewrite(analysis, planned)
    stages = emitted.stages
    network = TopDownNetwork(dict(emitted.modules), emitted.graph, _record(analysis, planned, stages))
    _take_dtype(network, analysis.capture.source)
    flat = flatten(network, copied=False)
    sizes = _check_sizes(analysis, emitted.limits, flat)
    claims = _claims(planned, stages)
    beside = Beside(Measured(analysis.capture.graph_module, analysis.dims), _expected(options))
    report = verify_graph(network, claims, planned.image_shape, network.num_classes, sizes, flat, beside)
    bound = _size_notes(emitted.limits, planned.image_shape) or _tried_notes(sizes)
    notes = (*report.notes, *bound)
    plan = _completed(planned, analysis, stages, flat, sizes, notes)
    manners = _manners(network, emitted.origins, analysis.capture.source)
    network.record = replace(network.record, plan=plan, **manners)
    network.requires_grad_(True)  # new weights are trained, also where the bottom-up ones are frozen
    fixed = _fixed(network, emitted.origins, analysis.capture.source)
    for name in fixed:
        network.get_parameter(name).requires_grad_(False)
    return Emission(network, emitted.origins, fixed)


def _take_dtype(network: nn.Module, source: nn.Module) -> None:
    """Let tensors that are made anew have the dtype of the source's weights, where these are of one."""
    weights = {p.dtype for p in source.parameters() if p.is_floating_point()}
    if len(weights) == 1:
        (dtype,) = weights
        known = weights | {b.dtype for b in source.buffers()}
        network._apply(lambda t: t.to(dtype) if t.is_floating_point() and t.dtype not in known else t)


def _fixed(network: TopDownNetwork, origins: Mapping[str, str], source: nn.Module) -> frozenset[str]:
    """Parameters of what prepares the image that are constants: frozen, where the rest of the network trains."""
    own = dict(source.named_parameters())
    prepares = [name for name, _ in network.named_parameters() if name.startswith("prepare.")]
    trained = {name for name, p in own.items() if p.requires_grad} - {origins.get(name) for name in prepares}
    frozen = {
        name for name in prepares if (old := own.get(origins.get(name, ""))) is not None and not old.requires_grad
    }
    return frozenset(frozen if trained else ())


def _expected(options: Options) -> Expectation:
    """What of the bottom-up network is to be found in a network with these options."""
    whole = options.reductions is None and options.finest_reduction == 1 and options.stem == "mirror"
    named = isinstance(options.arrangement, str)
    return Expectation(ordered=options.arrangement != "rev", whole=whole, free=named and options.width is None)


def _record(analysis: Analysis, plan: Plan, stages: Stages) -> Record:
    captured, source = analysis.capture, analysis.capture.source
    classes = int(analysis.dims[analysis.head.output][1].size)
    origin = origin_of(source, {"num_classes": classes, "in_channels": captured.image_shape[1]})
    recipe = Recipe(
        options=plan.options,
        image_shape=captured.image_shape,
        fingerprint=captured.fingerprint,
        identity=captured.identity,
        call=next(iter(origin.calls), None),
        model=type(source).__name__,
        num_classes=classes,
    )
    return Record(plan, stages, recipe, origin)


def _manners(network: TopDownNetwork, origins: Mapping[str, str], source: nn.Module) -> dict[str, Any]:
    """What a library's model says of itself, for the network: its configuration, and what it wants no decay for."""
    config = getattr(source, "pretrained_cfg", None) or getattr(source, "default_cfg", None)
    asked = getattr(source, "no_weight_decay", None)
    patterns = [str(pattern) for pattern in asked()] if callable(asked) else []
    exempt = [name for name, origin in origins.items() if any(fnmatchcase(origin, p) for p in patterns)]
    return {"pretrained_cfg": described(config, network), "no_weight_decay": tuple(exempt)}


def _completed(
    plan: Plan,
    analysis: Analysis,
    stages: Stages,
    flat: fx.GraphModule,
    sizes: tuple[tuple[int, int], ...],
    notes: tuple[str, ...],
) -> Plan:
    """The plan with what is known once it is emitted: costs, the image sizes that it is tried at, their notes."""
    costs = measure_cost(flat, plan.image_shape)
    owners = {call: stage.reduction for stage in stages.levels for call in stage.calls}
    spent = dict.fromkeys(plan.ladder, Cost())
    for node in flat.graph.nodes:
        if (reduction := owners.get(owner_of(node))) is not None:
            spent[reduction] += costs[node.name]
    before, after = total(measure_cost(analysis.capture.graph_module, plan.image_shape)), total(costs)
    expected = _expected(plan.options)
    cheap = expected.whole and plan.options.arrangement == "td" and after.macs < before.macs
    if cheap:
        notes = (
            *notes,
            "it costs less than the bottom-up network: levels stand for most of its stem, without its layers",
        )
    return replace(
        plan,
        levels=tuple(replace(level, cost=spent[level.reduction]) for level in plan.levels),
        bottom_up_cost=before,
        cost=after,
        check_sizes=sizes,
        notes=(*plan.notes, *notes),
    )


def _with_weights(emission: Emission, analysis: Analysis, device: torch.device | None) -> TopDownNetwork:
    """The network, initialised on a device; its plan says how many values it inherited, and of how many."""
    network, captured = emission.network, analysis.capture
    weights, options = captured.weights, network.plan.options
    device = device or next((p.device for p in captured.source.parameters()), torch.device("cpu"))
    if device.type == "meta":
        return network
    assert options.seed is not None
    initialise(network, emission.origins, weights, captured.constants, options.seed, emission.fixed)
    if options.inherit == "matching":
        inherited = inherit_matching(network, emission.origins, weights)
        network.record = replace(network.record, plan=replace(network.plan, inherited=inherited))
    network.to(device)
    return network


def _tell_of_loss(emission: Emission, analysis: Analysis) -> None:
    """Warn where weights that somebody trained are not used."""
    sign = signs_of_training(analysis.capture.source)
    if not sign:
        return
    kept, values = matching_share(emission.network, emission.origins, analysis.capture.weights)
    warnings.warn(
        f"{type(analysis.capture.source).__name__} is trained ({sign}), and its top-down network starts from new "
        f"weights. inherit='matching' copies those that fit ({kept / max(values, 1):.1%} of the new network's), "
        f"inherit='none' says that new ones are meant; docs/training.md compares both with distillation",
        PretrainedWarning,
        stacklevel=5,
    )


def _check_cost(plan: Plan) -> None:
    """Refuse a network that costs more than ``max_macs_ratio`` allows."""
    limit = plan.options.max_macs_ratio
    ratio = plan.cost.macs / max(plan.bottom_up_cost.macs, 1)
    if limit is None or ratio <= limit:
        return
    rows = [
        {
            "level": level.name,
            "width": level.width,
            "MMACs": round(level.cost.macs / 1e6, 1),
            "x bottom-up": round(level.cost.macs / plan.bottom_up_cost.macs, 2),
        }
        for level in plan.levels
    ]
    spent, enough = plan.levels[0].cost.macs, None
    for level in plan.levels[1:]:
        spent += level.cost.macs
        if spent <= limit * plan.bottom_up_cost.macs:
            enough = level.reduction
    remedies = [
        *([f"finest_reduction={enough} stays below it"] if enough else []),
        "arrangement='td' or 'uni' with a smaller width narrows the finest levels",
        "merge='add' or merge_kernel=1 makes merges cheaper",
        "max_macs_ratio=None allows any cost",
    ]
    raise CostError(
        f"the top-down network would cost {ratio:.1f} times the bottom-up network's "
        f"{plan.bottom_up_cost.macs / 1e6:,.0f} M multiply-accumulates, more than max_macs_ratio={limit:g}:\n"
        f"{format_table(rows)}\n{'; '.join(remedies)}"
    )


def _check_sizes(
    analysis: Analysis, limits: Sequence[MapLimit], flat: fx.GraphModule
) -> tuple[tuple[int, int], ...]:
    """The model's own image size, and an odd one if either network works at it, the bottom-up head's pool apart."""
    n, channels, height, width = analysis.capture.image_shape
    own, odd = (height, width), (height + 5, width + 14)
    if limits:
        return (own,)
    for graph_module, pools in ((analysis.capture.graph_module, analysis.head.pools), (flat, None)):
        try:
            shapes = shapes_of(graph_module, (max(n, 2), channels, *odd), pools, quick=True)
        except Bu2tdError:
            continue
        # What prepares the image may round its size up.
        prepared = shapes.get(analysis.input_exit, odd)[-2:]
        return (own, odd) if tuple(prepared) == odd else (own,)
    return (own,)


def _size_notes(limits: Sequence[MapLimit], image_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Which layers tie the network to certain image sizes, if any do."""
    bound = [limit for limit in limits if limit.multiple is None]
    paths: dict[str, list[str]] = {}
    for limit in bound or limits:
        paths.setdefault(limit.kind, []).append(limit.path)
    layers = "; ".join(
        f"{kind} in {', '.join(found[:_NAMED])}{f' and {len(found) - _NAMED} more' * (len(found) > _NAMED)}"
        for kind, found in paths.items()
    )
    if bound:
        return (f"works at images of {image_shape[-2]}x{image_shape[-1]} only: {layers}",)
    multiple = math.lcm(*(limit.reduction * (limit.multiple or 1) for limit in limits))
    return (f"works at images whose sides are multiples of {multiple}: {layers}",) if limits else ()


def _tried_notes(sizes: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """That a network was tried at one size alone."""
    if len(sizes) > 1:
        return ()
    [(height, width)] = sizes
    return (f"tried at images of {height}x{width} only: neither network works at an odd size",)


def _claims(plan: Plan, stages: Stages) -> tuple[LevelClaim, ...]:
    """What the levels are to be; a call has the name of its module."""
    return tuple(
        LevelClaim(stage.output, level.reduction, level.width)
        for stage, level in zip(stages.levels, plan.levels, strict=True)
    )


@undisturbed()
def verify(network: TopDownNetwork, *, full: bool = False, size: int | None = None) -> Report:
    """Check that a converted network satisfies the invariants of a top-down network.

    Args:
        network: what `convert` or `bu2td.dense` returned, possibly trained since.
        full: also run real tensors forward and backward, and compare deepcopy, a state_dict round trip,
            torch.compile and torch.export with the network.
        size: height and width of the images of ``full``; by default the plan's.

    Returns:
        A `Report`; ``str()`` of it lists the checks.

    Raises:
        VerificationError: an invariant does not hold.
        NotAModelError: not a converted network.
    """
    if not isinstance(network, TopDownNetwork) or isinstance(network, FeatureNetwork):
        raise NotAModelError(f"verify takes a network that bu2td.convert returned, found {type(network)}")
    plan = network.plan
    claims = _claims(plan, network.stages)
    dense = isinstance(network, PixelNetwork)
    report = verify_graph(network, claims, plan.image_shape, network.num_classes, plan.check_sizes, per_pixel=dense)
    if not full:
        return report
    numbers = verify_numbers(network, plan.image_shape, size, odd=len(plan.check_sizes) > 1)
    return Report({**report.checks, **numbers.checks})
