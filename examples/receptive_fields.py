"""Receptive fields of the paper's example, as section 3.2 counts them.

The bottom-up network is conv3-pool2-conv3-pool2-conv3. Section 3.2 of "Top-Down Networks: A coarse-to-fine
reimagination of CNNs" (Lelekas et al., 2020) follows its receptive field by equation 1 and compares it with the
top-down network, whose first image is a blurred one at a quarter of the size. The paper counts the window of the
blur as 12 sigma + 2 pixels there; bu2td's own pyramid has 24 sigma taps (12 for its default sigma of 1/2). Either
way the coarsest convolution already sees at least the 18 pixels that the bottom-up network sees at its end.
"""

import torch
from torch import nn

import bu2td
from bu2td.erf import theory


def network() -> nn.Module:
    """conv3-pool2-conv3-pool2-conv3 and a head."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 6), (6, 16), (16, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers[:-1], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def paper_window(factor: int, sigma: float) -> int:
    """The paper's count of the pixels that a blurred image at 1/factor sees: 12 sigma + 2 at 1/4."""
    return round(3 * sigma * factor) + 2


def show(title: str, fields: bu2td.erf.Fields) -> None:
    """Print the field of every layer that looks around or joins."""
    print(f"\n{title}")
    for row in fields.rows:
        if row["size"] and row["op"] in ("Conv2d", "MaxPool2d", "getitem") and "transition" not in row["name"]:
            meet = "{" + ", ".join(str(side) for side, _ in row["merged"]) + "}" if row["merged"] else ""
            print(f"  {row['name']:16} 1/{row['reduction']}  {row['size'][0]:3}  {meet}".rstrip())


images = torch.zeros(2, 1, 28, 28)
model = network()
show("Bottom-up: 3, 4, 8, 10, 18", theory(model, example_inputs=images, layers="all"))
for sigma, window, k in ((0.5, None, 12), (2 / 3, paper_window, 10)):
    td = bu2td.convert(model, "td", example_inputs=images, merge_kernel=1, sigma=sigma, seed=0)
    fields = theory(td, layers="all", pyramid_field=window)
    counted = "the paper's count, 12 sigma + 2" if window else "the pyramid's own taps"
    show(f"Top-down, sigma = {sigma:.2f}, {counted} = {k} at 1/4:", fields)
    sides = [str(side) for side, _ in fields.rows[-4]["merged"]]
    print(f"  the last merge joins fields of {' and '.join(sides)} pixels")
