"""The model card of a network: what the hub's page shows, made from its plan."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from bu2td.ir import Plan
from bu2td.models import is_library_word
from bu2td.options import Options
from bu2td.runtime import PatchNetwork, TopDownNetwork

_TAGS = ("bu2td", "pytorch", "top-down", "arxiv:2004.07629")


def card(network: TopDownNetwork | PatchNetwork, recipe: Mapping[str, Any], place: str, hub: Any) -> str:
    """The card, with a header in YAML.

    Args:
        network: what the card tells of.
        recipe: of the network, as its file holds it.
        place: where it is: OWNER/NAME, or a folder.
        hub: the module ``huggingface_hub``.
    """
    whole = network.network if isinstance(network, PatchNetwork) else network
    header = hub.ModelCardData(
        library_name="bu2td", pipeline_tag="image-classification", tags=list(_TAGS), license=_license(whole)
    )
    parts = [
        f"---\n{header.to_yaml()}\n---",
        *_head(whole.plan, recipe),
        "## Load",
        _loading(recipe, place),
        "## Levels, coarse to fine",
        _table(whole.plan.rows()),
        _costs(whole),
        "## How it was made",
        _making(whole.plan.options, recipe),
        *([_bullets(whole.plan.notes)] if whole.plan.notes else []),
    ]
    return "\n\n".join(parts) + "\n"


def _head(plan: Plan, recipe: Mapping[str, Any]) -> list[str]:
    made = f"`{recipe['factory']}`" if recipe["factory"] else f"a {recipe['model']}"
    height, width = plan.image_shape[-2:]
    return [
        f"# Top-down {(recipe['factory'] or plan.model).rpartition(':')[2]}",
        f"The top-down network (Lelekas et al., 2020) of {made}, converted by bu2td: it starts at the coarsest "
        f"level of an image pyramid, and every level adds resolution. {recipe['num_classes']} classes, images of "
        f"{plan.image_shape[1]} channels, looked at with {height} x {width} pixels.",
    ]


def _license(network: TopDownNetwork) -> str | None:
    """The licence of the bottom-up model's weights, if it says one in the words of the hub."""
    config = network.pretrained_cfg
    found = config.get("license") if hasattr(config, "get") else None
    return found if isinstance(found, str) and re.fullmatch(r"[a-z0-9][a-z0-9.-]*", found) else None


def _loading(recipe: Mapping[str, Any], place: str) -> str:
    word = recipe["factory"]
    if word is None:
        how, also = (
            ", model=model",
            f"# model: the {recipe['model']} that was converted; its weights do not matter\n",
        )
    elif is_library_word(word):
        how, also = "", ""
    else:
        how, also = ", trust=True", f"# runs {word}\n"
    kind = "bu2td.PatchNetwork" if "patches" in recipe else "bu2td.TopDownNetwork"
    return f'```python\nimport bu2td\n\n{also}td = {kind}.from_pretrained("{place}"{how})\n```'


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([str(row[name]) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines)


def _costs(network: TopDownNetwork) -> str:
    before, after = network.plan.bottom_up_cost, network.plan.cost
    return (
        f"Parameters {after.parameters:,} (bottom-up {before.parameters:,}); multiply-accumulates for one image "
        f"{after.macs / 1e6:,.1f} M (bottom-up {before.macs / 1e6:,.1f} M)."
    )


def _making(options: Options, recipe: Mapping[str, Any]) -> str:
    default = asdict(Options())
    chosen = {name: value for name, value in asdict(options).items() if value != default[name]}
    given = ", ".join(["model", *(f"{name}={value!r}" for name, value in chosen.items())])
    call = f"{recipe['factory']}, called with {recipe['arguments'] or 'nothing'}" if recipe["factory"] else ""
    lines = [f"`bu2td.convert({given})`, bu2td {recipe['bu2td']}, torch {recipe['torch']}"]
    lines += [f"the bottom-up model: {call or recipe['model'] + ', which load must be given'}"]
    if "optimize" in recipe:
        lines.append(f"optimised for {recipe['optimize']['mode']} on {recipe['optimize']['device']}")
    if "patches" in recipe:
        lines.append(f"its finest levels look at patches: {recipe['patches']}")
    return _bullets(lines)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
