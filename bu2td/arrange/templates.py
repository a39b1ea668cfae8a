"""Of what kind the new conv units are: laterals, merges, transitions, projections, adapters.

A new unit copies class and settings of an operation of the bottom-up network (design: section 3,
"Lateral" and "Merge"); here it is chosen which. The result is a `UnitSpec`, which names those nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bu2td.ir import Analysis, Block, Preactivation, UnitSpec, is_feature_map, is_spatial
from bu2td.ops import Role
from bu2td.options import Options


def odd_kernel(kernel: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
    """Kernel of a convolution once its stride is gone.

    k = stride (patchify) becomes 1; another even k becomes k + 1; an odd k stays.
    """
    high, wide = (
        1 if k == s and k > 1 else k + 1 if k % 2 == 0 else k for k, s in zip(kernel, stride, strict=True)
    )
    return high, wide


class Templates:
    """Chooses the operations that new units copy."""

    def __init__(self, analysis: Analysis) -> None:
        self.view = analysis.view
        self.analysis = analysis

    # -- convolutions ------------------------------------------------------------------------------

    def kernel(self, conv: str) -> tuple[int, int]:
        """Kernel of a convolution in the top-down network."""
        return odd_kernel(self.view.kernel(conv), self.view.stride(conv))

    def conv_of(self, block: Block) -> str:
        """The convolution of a plain conv unit."""
        return next(n for n in block.nodes if self.view.role(n) == Role.CONV)

    def leading_norm(self, block: Block) -> bool:
        """Whether a plain conv unit starts with a norm."""
        for name in block.nodes:
            if self.view.role(name) == Role.CONV:
                return False
            if self.view.role(name).normalises:
                return True
        return False

    def _convs(self, blocks: Iterable[Block]) -> list[str]:
        return [
            n
            for b in blocks
            for n in b.nodes
            if self.view.role(n) == Role.CONV and is_feature_map(self.view.dims[n])
        ]

    # -- units -------------------------------------------------------------------------------------

    def lateral(
        self, blocks: Sequence[Block], kernels: Mapping[str, tuple[int, int]], image_width: int, width: int
    ) -> UnitSpec:
        """The lateral of a level with a body: of the kind of its first spatial convolution."""
        convs = self._convs(blocks)
        sized = [(n, kernels.get(n) or self.kernel(n)) for n in convs]
        spatial = [(n, k) for n, k in sized if k != (1, 1)]
        if spatial:
            conv, kernel = spatial[0]
        elif sized:
            conv, kernel = sized[0][0], self._stem_kernel()
        else:
            return self.bare_lateral(image_width, width)
        block = next(b for b in blocks if conv in b.nodes)
        return self._lateral(conv, kernel, block.nodes, image_width, width)

    def bare_lateral(self, image_width: int, width: int) -> UnitSpec:
        """The lateral of a level without a body: of the kind of the network's first convolution."""
        conv = self.analysis.first_conv
        own = self.analysis.stem.nodes or self.analysis.bodies[-1].blocks[0].nodes
        return self._lateral(conv, self._stem_kernel(), own, image_width, width)

    def _stem_kernel(self) -> tuple[int, int]:
        """Kernel of the first convolution, made odd; a lateral does not upsample, so patches stay wide."""
        return odd_kernel(self.view.kernel(self.analysis.first_conv), (1, 1))

    def _lateral(
        self, conv: str, kernel: tuple[int, int], nodes: Sequence[str], image_width: int, width: int
    ) -> UnitSpec:
        norm, act = (None, None) if self.analysis.preactivation else self._norm_act(conv, nodes)
        side = max(kernel)
        return UnitSpec(image_width, width, (side, side), conv, norm, act)

    def _norm_act(self, conv: str, nodes: Sequence[str]) -> tuple[str | None, str | None]:
        """The norm right behind a convolution, and the activation that follows next."""
        norm = self._norm_behind(conv)
        if norm is not None and self._has_activation(norm):
            return norm, None
        start = self.view.order[norm or conv]
        behind = sorted((n for n in nodes if self.view.order[n] > start), key=self.view.order.__getitem__)
        maps = (n for n in behind if is_feature_map(self.view.dims[n]))
        acts = (n for n in maps if self.view.role(n) == Role.ACT or self._has_activation(n))
        return norm, next((n for n in acts if not self._opens_gate(n)), None)

    def _opens_gate(self, act: str) -> bool:
        """Whether an activation only makes the weights by which another map is multiplied."""
        view = self.view
        users = [u.name for u in view.nodes[act].users]
        return bool(users) and all(view.role(u) == Role.MUL and len(view.inputs(u)) > 1 for u in users)

    def _norm_behind(self, name: str) -> str | None:
        """The norm that alone reads a convolution."""
        view = self.view
        while True:
            users = [u.name for u in view.nodes[name].users if is_spatial(view.dims.get(u.name))]
            if len(users) != 1 or view.role(users[0]) not in (Role.NORM, Role.NORM_ACT, Role.PASS, Role.DROPOUT):
                return None
            name = users[0]
            if view.role(name).normalises:
                return name

    def _has_activation(self, name: str) -> bool:
        """Whether a node is a norm with its activation inside."""
        view = self.view
        return view.role(name) == Role.NORM_ACT and bool(view.converter(name).has_activation(view.site(name)))

    def _preactivation(self, block: Block | None) -> Preactivation | None:
        """The norm-act that a pre-activation block starts with; of another block, the finest level's last one's."""
        if block is not None and block.preactivation:
            return block.preactivation
        blocks = [b for level in self.analysis.bodies for b in level.blocks]
        return next((b.preactivation for b in reversed(blocks) if b.preactivation), None)

    def merge(self, block: Block | None, lateral: UnitSpec, width: int, options: Options) -> UnitSpec:
        """The merge's convolution unit, 2C -> C (C -> C where only the sum is read)."""
        entry = width if options.merge == "add" else 2 * width
        return self._new(block, lateral, entry, width, (options.merge_kernel,) * 2)

    def transition(self, block: Block | None, lateral: UnitSpec, entry: int, width: int) -> UnitSpec | None:
        """The 1x1 conv unit that changes the width at low resolution; None where it does not change."""
        return None if entry == width else self._new(block, lateral, entry, width, (1, 1))

    def _new(
        self, block: Block | None, lateral: UnitSpec, entry: int, width: int, kernel: tuple[int, int]
    ) -> UnitSpec:
        if self.analysis.preactivation:
            opening = self._preactivation(block)
            norm, act = (opening.norm, opening.act) if opening else (None, None)
            return UnitSpec(entry, width, kernel, lateral.conv, norm, act, preactivation=True)
        return UnitSpec(entry, width, kernel, lateral.conv, lateral.norm, lateral.act)

    def adapter(self, block: Block | None, entry: int, width: int) -> UnitSpec | None:
        """A bare 1x1 convolution where the channel system could not meet a width; None where it could."""
        if entry == width:
            return None
        conv = self._convs([block])[:1] if block else []
        return UnitSpec(entry, width, (1, 1), conv[0] if conv else self.analysis.first_conv)

    # -- shortcuts ---------------------------------------------------------------------------------

    def projection(self, block: Block, entry: int, width: int) -> UnitSpec:
        """A shortcut's 1x1 convolution after the model's own kind, with or without norm."""
        blocks = [b for level in self.analysis.bodies for b in level.blocks]
        own = next((b.shortcut for b in blocks if b.shortcut and b.shortcut.conv), None)
        conv, norm = (str(own.conv), own.norm) if own else self._main_path_end(block)
        return UnitSpec(entry, width, (1, 1), conv, norm)

    def _main_path_end(self, block: Block) -> tuple[str, str | None]:
        """Where no block has a projection: the last convolution of the main path, with its norm."""
        conv = (self._convs([block]) or [self.analysis.first_conv])[-1]
        users = [u.name for u in self.view.nodes[conv].users]
        norm = next((u for u in users if self.view.role(u) == Role.NORM), None)
        return conv, None if self.analysis.preactivation else norm

    def preactivated(self, block: Block) -> str:
        """What a projection reads: act(norm(x)) in a pre-activation block, else x."""
        return block.preactivation.exit if block.preactivation else block.entry
