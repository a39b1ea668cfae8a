"""The zoo: every classifier of torchvision, timm and other libraries, and what becomes of each of them.

A model is built on the meta device, analysed once, and converted into every arrangement asked for;
`convert`'s verification judges every network. Small networks also run forward and backward on real tensors.
"""

from __future__ import annotations

import fnmatch
import os
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from bu2td.conversion import analyze, convert
from bu2td.errors import Bu2tdError, ConverterError, ImageSizeError, OptionError, VerificationError, nearest
from bu2td.ir import Analysis, Plan, Relaxation
from bu2td.models import create_model
from bu2td.models.libraries import LIBRARIES
from bu2td.rewrite import initialise
from bu2td.runtime import TopDownNetwork
from bu2td.zoo.limits import limited

__all__ = [
    *("DEFAULT_LIBRARIES", "TIMEOUT", "Row", "ZooModel", "convert_built", "convert_model", "list_zoo", "select")
]

#: The libraries of a sweep, where no other is named.
DEFAULT_LIBRARIES = ("torchvision", "timm")
#: Seconds that an analysis, or a conversion, may take.
TIMEOUT = 600

#: Networks up to this many multiply-accumulates also run on real tensors of `REAL_SIZE`, or of the one size that
#: they are bound to.
REAL_MACS = 2e9
REAL_SIZE = 64
SEED = 0

#: What `compare_feature_info` says of models whose feature_info taps the last stage behind the head conv.
HEAD_CONV = "same, head conv counted there"

#: The relaxations of a level, the strongest last.
RELAXATIONS = ("none", *(what.value for what in Relaxation if what is not Relaxation.ADAPTERS))

STATUSES = ("verified", "refused", "failed")
#: Errors of bu2td that are its own fault rather than a cause in the model.
_FAULTS = (VerificationError, ConverterError)


@dataclass(frozen=True)
class ZooModel:
    """A model of the zoo: its MODEL word, and its family (the module that defines it)."""

    word: str
    family: str


@dataclass(frozen=True)
class Row:
    """What became of one model in one arrangement.

    Attributes:
        status: "verified"; "refused", for a cause in the model that `bu2td.errors` names; or "failed", for a
            fault of the conversion: anything else, a network that does not pass verification included.
        cause, message: the exception's type and text.
        ladder, bottom_up_widths, widths: coarse to fine.
        levels: levels with a body; the columns that follow say by which relaxation each was solved.
        relaxations: level by level.
        feature_info: how the bottom-up levels compare with timm's own table.
        real: whether it ran forward and backward on real tensors.
        seconds: of the conversion and the run; the first arrangement's include building and analysis.
    """

    model: str
    family: str
    arrangement: str
    status: str
    cause: str = ""
    message: str = ""
    ladder: str = ""
    bottom_up_widths: str = ""
    widths: str = ""
    levels: int = 0
    none: int = 0
    regroup: int = 0
    entry_adapter: int = 0
    exit_adapter: int = 0
    frozen: int = 0
    relaxations: str = ""
    parameters: int = 0
    parameters_ratio: float = 0.0
    macs: int = 0
    macs_ratio: float = 0.0
    feature_info: str = ""
    real: bool = False
    notes: str = ""
    seconds: float = 0.0


def list_zoo(libraries: Sequence[str] = DEFAULT_LIBRARIES, *, smallest: bool = False) -> list[ZooModel]:
    """Return the image classifiers of installed libraries.

    Args:
        libraries: out of "torchvision", "timm", "pytorchcv", "transformers", "monai" and "bu2td"; timm's and
            torchvision's are convolutional networks.
        smallest: one model of every family and variant (names that differ in numbers alone are one variant): the
            one with the least numbers in its name.

    Raises:
        OptionError: an unknown library.
        MissingPackageError: a library is not installed.
    """
    known = {library.title: library for library in LIBRARIES.values()}
    found = []
    for title in dict.fromkeys(libraries):
        if title not in known:
            hint = nearest(title, known) or f" It knows {', '.join(known)}."
            raise OptionError(f"the zoo has no library {title!r}.{hint}")
        library = known[title]
        names = list(library.families())
        if smallest:
            first: dict[tuple[str, str], str] = {}
            for name, family in sorted(names, key=lambda pair: library.size(pair[0])):
                first.setdefault((family, library.variant(name)), name)
            names = [(name, family) for name, family in names if first[family, library.variant(name)] == name]
        found += [ZooModel(library.word(name), family) for name, family in names]
    return found


def select(
    zoo: Sequence[ZooModel],
    families: Sequence[str] = (),
    matches: Sequence[str] = (),
    shard: tuple[int, int] = (1, 1),
) -> list[ZooModel]:
    """Choose models of the zoo.

    Args:
        zoo: from `list_zoo`.
        families: keep these families; all by default.
        matches: keep words that contain one of these, or match it as a shell pattern; all by default.
        shard: (i, n) keeps every n-th model, from the i-th on.

    Raises:
        OptionError: an unknown family, no such shard, or no model matches.
    """
    known = sorted({model.family for model in zoo})
    for family in families:
        if family not in known:
            words = [name for name in known if name.endswith(f":{family}")] or known
            hint = nearest(family, words) or f" It has {', '.join(known)}."
            raise OptionError(f"the zoo has no family {family!r}.{hint}")
    index, count = shard
    if not 1 <= index <= count:
        raise OptionError(f"there is no shard {index}/{count}; shards are 1/{count} to {count}/{count}")
    chosen = [
        model
        for model in zoo
        if (not families or model.family in families)
        and (not matches or any(m in model.word or fnmatch.fnmatch(model.word, m) for m in matches))
    ]
    if not chosen:
        raise OptionError(f"no model of the zoo matches {', '.join(map(repr, matches))}")
    return chosen[index - 1 :: count]


def convert_model(
    model: ZooModel, arrangements: Sequence[str], real: bool = True, timeout: float | None = TIMEOUT
) -> list[Row]:
    """Build a model, analyse it once and convert it into every arrangement.

    Args:
        model: of the zoo.
        arrangements: out of "td", "uni", "rev".
        real: run networks below `REAL_MACS` forward and backward.
        timeout: seconds that the analysis, and every conversion, may take; None: any.

    Returns:
        One `Row` per arrangement, whatever happens.
    """
    return convert_built(lambda: create_model(model.word, device="meta"), model, arrangements, real, timeout)


def convert_built(
    build: Callable[[], nn.Module],
    model: ZooModel,
    arrangements: Sequence[str],
    real: bool = True,
    timeout: float | None = TIMEOUT,
) -> list[Row]:
    """As `convert_model`, for a model that a function builds; ``model`` says what the rows call it."""
    rows = []
    analysis: Analysis | Exception
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with limited(timeout):
                analysis = analyze(build())
            compared = compare_feature_info(analysis)
        except Exception as error:
            analysis, compared = error, ""
        for arrangement in arrangements:
            row = Row(model.word, model.family, arrangement, "failed", feature_info=compared)
            try:
                if isinstance(analysis, Exception):
                    raise analysis
                with limited(timeout):
                    network = convert(
                        analysis, cast(Any, arrangement), device="meta", seed=SEED, max_macs_ratio=None
                    )
                    row = _measured(replace(row, status="verified"), analysis, network.plan)
                    row = replace(row, real=real and _runs(network))
            except Exception as error:
                refused = isinstance(error, Bu2tdError) and not isinstance(error, _FAULTS)
                status = "refused" if refused else "failed"
                row = replace(row, status=status, cause=type(error).__name__, message=_message(error))
            rows.append(replace(row, seconds=round(time.perf_counter() - start, 2)))
            start = time.perf_counter()
    return rows


def _message(error: Exception) -> str:
    if isinstance(error, Bu2tdError):
        return _line(str(error))
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{_line(str(error))} ({Path(frame.filename).name}:{frame.lineno})"


def _line(text: str) -> str:
    """A text on one line; installed files are named from their package on."""
    for folder in sorted(filter(None, sys.path), key=len, reverse=True):
        text = text.replace(f"{folder}{os.sep}", "")
    return " ".join(text.split())[:400]


def _runs(network: TopDownNetwork) -> bool:
    """Forward and backward on real tensors: finite logits, a finite gradient in every parameter.

    Returns:
        False where the network is larger than `REAL_MACS`.
    """
    if network.plan.cost.macs > REAL_MACS:
        return False
    _, channels, *own = network.plan.image_shape
    random = torch.Generator().manual_seed(SEED)
    for height, width in ((REAL_SIZE, REAL_SIZE), own):
        initialise(network, {}, {}, {}, SEED)
        with suppress(ImageSizeError):
            logits = network.train()(torch.rand(2, channels, height, width, generator=random))
            (logits * torch.linspace(-1, 1, logits.shape[1])).sum().backward()
            _check_finite("logits", logits)
            for name, parameter in network.named_parameters():
                _check_finite(f"gradient of {name}", parameter.grad)
            return True
    return False


def _check_finite(what: str, tensor: torch.Tensor | None) -> None:
    if tensor is None or not bool(torch.isfinite(tensor).all()):
        raise ArithmeticError(f"{what} is {'missing' if tensor is None else 'not finite'}")


def _measured(row: Row, analysis: Analysis, plan: Plan) -> Row:
    bodies = [level for level in plan.levels if level.source is not None]
    strongest = Counter(_strongest(level.relaxations) for level in bodies)
    return replace(
        row,
        ladder=" ".join(map(str, plan.ladder)),
        bottom_up_widths=" ".join(str(level.width) for level in analysis.levels),
        widths=" ".join(map(str, plan.widths)),
        levels=len(bodies),
        none=strongest["none"],
        regroup=strongest["regroup"],
        entry_adapter=strongest["entry adapter"],
        exit_adapter=strongest["exit adapter"],
        frozen=strongest["frozen"],
        relaxations="; ".join(f"{level}: {what}" for level, what in plan.relaxations),
        parameters=plan.cost.parameters,
        parameters_ratio=round(plan.cost.parameters / plan.bottom_up_cost.parameters, 3),
        macs=plan.cost.macs,
        macs_ratio=round(plan.cost.macs / plan.bottom_up_cost.macs, 3),
        notes="; ".join(map(_line, plan.notes)),
    )


def _strongest(relaxations: Iterable[str]) -> str:
    """The strongest relaxation of a level; one with both adapters counts as an exit adapter."""
    ranks = [RELAXATIONS.index(what.replace("entry and ", "")) for what in relaxations]
    return RELAXATIONS[max(ranks, default=0)]


def compare_feature_info(analysis: Analysis) -> str:
    """Compare the bottom-up levels with timm's ``feature_info`` (reduction and channels per stage).

    Returns:
        "" where the model has none, "same", `HEAD_CONV`, or the stages that differ.
    """
    info = getattr(analysis.capture.source, "feature_info", None)
    if not info:
        return ""
    theirs = {int(stage["reduction"]): int(stage["num_chs"]) for stage in info}
    ours = {level.reduction: level.width for level in analysis.levels}
    different = [
        f"r{r}: {ours[r]} here, {width} there" if r in ours else f"r{r}: only there"
        for r, width in theirs.items()
        if ours.get(r) != width
    ]
    head = {level.reduction: analysis.head.convs[-1].width for level in analysis.levels[:1] if analysis.head.convs}
    if head and ours | head == ours | theirs:
        return HEAD_CONV
    different += [f"r{level.reduction}: only here" for level in analysis.bodies if level.reduction not in theirs]
    return "; ".join(different) or "same"
