"""Every figure of the README is that of its file under bench/results, and every page that it names is there."""

import csv
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
README = (ROOT / "README.md").read_text()
#: Numbers that nobody measured: the year of the paper, the least Python, shapes of the example.
PLAIN = {"2020", "3.10", "2", "3", "97", "130", "1000"}


def read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def table(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def row(question: str, answer: str, file: str) -> str:
    return f"| {question} | {answer} | [{file}]({file}) |"


def rows() -> Iterator[str]:
    """The table, as the files say it today."""
    paper = json.loads((ROOT / "tests" / "goldens" / "parameters.json").read_text())
    count = sum(len(networks) - ("bu" in networks) for name, networks in paper.items() if name[0] != "_")
    yield row(
        "are they the paper's networks?",
        f"{count} of {count} have the authors' parameter counts to the unit",
        "tests/goldens/parameters.json",
    )
    zoo = read("zoo.json")["arrangements"]
    yield row(
        "which networks convert?",
        f"{min(a['verified'] for a in zoo)} of {zoo[0]['models']} classifiers of timm and torchvision in each of "
        f"{len(zoo)} arrangements, {sum(a['refused'] for a in zoo) // len(zoo)} are refused with a cause, "
        f"{sum(a['failed'] for a in zoo)} fail",
        "bench/results/zoo.json",
    )
    others = [read(f"zoo_{name}.json")["arrangements"][0] for name in ("pytorchcv", "monai")]
    yield row(
        "of other libraries?",
        f"{others[0]['verified']} of {others[0]['models']} variants of pytorchcv, {others[1]['verified']} of "
        f"{others[1]['models']} of MONAI",
        "bench/results/zoo_pytorchcv.json",
    )
    [macs] = [float(r["macs_ratio"]) for r in table("real_models.csv")
              if (r["model"], r["arrangement"]) == ("resnet18", "td")]  # fmt: skip
    yield row(
        "what does it cost?",
        f"{macs:.1f} times the bottom-up ResNet18's multiply-accumulates",
        "bench/results/real_models.csv",
    )
    [convert] = [r for r in read("convert.json")["rows"] if r["model"] == "resnet50"]
    yield row(
        "how long does a conversion take?",
        f"ResNet50: {convert['convert_s']:.2f} s, {convert['ratio']:.1f} times `timm.create_model`",
        "bench/results/convert.json",
    )
    speed = {
        task: statistics.geometric_mean(
            r["speedup"]
            for r in read("speed.json")["rows"]
            if (r["task"], r["kind"], r.get("rival")) == (task, "eager", "as written")
        )
        for task in ("inference", "training")
    }
    yield row(
        "is it as fast as by hand?",
        f"`bu2td.optimize`: {speed['inference']:.2f} times as fast in inference, "
        f"{speed['training']:.2f} times in a training step",
        "bench/results/speed.json",
    )
    told = []
    for name in ("families", "families_measured", "families_others"):
        own = {task: [r["speedup"] for r in read(f"{name}.json")["rows"]
                      if (r["task"], r["kind"]) == (task, "eager") and "speedup" in r]
               for task in ("inference", "training")}  # fmt: skip
        means = [f"{statistics.geometric_mean(values):.2f}" for values in own.values()]
        every = [value for values in own.values() for value in values]
        told.append((*means, f"{sum(value < 0.97 for value in every)} of {len(every)}"))
    yield row(
        "does `optimize` ever lose?",
        f"24 families against the better of their memory formats: {told[0][0]} times as fast in inference, "
        f"{told[0][1]} in training, {told[0][2]} cases below 0.97; measured on the machine {told[1][0]} and "
        f"{told[1][1]}, {told[1][2]}; 20 others, that no rule was made for: {told[2][0]} and {told[2][1]}, "
        f"{told[2][2]}",
        "bench/results/families.json",
    )
    memory = {(r["network"], r["recomputed"], r["precision"]): r["peak_mib"] for r in read("memory.json")["rows"]}
    peaks = [
        memory[network, recomputed, "float32"] / 1024
        for network, recomputed in (("converted", "nothing"), ("optimised", "inside"), ("bottom-up", "nothing"))
    ]
    yield row(
        "how much memory does training take?",
        f"ResNet18, a batch of 32: {peaks[0]:.1f} GiB, optimised and recomputed {peaks[1]:.1f}; bottom-up "
        f"{peaks[2]:.1f}",
        "bench/results/memory.json",
    )
    run = "evaluate/fashion-mnist-lenet_fc/report.json"
    compared = [c for c in read(run)["comparisons"] if (c["level"], c["arrangement"]) == ("these networks", "td")]
    attacks = {c["subject"]: c for c in compared if c["family"] == "Attacks" and c["primary"]}
    [right] = [c for c in compared if (c["family"], c["measure"]) == ("Accuracy", "test accuracy")]
    robust = attacks.pop("strongest")
    verdicts = [c["verdict"] for c in attacks.values()]
    yield row(
        "is it more robust?",
        f"LeNetFC on Fashion-MNIST: the strongest attack needs {robust['top_down']:.2f} (mean L2), bottom-up "
        f"{robust['bottom_up']:.2f}; of {len(verdicts)} attacks {verdicts.count('better')} need more, "
        f"{verdicts.count('worse')} less; accuracy {100 * right['top_down']:.1f} %, bottom-up "
        f"{100 * right['bottom_up']:.1f} %",
        f"bench/results/{run}",
    )
    runs = read("segmentation/results.json")["runs"]
    scenes = {
        name: statistics.mean(r["history"][-1]["mean_iou"] for r in runs if r["network"] == name)
        for name in ("top-down", "FCN")
    }
    yield row(
        "does it segment better?",
        f"not at equal cost: mean IoU {scenes['top-down']:.1%}, FCN {scenes['FCN']:.1%}".replace("%", " %"),
        "bench/results/segmentation/results.json",
    )
    fields = read("erf.json")["about"]
    yield row(
        "are receptive fields right?",
        f"{fields['equal_both_ways']} of {fields['models']} models agree with gradients on every level",
        "bench/results/erf.json",
    )
    clients = [r["plain"] for r in read("ecosystem.json")["rows"]]
    yield row(
        "does it work with other tools?",
        f"{clients.count('works')} of {len(clients)} clients that were tried",
        "bench/results/ecosystem.json",
    )


def test_the_table_is_that_of_the_results() -> None:
    expected = list(rows())
    found = README.partition("| question | answer | from |\n|---|---|---|\n")[2].partition("\n\n")[0].splitlines()
    assert found == expected, "README.md should have:\n" + "\n".join(expected)


def test_no_figure_stands_elsewhere() -> None:
    """What is not in the table is no measurement: numbers of the rest are names, shapes and versions."""
    text = README
    for line in rows():
        text = text.replace(line, "")
    clients = str(len(read("ecosystem.json")["rows"]))
    text = text.replace(f"[{clients} clients that were tried]", "")
    text = re.sub(r"\]\([^)]*\)", "]", text)  # where links lead
    assert set(re.findall(r"(?<![A-Za-z\d])\d+(?:[.,]\d+)*", text)) == PLAIN


def test_the_readme_is_one_screen_and_its_code_runs() -> None:
    assert README.count("![") == 1
    assert len(README.splitlines()) <= 80
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(code.strip().splitlines()) == 5
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(code, names)
    assert names["logits"].shape == (2, 1000)


def test_pages_that_the_readme_and_the_docs_name_are_there() -> None:
    missing = []
    for page in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").rglob("*.md"),
    ):
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in link and not (page.parent / link).exists():
                missing.append(f"{page.relative_to(ROOT)}: {link}")
    assert not missing
