"""Accuracy of trained networks on corrupted images."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from bu2td.evaluate.parts import Found, Part, load_all
from bu2td.evaluate.report.compare import aggregate
from bu2td.evaluate.robustness.corruptions import CORRUPTIONS, corruption_accuracy
from bu2td.evaluate.schema import Corruption, write_table
from bu2td.evaluate.stages import Answer, Context, Stage, digest, digest_model


def plan(context: Context) -> list[Part]:
    """A part per network and corruption."""
    settings = context.settings
    _, images, labels = context.sample(settings.corruption_samples)
    parts = []
    for arrangement, repeat in context.networks(settings.arrangements, settings.repeats):
        mark = {
            "weights": digest_model(context.classifier(arrangement, repeat)),
            "images": digest((images, labels)),
            "seed": settings.seed,
        }
        for name in CORRUPTIONS:
            work = partial(_measured, context, arrangement, repeat, name, images, labels)
            parts.append(Part(f"{arrangement}-{repeat}/{name}", mark, work))
    return parts


def _measured(context: Context, arrangement: str, repeat: int, name: str, images: Tensor, labels: Tensor) -> Found:
    classifier, seed = context.classifier(arrangement, repeat), context.settings.seed
    rows = corruption_accuracy(classifier, images, labels, corruptions=(name,), seed=seed)
    return Found(tuple(Corruption(arrangement, repeat, **row) for row in rows))


def collect(context: Context) -> Answer:
    """The table of all corruptions that are there."""
    parts = [found for _, found in load_all(context.run.parts(STAGE.name))]
    rows = sorted(
        (row for part in parts for row in part.of(Corruption)),
        key=lambda r: (r.arrangement, r.repeat, CORRUPTIONS.index(r.corruption), r.severity),
    )
    write_table(Corruption, rows, context.run.path)
    hit = [vars(row) for row in rows if row.severity]
    means = aggregate(hit, ["corruption", "arrangement"], "accuracy")
    arrangements = list(dict.fromkeys(row.arrangement for row in rows))
    table = [
        {"corruption": name, **{a: f"{means[name, a].mean:.2%}" for a in arrangements if (name, a) in means}}
        for name in dict.fromkeys(row["corruption"] for row in hit)
    ]
    return {"accuracy under corruption (mean of five severities)": table}


STAGE = Stage("corruptions", (Corruption,), plan, collect)
