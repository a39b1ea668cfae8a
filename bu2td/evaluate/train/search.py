"""The linear search over hyper-parameters: one after the other, each with the best of those before it.

Source: Lelekas et al. (2020), section 4.1 (learning rate, batch size and weight decay by validation accuracy).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from bu2td.errors import NonFiniteError, OptionError
from bu2td.evaluate.data.sets import Data, split
from bu2td.evaluate.folder import RunFolder
from bu2td.evaluate.schema import Trial, write_table
from bu2td.evaluate.settings import Settings, check, to_yaml
from bu2td.evaluate.train.identity import identity_of
from bu2td.evaluate.train.loop import fit
from bu2td.evaluate.train.model import build_classifier, normalisation_of
from bu2td.files import replacing

ORDER = ("lr", "batch_size", "weight_decay")


def search(
    folder: RunFolder, data: Data, grid: dict[str, tuple[float, ...]], engine: Any
) -> tuple[list[Trial], dict[str, Settings]]:
    """Search learning rate, batch size and weight decay, in this order, for every arrangement.

    Args:
        folder: of the evaluation; trainings lie under search/, the best settings as search/ARRANGEMENT.yaml.
        data: what is learned; the test images are not looked at.
        grid: values to try, by name; a name that is left out keeps the settings' value.
        engine: from `bu2td.evaluate.train.engine.start`.

    Returns:
        The trials (search.csv), and the best settings of every arrangement. Of equal accuracies the earlier value
        wins. A training whose loss is not finite counts as accuracy 0.

    Raises:
        OptionError: nothing to search over.
    """
    if not grid or not all(grid.values()) or set(grid) - set(ORDER):
        raise OptionError(f"a search needs several values of at least one of {', '.join(ORDER)}, found {grid}")
    trials: list[Trial] = []
    best: dict[str, Settings] = {}
    for arrangement in folder.settings.arrangements:
        settings = dataclasses.replace(folder.settings.for_arrangement(arrangement), top_down={})
        for name in ORDER:
            if name in grid:
                found = _line(folder, data, arrangement, settings, name, grid[name], engine)
                winner = max(range(len(found)), key=lambda i: (found[i][1], -i))
                settings = found[winner][0]
                trials += [_trial(arrangement, name, s, a, i == winner) for i, (s, a) in enumerate(found)]
                if engine.is_global_zero:
                    write_table(Trial, trials, folder.path)
        best[arrangement] = settings
        if engine.is_global_zero:
            with replacing(folder.path / "search" / f"{arrangement}.yaml") as temporary:
                temporary.write_text(to_yaml(settings), encoding="utf-8")
    return trials, best


def _line(
    folder: RunFolder,
    data: Data,
    arrangement: str,
    settings: Settings,
    name: str,
    values: tuple[float, ...],
    engine: Any,
) -> list[tuple[Settings, float]]:
    """Train once for every value of one hyper-parameter."""
    found = []
    for value in values:
        change: dict[str, Any] = {name: int(value) if name == "batch_size" else float(value)}
        own = check(dataclasses.replace(settings, **change))
        place = folder.path / "search" / f"{arrangement}-lr{own.lr:g}-b{own.batch_size}-wd{own.weight_decay:g}"
        found.append((own, _accuracy(place, data, arrangement, own, engine)))
    return found


def _accuracy(place: Path, data: Data, arrangement: str, settings: Settings, engine: Any) -> float:
    train, validation = split(data.train, settings.seed, settings.validation_share)
    normalisation = normalisation_of(train, settings.normalise)
    classifier = build_classifier(settings, data, arrangement, settings.seed, normalisation)
    identity = identity_of(settings, arrangement, 0, classifier.network)
    try:
        log = fit(
            classifier,
            train,
            validation,
            settings,
            place,
            engine=engine,
            seed=settings.seed,
            identity=identity,
            title=place.name,
        )
    except NonFiniteError:
        return 0.0
    return log[-1].validation_accuracy


def _trial(arrangement: str, name: str, settings: Settings, accuracy: float, best: bool) -> Trial:
    return Trial(arrangement, name, settings.lr, settings.batch_size, settings.weight_decay, accuracy, int(best))
