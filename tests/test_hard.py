"""Networks that need more than a rule of thumb; the decisions stand in docs/zoo.md."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from converted import converted, of_timm
from nets import head, unit
from torch import Tensor, nn

import bu2td
from bu2td.errors import TopologyError
from bu2td.models.words import create_model

timm = pytest.importorskip("timm")


def modules(network: nn.Module, kind: str) -> list[Any]:
    return [m for m in network.modules() if type(m).__name__ == kind]


# --- channels -----------------------------------------------------------------------------------------


def test_branches_of_depthwise_convs_form_one_block_with_their_1x1_convs() -> None:
    for name, block in (
        ("mobileone_s0", "stages.3"),
        ("mixnet_s", "blocks.5.0"),
        ("repvit_m0_9", "stages.3.blocks.0"),
    ):
        network = of_timm(name)
        assert network.plan.relaxations == (), name
        assert block in network.plan.levels[0].blocks, name


def test_efficient_channel_attention_follows_the_width() -> None:
    """Its 1-d convolution slides over the channels: frozen levels would follow if it pinned them."""
    network = of_timm("ecaresnet26t", "uni")
    assert network.plan.relaxations == ()
    assert modules(network, "Conv1d")


def test_squeeze_to_one_channel_stays_at_one() -> None:
    """Global context's map of one channel is a literal 1 in its views, whatever the width around it."""
    assert of_timm("gcresnext26ts", "uni").plan.relaxations == ()


def test_shortcut_of_option_a() -> None:
    """Every second pixel, zeros for new channels (He et al., 2016): both go with the stride."""

    class Padded(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.a, self.b = unit(inputs, outputs, 3, stride), nn.Conv2d(outputs, outputs, 3, padding=1)
            self.stride, self.added = stride, outputs - inputs

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(self.a(x))
            if self.stride > 1:
                x = x[:, :, :: self.stride, :: self.stride]
            if self.added:
                x = F.pad(x, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
            return F.relu(x + y)

    model = nn.Sequential(
        unit(3, 8), Padded(8, 8, 1), Padded(8, 16, 2), Padded(16, 20, 1), Padded(20, 32, 2), head(32)
    )
    for arrangement, widths in (("td", (32, 20, 8)), ("rev", (8, 20, 32))):
        network = converted(model, arrangement, example_inputs=torch.zeros(1, 3, 32, 32))
        assert network.plan.widths == widths
        assert network.plan.relaxations == ()


# --- norms and convolutions ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "vectors"),
    [
        ("test_efficientnet_evos", "EvoNorm2dS0", ("weight", "bias", "v")),
        ("resnetv2_50d_frn", "FilterResponseNormTlu2d", ("weight", "bias", "tau")),
    ],
)
def test_norms_that_are_activations_follow_the_width(name: str, kind: str, vectors: tuple[str, ...]) -> None:
    network = of_timm(name, "uni")
    for norm in modules(network, kind):
        lengths = {len(getattr(norm, v)) for v in vectors if getattr(norm, v) is not None}
        assert len(lengths) == 1
        assert lengths.pop() % getattr(norm, "groups", 1) == 0


def test_standardised_convs_scale_with_their_fan_in() -> None:
    """gamma / sqrt(fan in), of which the width changes and the dynamic SAME padding does not."""
    network = of_timm("dm_nfnet_f0")
    convs = modules(network, "ScaledStdConv2dSame")
    assert len(convs) > 50
    gains = {round(conv.scale * conv.weight[0].numel() ** 0.5, 4) for conv in convs}
    assert len(gains) == 1
    assert all(
        conv.padding == (0, 0) and conv.same_pad for conv in convs if conv.kernel_size != (1, 1) and conv.same_pad
    )


def test_same_padded_convs_and_pools_keep_the_size() -> None:
    network = of_timm("tf_efficientnet_b0")
    assert not [c for c in modules(network, "Conv2dSame") if c.stride != (1, 1)]


def test_mixtures_of_kernels_follow_the_width() -> None:
    network = of_timm("efficientnet_cc_b0_4e", "uni")
    for conv in modules(network, "CondConv2d"):
        assert conv.weight.shape == (conv.num_experts, torch.Size(conv.weight_shape).numel())


def test_a_users_layer_norm_over_maps() -> None:
    class Norm(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
            return x.permute(0, 3, 1, 2)

    model = nn.Sequential(unit(3, 8), nn.Conv2d(8, 16, 3, 2, 1), Norm(16), nn.ReLU(), unit(16, 24, 3, 2), head(24))
    network = converted(model, "uni", example_inputs=torch.zeros(1, 3, 32, 32))
    norms = [p for name, p in network.named_parameters() if name.endswith("2.weight") and p.dim() == 1]
    assert {tuple(p.shape) for p in norms} == {(16,)}
    assert network.plan.relaxations == ()


# --- what reduces -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"), [("resnetblur18", "BlurPool2d"), ("tresnet_m", "SpaceToDepth"), ("csatv2", "LearnableDct2d")]
)
def test_what_only_reduces_is_gone(name: str, kind: str) -> None:
    """Blur pools become upsamplings; stems that rearrange the image make place for the pyramid."""
    model = create_model(name, device="meta")
    assert modules(model, kind)
    network = converted(model)
    assert not modules(network, kind)
    assert network.plan.ladder[-1] == 1


def test_a_focus_stem_is_a_downsampler() -> None:
    class Focus(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)

    model = nn.Sequential(Focus(), unit(12, 16), unit(16, 24, 3, 2), head(24))
    network = converted(model, example_inputs=torch.zeros(1, 3, 32, 32))
    assert network.plan.ladder == (4, 2, 1)


@pytest.mark.parametrize("name", ["ghostnetv2_100", "mobilenetv4_hybrid_medium"])
def test_excursions_keep_their_strides(name: str) -> None:
    """Blocks that go coarser inside and come back do so in the top-down network too."""
    network = of_timm(name)
    strided = [m for m in network.modules() if getattr(m, "stride", 1) not in (1, (1, 1))]
    assert strided


@pytest.mark.parametrize(("stride", "coarsest"), [(16, 16), (8, 8)])
def test_networks_with_less_stride_have_shorter_ladders(stride: int, coarsest: int) -> None:
    network = of_timm("resnet26", output_stride=stride)
    assert network.plan.ladder[0] == coarsest
    assert {m.dilation for m in network.modules() if isinstance(m, nn.Conv2d)} == {
        m.dilation
        for m in timm.create_model("resnet26", output_stride=stride).modules()
        if isinstance(m, nn.Conv2d)
    }


# --- heads and other forms ----------------------------------------------------------------------------


@pytest.mark.parametrize("last", [nn.AvgPool2d(8), nn.Conv2d(24, 24, 8)], ids=["pool", "conv"])
def test_windows_over_the_whole_map_belong_to_the_head(last: nn.Module) -> None:
    body = [unit(3, 8), unit(8, 16, 3, 2), unit(16, 24, 3, 2)]
    model = nn.Sequential(*body, last, nn.Flatten(), nn.Linear(24, 10))
    network = bu2td.convert(model, example_inputs=torch.zeros(1, 3, 32, 32), seed=0, max_macs_ratio=None)
    for size in (32, 45):
        assert network.eval()(torch.rand(2, 3, size, size)).shape == (2, 10)


def test_channels_last_trunks_are_cut_like_others() -> None:
    network = of_timm("mambaout_femto")
    assert [len(level.blocks) for level in network.plan.levels[:4]] == [4, 10, 4, 3]
    assert network.plan.relaxations == ()


def test_drop_path_and_drop_block_survive_with_their_rates() -> None:
    model = timm.create_model("resnet26", drop_path_rate=0.2, drop_block_rate=0.1)
    network = converted(model)
    for kind, rate in (("DropPath", "drop_prob"), ("DropBlock2d", "drop_prob")):
        ours = sorted(round(getattr(m, rate), 5) for m in modules(network, kind))
        theirs = sorted(round(getattr(m, rate), 5) for m in modules(model, kind))
        assert ours == theirs != []


def test_stochastic_layers_act_in_train_mode_alone() -> None:
    model = timm.create_model("resnet10t", drop_path_rate=0.5, zero_init_last=False)
    network = bu2td.convert(model, example_inputs=torch.zeros(1, 3, 32, 32), seed=0)
    images = torch.rand(4, 3, 32, 32)
    network.eval()
    assert torch.equal(network(images), network(images))
    network.train()
    assert not torch.equal(network(images), network(images))


# --- networks without single trunk tensors ------------------------------------------------------------


class Cell(nn.Module):
    """Reads the two cells before it, as NASNet's do."""

    def __init__(self, before: int, inputs: int, width: int, stride: int = 1, halve: bool = False) -> None:
        super().__init__()
        self.left, self.right = unit(before, width, 1), unit(inputs, width, 1)
        self.halve = nn.AvgPool2d(1, 2) if halve else nn.Identity()
        self.a, self.b = unit(width, width, 3, stride), unit(width, width, 5, stride)

    def forward(self, before: Tensor, x: Tensor) -> Tensor:
        left, right = self.left(self.halve(before)), self.right(x)
        return torch.cat([self.a(left), self.b(right) + self.a(right)], 1)


class Cells(nn.Module):
    """Eight cells from 1/1 to 1/16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = unit(3, 8)
        self.cells = nn.ModuleList()
        before, last, halve = 8, 8, False
        for width in (8, 16, 24, 32):
            for stride in (2, 1):
                self.cells.append(Cell(before, last, width, stride, halve))
                before, last, halve = last, 2 * width, stride == 2
        self.head = head(last)

    def forward(self, x: Tensor) -> Tensor:
        before = last = self.stem(x)
        for cell in self.cells:
            before, last = last, cell(before, last)
        return self.head(last)


@pytest.mark.parametrize(("arrangement", "widths"), [("td", (64, 48, 32, 16, 8)), ("rev", (16, 32, 48, 64, 8))])
def test_chains_of_order_two(arrangement: str, widths: tuple[int, ...]) -> None:
    """Levels are cut between cells; a cell that reads across the border reads the level's entry instead."""
    network = bu2td.convert(
        Cells(), arrangement, example_inputs=torch.zeros(1, 3, 64, 64), seed=0, max_macs_ratio=None
    )
    assert network.plan.ladder == (16, 8, 4, 2, 1)
    assert network.plan.widths == widths
    assert [len(level.blocks) for level in network.plan.levels] == [2, 2, 2, 2, 0]
    assert network.plan.relaxations == ()
    bu2td.verify(network, full=True, size=32)


def test_a_head_that_fuses_resolutions_reads_the_last_features() -> None:
    network = of_timm("mobilenetv5_base")
    assert network.plan.ladder == (32, 16, 8, 4, 2, 1)
    [adapter] = modules(network, "MobileNetV5MultiScaleFusionAdapter")
    assert adapter.in_channels == 2 * network.plan.widths[-1]


def test_parallel_resolutions_are_refused() -> None:
    with pytest.raises(TopologyError, match="several resolutions at once"):
        of_timm("hrnet_w18_small")


def test_heads_that_read_several_depths_are_refused() -> None:
    """Pooled features of two depths, side by side: there is no trunk that ends in the head."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Sequential(unit(3, 8), unit(8, 16, 3, 2)), unit(16, 32, 3, 2)
            self.fc = nn.Linear(48, 10)

        def forward(self, x: Tensor) -> Tensor:
            fine = self.a(x)
            return self.fc(torch.cat([fine.mean((2, 3)), self.b(fine).mean((2, 3))], 1))

    with pytest.raises(TopologyError, match="reads features from several depths"):
        converted(Model(), example_inputs=torch.zeros(1, 3, 32, 32))
