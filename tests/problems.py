"""Networks under attack whose nearest adversarial images are known, or small enough to try everything."""

import warnings

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import foolbox


class Linear(nn.Module):
    """Logits W x + b; the nearest point of class j is (z_y - z_j) / ||w_y - w_j|| away."""

    def __init__(self, classes: int, shape: tuple[int, int, int], seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        size = int(np.prod(shape))
        self.weight = nn.Parameter(10 * torch.randn(classes, size, generator=generator))
        self.bias = nn.Parameter(-self.weight.detach().sum(1) / 2)  # all classes meet at grey

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.weight, self.bias)

    def distances(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Labels, and the least distance to another class."""
        logits = self(x).detach()
        labels = logits.argmax(1)
        gaps = logits.gather(1, labels[:, None]) - logits
        lengths = (self.weight[labels][:, None] - self.weight[None]).detach().norm(dim=2)
        return labels, (gaps / lengths).masked_fill(F.one_hot(labels, logits.shape[1]).bool(), torch.inf).amin(1)


def linear_problem(classes: int, count: int = 8, shape: tuple[int, int, int] = (1, 4, 4)) -> tuple:
    model = Linear(classes, shape)
    images = 0.3 + 0.4 * torch.rand(20 * count, *shape, generator=torch.Generator().manual_seed(1))
    labels, distance = model.distances(images)
    some = ((distance > 0.05) & (distance < 0.25)).nonzero()[:count, 0]  # the nearest point lies inside the box
    assert len(some) == count
    return model, images[some], labels[some], distance[some].numpy()


class Curved(nn.Module):
    """A small network with random weights and biases, of any image size."""

    def __init__(self, channels: int = 1, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(channels, 6, 3, padding=1)
            self.last = nn.Linear(6 * 4, classes)
            images = torch.rand(64, channels, 6, 6)
            nn.init.normal_(self.last.weight, std=3.0)
        with torch.no_grad():
            self.last.bias -= self(images).mean(0)  # noise images are spread over all classes

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.adaptive_avg_pool2d(torch.tanh(3 * self.conv(x)), 2).flatten(1))


def curved_problem(channels: int = 1, size: tuple[int, int] = (6, 6), count: int = 12) -> tuple:
    model = Curved(channels)
    images = torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(2))
    return model, images, model(images).argmax(1)


def foolbox_model(model: nn.Module) -> foolbox.PyTorchModel:
    return foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device="cpu")


def run(attack: object, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (inf where the attack fails) and images."""
    found, _, success = attack(foolbox_model(model), images, labels, epsilons=None)
    distance = (found - images).flatten(1).norm(dim=1)
    return torch.where(success, distance, torch.inf).detach(), found.detach()
