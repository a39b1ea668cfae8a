"""CPU time of a training step: a network as it is against the form in which `bu2td evaluate` trains it.

    PYTHONPATH=. python bench/train_step.py bu2td:lenet_fc --pairs 9 --steps 4

The forms take turns within each pair, so that a busy machine slows all of them; ratios are those of a pair.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch

from bu2td.evaluate.data.sets import Part, first_images, load_data
from bu2td.evaluate.settings import Settings
from bu2td.evaluate.train.engine import start
from bu2td.evaluate.train.model import build_classifier
from bu2td.evaluate.train.trainee import Trainee


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="MODEL word")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--arrangement", default="td")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="in each measurement")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data(options.data)
    default = Settings(model=options.model, batch_size=options.batch_size, device="cpu")
    forms = {
        "plain": replace(default, optimize=False, channels_last=False),
        "optimize": replace(default, channels_last=False),
        "channels_last": replace(default, optimize=False, channels_last=True),
        "both": replace(default, channels_last=True),
    }
    images, labels = first_images(Part(data.train, range(options.batch_size)))
    engine, trainees = start(default), {}
    for name, settings in forms.items():
        classifier = build_classifier(settings, data, options.arrangement, 0, (None, None))
        trainees[name] = Trainee(classifier, settings, engine, data.shape)
        trainees[name].module.train()
        trainees[name].step(images, labels)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(options.pairs):
        for name, trainee in trainees.items():
            begin = time.process_time()
            for _ in range(options.steps):
                trainee.step(images, labels)
            times[name].append((time.process_time() - begin) / options.steps)
    for name, own in times.items():
        ratios = [plain / mine for plain, mine in zip(times["plain"], own, strict=True)]
        print(
            f"{name:14} {statistics.median(own) * 1e3:8.1f} ms a step, {statistics.median(ratios):.2f} times "
            f"as fast ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
