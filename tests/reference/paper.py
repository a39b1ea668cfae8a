"""The thirteen top-down networks of the paper, by hand.

Shapes follow section 4 of the rules (the baselines: every conv has a bias), their conversion
section 3. Faults can be built in by name, to show that a comparison notices them.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from .parts import Entry, Kind, Merge, Pyramid, Size, Unit, conv, lateral, size_of, upsample

PLAIN = ("lenet_fc", "nin_light", "nin")
RESIDUAL = ("resnet32", "resnet18_imagenette")

ARRANGEMENTS: dict[str, tuple[str, ...]] = {
    "lenet_fc": ("td", "uni", "rev"),
    "nin_light": ("td", "uni", "rev"),
    "nin": ("td", "uni", "rev"),
    "resnet32": ("td", "uni", "rev"),
    "resnet18_imagenette": ("td",),  # with stem="coarse"
}

INPUTS: dict[str, tuple[int, int, int]] = {
    "lenet_fc": (1, 28, 28),
    "nin_light": (1, 28, 28),
    "nin": (3, 32, 32),
    "resnet32": (3, 32, 32),
    "resnet18_imagenette": (3, 128, 128),
}

# Fault -> the networks that it can be built into. "projection_reads_x" needs a projection, and
# the uniform ResNet32 has none: `mutants` gives the faults of one network in one arrangement.
MUTANTS: dict[str, tuple[str, ...]] = {
    "bn_relu_swapped": (*PLAIN, *RESIDUAL),
    "bilinear": (*PLAIN, *RESIDUAL),
    "concat_order": (*PLAIN, *RESIDUAL),
    "no_sum": (*PLAIN, *RESIDUAL),
    "cascaded_pyramid": (*PLAIN, *RESIDUAL),
    "merge_before_block": RESIDUAL,
    "projection_reads_x": RESIDUAL,
    "lateral_without_relu": PLAIN,
}

# Levels of plain conv units, coarse to fine: (kernel, width) of every conv. In `rev` the widths
# and the number of convs are in BU's order, the first kernel still follows the resolution.
Levels = list[list[tuple[int, int]]]
PLAIN_LEVELS: dict[tuple[str, str], Levels] = {
    ("lenet_fc", "td"): [[(3, 32)], [(5, 16)], [(5, 6)]],
    ("lenet_fc", "uni"): [[(3, 16)], [(5, 16)], [(5, 16)]],
    ("lenet_fc", "rev"): [[(3, 6)], [(5, 16)], [(5, 32)]],
    ("nin_light", "td"): [[(3, 48), (1, 48)], [(5, 48), (1, 48), (1, 48)], [(5, 48), (1, 40), (1, 24)]],
    ("nin_light", "uni"): [[(3, 48), (1, 48)], [(5, 48), (1, 48), (1, 48)], [(5, 48), (1, 48), (1, 48)]],
    ("nin_light", "rev"): [[(3, 48), (1, 40), (1, 24)], [(5, 48), (1, 48), (1, 48)], [(5, 48), (1, 48)]],
    ("nin", "td"): [[(3, 192), (1, 192)], [(5, 192), (1, 192), (1, 192)], [(5, 192), (1, 160), (1, 96)]],
    ("nin", "uni"): [[(3, 192), (1, 192)], [(5, 192), (1, 192), (1, 192)], [(5, 192), (1, 192), (1, 192)]],
    ("nin", "rev"): [[(3, 192), (1, 160), (1, 96)], [(5, 192), (1, 192), (1, 192)], [(5, 192), (1, 192)]],
}
PLAIN_KIND = Kind(bias=True, eps=1e-3, momentum=0.01)
RESIDUAL_KIND = Kind(bias=True, eps=1e-5, momentum=0.1, pre_activation=True)


def units(inputs: int, level: list[tuple[int, int]]) -> nn.Sequential:
    """Return the conv units of one level, one after the other."""
    modules: list[nn.Module] = []
    for kernel, width in level:
        modules.append(Unit(inputs, width, kernel, PLAIN_KIND))
        inputs = width
    return nn.Sequential(*modules)


class PlainLevel(nn.Module):
    """Rules, "Chain": transition, upsample, merge, BU's dropout, then all blocks of the level.

    C is the output width of the level's first block, so of its first conv; the lateral has the
    kernel of that conv.
    """

    def __init__(
        self, inputs: int, level: list[tuple[int, int]], channels: int, dropout: float, mutant: str | None
    ) -> None:
        super().__init__()
        kernel, width = level[0]
        self.entry = Entry(inputs, width, channels, kernel, PLAIN_KIND, mutant)
        self.dropout = nn.Dropout(dropout)
        self.body = units(width, level)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Take features of the coarser level to this one."""
        return self.body(self.dropout(self.entry(x, image)))


class PlainTopDown(nn.Module):
    """LeNetFC and NIN.

    Rules, "Coarsest level": the first block is a plain conv unit, which reads the coarsest image.
    "Head": the classifier conv moves as a full unit, then the global pool.
    """

    def __init__(self, levels: Levels, channels: int, dropout: float, mutant: str | None) -> None:
        super().__init__()
        self.pyramid = Pyramid((4, 2, 1), cascaded=mutant == "cascaded_pyramid")
        self.coarsest = units(channels, levels[0])
        self.finer = nn.ModuleList()
        width = levels[0][-1][1]
        for level in levels[1:]:
            self.finer.append(PlainLevel(width, level, channels, dropout, mutant))
            width = level[-1][1]
        self.classifier = Unit(width, 10, 1, PLAIN_KIND)

    def forward(self, image: Tensor) -> Tensor:
        images = self.pyramid(image)
        x = self.coarsest(images[0])
        for level, level_image in zip(self.finer, images[1:], strict=True):
            x = level(x, level_image)
        return self.classifier(x).mean(dim=(2, 3))


class PreActBlock(nn.Module):
    """BN-ReLU-3x3-BN-ReLU-3x3, as a plain block or, with a size, as an up-block.

    Rules, "Block": upsampling just before the first 3x3 conv; where the width changes the
    shortcut is a bare 1x1 conv of act(norm(x)) at low resolution, then upsampled; where it does
    not, the raw input upsampled. `projection_reads_x` is a deliberate fault.
    """

    def __init__(self, inputs: int, outputs: int, mutant: str | None = None) -> None:
        super().__init__()
        self.norm1 = RESIDUAL_KIND.norm(inputs)
        self.conv1 = conv(inputs, outputs, 3, bias=True)
        self.norm2 = RESIDUAL_KIND.norm(outputs)
        self.conv2 = conv(outputs, outputs, 3, bias=True)
        self.projection = conv(inputs, outputs, 1, bias=True) if inputs != outputs else None
        self.relu = nn.ReLU(inplace=True)
        self.projection_reads_x = mutant == "projection_reads_x"
        self.mode = "bilinear" if mutant == "bilinear" else "nearest"

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        """Run the block; with `size`, as an up-block to that size."""
        active = self.relu(self.norm1(x))
        shortcut = x if self.projection is None else self.projection(x if self.projection_reads_x else active)
        if size is not None:
            active = upsample(active, size, self.mode)
            shortcut = upsample(shortcut, size, self.mode)
        main = self.conv1(active)
        main = self.conv2(self.relu(self.norm2(main)))
        return main + shortcut


class ResidualLevel(nn.Module):
    """Rules, "Block": up-block, merge outside the residual, then the remaining blocks.

    `merge_before_block` is a deliberate fault: upsample, merge at the width that enters, then all
    blocks at the level's resolution.
    """

    def __init__(self, inputs: int, width: int, blocks: int, channels: int, mutant: str | None) -> None:
        super().__init__()
        self.merge_first = mutant == "merge_before_block"
        self.mode = "bilinear" if mutant == "bilinear" else "nearest"
        self.up_block = PreActBlock(inputs, width, mutant)
        merge_width = inputs if self.merge_first else width
        self.merge = Merge(channels, merge_width, 3, RESIDUAL_KIND, mutant)
        self.rest = nn.Sequential(*(PreActBlock(width, width) for _ in range(blocks - 1)))

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """Take features of the coarser level to this one."""
        size = size_of(image)
        if self.merge_first:
            x = self.up_block(self.merge(upsample(x, size, self.mode), image))
        else:
            x = self.merge(self.up_block(x, size), image)
        return self.rest(x)


class ResidualTopDown(nn.Module):
    """ResNet32 and, with `coarse_stem`, the Imagenette ResNet18.

    Rules, "Coarsest level": a bare 3x3 lateral of width C, then the blocks; the first one is plain
    and has no projection, as in == out. `stem="coarse"`: the pool of the stem becomes one
    upsample + merge at the coarsest stage's width, before the stages. "Head": BN-ReLU, global
    pool, classifier at the last width.
    """

    def __init__(
        self, widths: tuple[int, ...], blocks: int, channels: int, mutant: str | None, *, coarse_stem: bool = False
    ) -> None:
        super().__init__()
        count = len(widths) + coarse_stem
        reductions = tuple(2**k for k in reversed(range(count)))
        self.pyramid = Pyramid(reductions, cascaded=mutant == "cascaded_pyramid")
        width = widths[0]
        self.lateral = lateral(channels, width, 3, RESIDUAL_KIND)
        self.stem = Entry(width, width, channels, 3, RESIDUAL_KIND, mutant) if coarse_stem else None
        self.coarsest = nn.Sequential(*(PreActBlock(width, width) for _ in range(blocks)))
        self.finer = nn.ModuleList()
        for inputs, outputs in pairwise(widths):
            self.finer.append(ResidualLevel(inputs, outputs, blocks, channels, mutant))
        self.norm = RESIDUAL_KIND.norm(widths[-1])
        self.relu = nn.ReLU(inplace=True)
        self.classifier = nn.Linear(widths[-1], 10)

    def forward(self, image: Tensor) -> Tensor:
        images = self.pyramid(image)
        x = self.lateral(images.pop(0))
        if self.stem is not None:
            x = self.stem(x, images.pop(0))
        x = self.coarsest(x)
        for level, level_image in zip(self.finer, images, strict=True):
            x = level(x, level_image)
        return self.classifier(self.relu(self.norm(x)).mean(dim=(2, 3)))


def mutants(name: str, arrangement: str) -> tuple[str, ...]:
    """Return the faults that can be built into this network in this arrangement."""
    no_projection = name == "resnet32" and arrangement == "uni"
    return tuple(
        mutant
        for mutant, names in MUTANTS.items()
        if name in names and not (mutant == "projection_reads_x" and no_projection)
    )


def build(name: str, arrangement: str, mutant: str | None = None) -> nn.Module:
    """Return the top-down network of `name`, with the fault `mutant` if one is named."""
    if arrangement not in ARRANGEMENTS.get(name, ()):
        raise ValueError(f"no reference of {name} in {arrangement}")
    if mutant is not None and mutant not in mutants(name, arrangement):
        raise ValueError(f"{mutant} does not apply to {name} in {arrangement}")
    channels = INPUTS[name][0]
    if name == "resnet32":
        widths = {"td": (64, 32, 16), "uni": (32, 32, 32), "rev": (16, 32, 64)}[arrangement]
        return ResidualTopDown(widths, 5, channels, mutant)
    if name == "resnet18_imagenette":
        return ResidualTopDown((256, 128, 64, 32), 2, channels, mutant, coarse_stem=True)
    dropout = 0.0 if name == "lenet_fc" else 0.5
    return PlainTopDown(PLAIN_LEVELS[name, arrangement], channels, dropout, mutant)
