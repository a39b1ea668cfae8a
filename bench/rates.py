"""How long an image takes on this device: the paper's networks, in training and in inference.

    PYTHONPATH=. python bench/rates.py [--device cuda] [--threads 2]

Writes the rows of this device into bu2td/evaluate/rates.csv, from which ``bu2td evaluate --dry-run`` says what a
run would take there. Training is a step in the form in which the suite trains (`optimize`, channels_last), on
random images; a rate is the median over two seconds.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable

import _results
import torch
from tqdm import tqdm

from bu2td.evaluate.checks import logits_of
from bu2td.evaluate.data.sets import Data, TensorImages
from bu2td.evaluate.rates import FILE, Rate, measured_rates, multiply_accumulates
from bu2td.evaluate.settings import Settings, read_settings
from bu2td.evaluate.train.engine import device_name, start
from bu2td.evaluate.train.model import build_classifier
from bu2td.evaluate.train.trainee import Trainee
from bu2td.files import write_csv

PRESETS = (
    "fashion-mnist-lenet_fc", "fashion-mnist-nin_light", "cifar10-nin", "cifar10-resnet32", "imagenette-resnet18",
)  # fmt: skip
SHAPES = {"fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32), "imagenette": (3, 128, 128)}
TIMES, SECONDS = 100, 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[Rate] = []
    for preset in (bar := tqdm(PRESETS)):
        settings = read_settings(preset, flags={"device": options.device})
        for arrangement in ("bu", "td"):
            bar.set_description(f"{settings.model} {arrangement}")
            rows += measured(settings, arrangement)
    kept = [rate for device, own in measured_rates().items() if device != rows[0].device for rate in own]
    columns = [field.name for field in dataclasses.fields(Rate)]
    write_csv([dataclasses.asdict(rate) for rate in (*kept, *rows)], FILE, columns)


def measured(settings: Settings, arrangement: str) -> list[Rate]:
    """Training and inference of one network."""
    engine = start(settings)
    shape, batch = SHAPES[settings.data], settings.batch_size
    drawn = TensorImages(torch.rand(batch, *shape), torch.arange(batch) % 10)
    data = Data("random", drawn, drawn, tuple(map(str, range(10))), shape)
    images, labels = drawn.images.to(engine.device), drawn.labels.to(engine.device)
    classifier = build_classifier(settings, data, arrangement, 0, (None, None)).to(engine.device)
    macs = multiply_accumulates(classifier.eval(), images[:1])
    found = []
    trainee = Trainee(classifier, settings, engine, shape)
    trainee.module.train()
    works = {"training": lambda: trainee.step(images, labels), "inference": lambda: logits_of(classifier, images)}
    for work, call in works.items():
        if work == "inference":
            classifier.eval()
        name, word = device_name(engine.device), settings.model
        seconds = timed(call, engine.device) / batch
        found.append(Rate(name, word, arrangement, work, batch, macs, round(seconds, 9), torch.__version__))
    return found


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call: the median of several, after a first one, until they have taken long enough together."""
    call()
    times: list[float] = []
    while len(times) < TIMES and sum(times) < SECONDS:
        times.append(_results.seconds(call, device))
    return statistics.median(times)


if __name__ == "__main__":
    main()
