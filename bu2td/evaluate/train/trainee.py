"""A network while it trains: in the form that is fastest on this machine, with the weights of the plain one.

What the form is made of (`bu2td.optimize`, the memory format, torch.compile, several processes) decides no
number beyond rounding, except that dropout masks are drawn in the order of memory; so a training can go on in
another form.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F

import bu2td
from bu2td.errors import OptimizeError, VerificationError
from bu2td.evaluate.settings import Settings
from bu2td.evaluate.train.engine import is_shared, synchronise_norms
from bu2td.evaluate.train.model import Classifier
from bu2td.runtime import TopDownNetwork


class Trainee:
    """A classifier, its form for training, and the optimiser.

    Args:
        plain: the classifier, moved to the engine's device; `write_back` brings the weights there.
        settings: of this network.
        engine: from `bu2td.evaluate.train.engine.start`.
        image_shape: (C, H, W) of the images.
        state: of the optimiser, as a checkpoint has it; None starts anew.

    Attributes:
        twin: computes what `plain` does, and has weights of the same names; it is `plain` where there is no other
            form.
    """

    def __init__(
        self,
        plain: nn.Module,
        settings: Settings,
        engine: Any,
        image_shape: tuple[int, ...],
        state: dict[str, Any] | None = None,
    ) -> None:
        self.plain, self.engine = plain.to(engine.device), engine
        twin = _optimised(plain, settings, engine, image_shape) if settings.optimize else plain
        is_top_down = isinstance(getattr(plain, "network", plain), TopDownNetwork)
        self.channels_last = is_top_down if settings.channels_last is None else settings.channels_last
        if self.channels_last:
            twin.to(memory_format=torch.channels_last)
        self.twin = synchronise_norms(twin, engine)
        own: Any = torch.optim.SGD(
            _groups(plain, self.twin, settings),
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
        )
        compiled: Any = torch.compile(self.twin) if settings.torchcompile else self.twin
        self.module, self.optimizer = engine.setup(compiled, own)
        if state is not None:
            self.optimizer.load_state_dict(state)

    def step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step of SGD on a batch: its mean loss (), and the logits (N, K) before it."""
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits = self.module(images)
        loss = F.cross_entropy(logits.float(), labels)
        self.optimizer.zero_grad()
        self.engine.backward(loss)
        self.optimizer.step()
        return loss.detach(), logits.detach()

    def write_back(self) -> None:
        """Bring the weights into the plain classifier; of several processes the first one's buffers count."""
        if is_shared(self.engine):
            for buffer in self.twin.buffers():
                torch.distributed.broadcast(buffer, 0)
        if self.twin is not self.plain:
            self.plain.load_state_dict(self.twin.state_dict())


def _optimised(plain: nn.Module, settings: Settings, engine: Any, shape: tuple[int, ...]) -> nn.Module:
    """The classifier with its top-down network as `bu2td.optimize` makes it; the classifier itself where it has
    none, or where the optimised network would not do the same on this machine, which is said in one line.
    """
    network = getattr(plain, "network", plain)
    if not isinstance(network, TopDownNetwork):
        return plain
    batch = max(settings.batch_size // engine.world_size, 1)
    try:
        faster = bu2td.optimize(network, "training", batch_size=batch, image_size=shape[1:])
    except (OptimizeError, VerificationError) as error:
        if engine.is_global_zero:
            print(f"trained without bu2td.optimize: {error}", file=sys.stderr)
        return plain
    if not isinstance(plain, Classifier):
        return faster
    return Classifier(faster, plain.mean, plain.std, plain.channels).train(plain.training)


def _groups(plain: nn.Module, twin: nn.Module, settings: Settings) -> list[dict[str, Any]]:
    """The parameters of the twin in the order of the plain classifier, so that an optimiser's state fits both.

    Kernels are those of two or more dimensions: weights of convolutions and linear layers, no biases, no norms.
    """
    weights = dict(twin.named_parameters())
    ordered = [weights[name] for name, _ in plain.named_parameters()]
    if settings.weight_decay_of == "all":
        return [{"params": ordered, "weight_decay": settings.weight_decay}]
    kernels = [p for p in ordered if p.ndim >= 2]
    others = [p for p in ordered if p.ndim < 2]
    groups = [{"params": kernels, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
