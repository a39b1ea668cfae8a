"""The public functions: convert, analyze, verify, save, load."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from bu2td.analyse.levels import analyse
from bu2td.arrange.levels import arrange
from bu2td.capture.trace import capture
from bu2td.errors import Bu2tdError, CostError, NotAModelError, OptionError, nearest
from bu2td.graph.flatten import flatten, owner_of
from bu2td.graph.run import shapes_of
from bu2td.ir.bottom_up import Analysis
from bu2td.ir.plan import Cost, Plan
from bu2td.ir.tables import format_table
from bu2td.measure.cost import measure_cost, total
from bu2td.options import Options, check_options
from bu2td.probe.measure import probe
from bu2td.rewrite.initialise import inherit_matching, initialise
from bu2td.rewrite.top import Emitted, MapLimit, rewrite
from bu2td.runtime.network import TopDownNetwork
from bu2td.verification.graph import LevelClaim, Report, verify_graph
from bu2td.verification.numbers import verify_numbers

_FORMAT = "bu2td.recipe.1"


_VERSION = "0.1.0"


_NAMED = 6  # layers of a kind that a note names


_OPTIONS = (*(field.name for field in fields(Options)), "example_inputs", "device")


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
    with _paused_collector():
        captured = capture(model, example_inputs)
        return analyse(captured, probe(captured))


def convert(
    model: nn.Module | Analysis,
    arrangement: str | Sequence[int] = "td",
    *,
    width: int | None = None,
    stem: str = "mirror",
    reductions: Sequence[int] | None = None,
    finest_reduction: int = 1,
    upsample: str = "nearest",
    merge: str = "add_concat",
    merge_kernel: int = 3,
    pyramid: str = "gaussian",
    sigma: float = 0.5,
    inherit: str | None = None,
    example_inputs: Tensor | None = None,
    device: str | torch.device | None = None,
    seed: int | None = None,
    max_macs_ratio: float | None = 64.0,
    **unknown: Any,
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
        inherit: "matching" copies every bottom-up weight whose role and shape survive.
        example_inputs: an image batch (N, C, H, W) that fixes channels and nominal size.
        device: where the network is built; "meta" plans only. By default the model's own device.
        seed: of the initial weights; by default drawn from torch's global generator. Recorded in the plan.
        max_macs_ratio: refuse networks that cost more than this many times the bottom-up multiply-accumulates.

    Returns:
        A `TopDownNetwork`, in train mode.

    Raises:
        Bu2tdError: one of the subclasses in `bu2td.errors`; `CostError` where ``max_macs_ratio`` is exceeded,
            `OptionError` for an unknown option or value, with the nearest known one.
    """
    for name in unknown:
        raise OptionError(f"convert has no option {name!r}.{nearest(name, _OPTIONS)}")
    options = Options(
        arrangement=arrangement if isinstance(arrangement, str) else _sequence("arrangement", arrangement),
        width=width,
        stem=stem,
        reductions=None if reductions is None else _sequence("reductions", reductions),
        finest_reduction=finest_reduction,
        upsample=upsample,
        merge=merge,
        merge_kernel=merge_kernel,
        pyramid=pyramid,
        sigma=sigma,
        inherit=inherit,
        max_macs_ratio=max_macs_ratio,
        seed=_seed(seed),
    )
    check_options(options)
    target = _device(device)
    if not isinstance(model, Analysis):
        model = analyze(model, example_inputs=example_inputs)
    elif example_inputs is not None:
        raise OptionError("example_inputs is given to bu2td.analyze, whose result is converted here")
    with _paused_collector():
        return _build(model, options, target)


@contextmanager
def _paused_collector() -> Iterator[None]:
    """Pause the cyclic garbage collector: graphs are full of cycles, and its passes over them are quadratic."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _sequence(name: str, value: Any) -> tuple[Any, ...]:
    try:
        return tuple(value)
    except TypeError:
        raise OptionError(f"{name}={value!r} must be a word or a list of whole numbers") from None


def _seed(seed: Any) -> int:
    if seed is None:
        return int(torch.randint(2**31, ()).item())
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise OptionError(f"seed={seed!r} must be a whole number from 0 to 2**63 - 1")
    return seed


def _device(device: Any) -> torch.device | None:
    if device is None:
        return None
    try:
        wanted = torch.device(device)
        if wanted.type != "meta":
            torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise OptionError(f"device={device!r} cannot be used: {reason}") from error
    return wanted


def _build(analysis: Analysis, options: Options, device: torch.device | None) -> TopDownNetwork:
    captured = analysis.capture
    plan = arrange(analysis, options)
    emitted = rewrite(analysis, plan)
    sizes, notes = _check_sizes(analysis, emitted.limits), _size_notes(emitted.limits, plan.image_shape)
    plan = replace(plan, check_sizes=sizes, notes=(*plan.notes, *notes))
    network = TopDownNetwork(emitted.modules, emitted.graph)
    network.plan = plan
    num_classes = analysis.dims[analysis.head.output][1].size
    flat = flatten(network, copied=False)
    verify_graph(network, _claims(network), captured.image_shape, num_classes, plan.check_sizes, flat)
    network.plan = plan = _with_costs(analysis, plan, flat)
    _check_cost(plan)
    source = captured.source
    network.requires_grad_(True)  # new weights are trained, also where the bottom-up ones are frozen
    if device is None:
        device = next((p.device for p in source.parameters()), torch.device("cpu"))
    if device.type != "meta":
        assert options.seed is not None
        initialise(network, emitted.origins, source, captured.constants, options.seed)
        if options.inherit == "matching":
            network.plan = replace(plan, inherited=inherit_matching(network, emitted.origins, source))
        network.to(device)
    _attach(network, analysis, emitted, num_classes)
    return network.train()


def _with_costs(analysis: Analysis, plan: Plan, flat: fx.GraphModule) -> Plan:
    shape = plan.image_shape
    bottom_up = total(measure_cost(analysis.capture.graph_module, shape))
    costs = measure_cost(flat, shape)
    owners = {node.name: owner_of(node).partition("_")[0] for node in flat.graph.nodes}
    levels = tuple(
        replace(
            level,
            cost=sum((cost for name, cost in costs.items() if owners[name] == level.name), Cost()),
        )
        for level in plan.levels
    )
    return replace(plan, levels=levels, bottom_up_cost=bottom_up, cost=total(costs))


def _check_cost(plan: Plan) -> None:
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


def _check_sizes(analysis: Analysis, limits: Sequence[MapLimit]) -> tuple[tuple[int, int], ...]:
    """The model's own image size, and an odd one if the bottom-up network can work on such."""
    n, channels, height, width = analysis.capture.image_shape
    own, odd = (height, width), (height + 5, width + 14)
    if limits:
        return (own,)
    if analysis.head.pooled_size is not None:
        return (own, odd)  # the bottom-up head binds the size, the top-down one pools to it
    try:
        shapes_of(analysis.capture.graph_module, (max(n, 2), channels, *odd), quick=True)
    except Bu2tdError:
        return (own,)
    return (own, odd)


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


def _claims(network: TopDownNetwork) -> tuple[LevelClaim, ...]:
    targets = {n.name: str(n.target) for n in network.graph.nodes}
    for node in network.graph.nodes:
        parts = [arg for arg in node.args if getattr(arg, "op", "") == "get_attr"]
        if node.op == "call_function" and parts:  # a checkpointed segment of calls
            targets[node.name] = str(parts[-1].target)
    return tuple(
        LevelClaim(targets[name], level.reduction, level.width)
        for name, level in zip(network._level_nodes(), network.plan.levels, strict=True)
    )


def _attach(network: TopDownNetwork, analysis: Analysis, emitted: Emitted, num_classes: int) -> None:
    source = analysis.capture.source
    network.num_classes = num_classes
    network.pretrained_cfg = getattr(source, "pretrained_cfg", None)
    network.default_cfg = getattr(source, "default_cfg", network.pretrained_cfg)
    network.recipe = {
        "format": _FORMAT,
        "bu2td": _VERSION,
        "torch": str(torch.__version__),
        "options": asdict(network.plan.options),
        "image_shape": list(analysis.capture.image_shape),
        "fingerprint": analysis.capture.fingerprint,
        "factory": _factory(source),
        "model": type(source).__name__,
        "num_classes": num_classes,
    }


def _factory(model: nn.Module) -> str | None:
    """The word that builds a model again, where it is known.

    Words that import a user's own code are left out: a file must not name code that `load` then runs.
    """
    config: Any = getattr(model, "pretrained_cfg", None)
    known = getattr(model, "bu2td_factory", None) or (
        config.get("architecture") if hasattr(config, "get") else None
    )
    return known if _is_library_word(known) else None


def _is_library_word(word: Any) -> bool:
    return isinstance(word, str) and (":" not in word or word.startswith(("torchvision:", "bu2td:")))


def verify(network: TopDownNetwork, *, full: bool = False, size: int | None = None) -> Report:
    """Check that a converted network satisfies the invariants of a top-down network.

    Args:
        network: what `convert` returned, possibly trained since.
        full: also run real tensors forward and backward, and compare deepcopy, a state_dict round trip,
            torch.compile and torch.export with the network.
        size: height and width of the images of ``full``; by default the plan's.

    Returns:
        A `Report`; ``str()`` of it lists the checks.

    Raises:
        VerificationError: an invariant does not hold.
        NotAModelError: not a converted network.
    """
    if not isinstance(network, TopDownNetwork):
        raise NotAModelError(f"verify takes a network that bu2td.convert returned, found {type(network)}")
    plan = network.plan
    report = verify_graph(network, _claims(network), plan.image_shape, network.num_classes, plan.check_sizes)
    if not full:
        return report
    numbers = verify_numbers(network, plan.image_shape, size, odd=len(plan.check_sizes) > 1)
    return Report({**report.checks, **numbers.checks})
