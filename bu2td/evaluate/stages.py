"""What the stages of an evaluation have in common: the run that they work on, and the parts of their work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bu2td.errors import OptionError
from bu2td.evaluate.data.sets import Data, first_images
from bu2td.evaluate.data.sets import Part as Some
from bu2td.evaluate.folder import RunFolder
from bu2td.evaluate.parts import Part
from bu2td.evaluate.schema import Row
from bu2td.evaluate.settings import Settings
from bu2td.evaluate.train.accuracy import load_classifier
from bu2td.evaluate.train.checkpoint import digest
from bu2td.evaluate.train.identity import networks_of
from bu2td.evaluate.train.model import Classifier

#: Rows to print by title.
Answer = dict[str, list[dict[str, Any]]]
#: A training: arrangement and repeat.
Network = tuple[str, int]


@dataclass(frozen=True)
class Context:
    """What a stage works on: a run whose networks are trained, its data, and the engine of this process.

    Attributes:
        run: the folder, with the settings of this call.
        data: of the run.
        engine: from `bu2td.evaluate.train.engine.start`.
        only: the trainings that this shard works on, of those that it trained; None: all of the run.
    """

    run: RunFolder
    data: Data
    engine: Any
    only: tuple[Network, ...] | None = None

    @property
    def settings(self) -> Settings:
        """Of this call."""
        return self.run.settings

    def networks(self, arrangements: Sequence[str], repeats: int) -> list[Network]:
        """The trainings (arrangement, repeat) that a stage looks at, of those that the run asked for.

        Raises:
            OptionError: the run has none of them.
        """
        wanted = [a for a in arrangements if a in self.settings.arrangements]
        if not wanted:
            raise OptionError(
                f"{self.run.path} has {', '.join(self.settings.arrangements)}, not {', '.join(arrangements)}. "
                f"Train these too: bu2td evaluate train -o {self.run.path} --resume --arrangements "
                f"{' '.join(arrangements)}"
            )
        there = networks_of(self.settings)
        networks = [(a, k) for k in range(min(repeats, self.settings.repeats)) for a in wanted if (a, k) in there]
        return networks if self.only is None else [own for own in networks if own in self.only]

    def repeats(self, arrangements: Sequence[str]) -> list[int]:
        """The repeats of which this process has the trainings of all these arrangements."""
        networks = self.networks(arrangements, self.settings.repeats)
        return [k for k in range(self.settings.repeats) if all((a, k) in networks for a in arrangements)]

    def classifier(self, arrangement: str, repeat: int) -> Classifier:
        """A trained network, in eval mode, on the engine's device."""
        return load_classifier(self.run, self.data, arrangement, repeat).to(self.engine.device).eval()

    def drawn(self, count: int) -> list[int]:
        """Positions of test images, drawn at random; more of them start with the same ones, 0 is all."""
        order = torch.randperm(len(self.data.test), generator=torch.Generator().manual_seed(self.settings.seed))
        return order.tolist()[: count or None]

    def sample(self, count: int) -> tuple[list[int], Tensor, Tensor]:
        """Some test images: their positions, (N, C, H, W) in [0, 1], labels (N,)."""
        positions = self.drawn(count)
        return (positions, *first_images(Some(self.data.test, positions)))


@dataclass(frozen=True)
class Stage:
    """An experiment on trained networks.

    Attributes:
        name: of the command and of the folder of its parts.
        tables: the CSV files that `collect` writes.
        plan: lays out the parts.
        collect: puts all parts that are there together, writes the tables, and returns what is printed.
        files: other files that `collect` writes.
        then: lays out parts that need the files of the first ones.
    """

    name: str
    tables: tuple[type[Row], ...]
    plan: Callable[[Context], list[Part]]
    collect: Callable[[Context], Answer]
    files: tuple[str, ...] = ()
    then: Callable[[Context], list[Part]] | None = None


def digest_model(model: nn.Module) -> str:
    """A hash of a model's weights and buffers."""
    named: Mapping[str, Tensor] = dict((*model.named_parameters(), *model.named_buffers()))
    return digest(list(named.values()), f"{type(model).__name__} {list(named)}")
