"""Random configurations of timm's generators, and the networks that they build; see `timm_configs`."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers import (
    BatchNormAct2d,
    BlurPool2d,
    GroupNormAct,
    create_conv2d,
    get_act_layer,
    get_attn,
    get_norm_act_layer,
)
from timm.models import (
    byobnet,
    convnext,
    cspnet,
    densenet,
    dla,
    dpn,
    efficientnet,
    ghostnet,
    hgnet,
    mobilenetv3,
    nfnet,
    regnet,
    res2net,
    resnest,
    resnet,
    resnetv2,
    rexnet,
    sknet,
    vgg,
    vovnet,
)
from timm.models._efficientnet_builder import decode_arch_def
from torch import nn

#: Height and width of the images.
SIZE = 224

#: A configuration: the class that builds, and its arguments.
Config = tuple[Callable[..., nn.Module], dict[str, Any]]

AVERAGES = {"avg": nn.AvgPool2d, "blurpc": partial(BlurPool2d, pad_mode="constant")}
ATTENTION = (
    *("", "", "", "se", "ese", "eca", "ecam", "ceca", "ge", "gc", "gca"),
    *("cbam", "lcbam", "coord", "scoord", "ela"),
)
ACTS = ("relu", "relu6", "silu", "gelu", "hard_swish", "leaky_relu", "mish", "elu", "prelu")


class Draw(random.Random):
    """Random choices of a configuration."""

    def ladder(self, length: int, first: int, step: int = 8) -> tuple[int, ...]:
        """Widths that grow, multiples of a step."""
        widths = [first]
        for _ in range(length - 1):
            widths.append(int(widths[-1] * self.choice((1, 1.25, 1.5, 2, 2, 2))) // step * step)
        return tuple(widths)

    def counts(self, length: int, most: int = 3) -> tuple[int, ...]:
        """Numbers of blocks."""
        return tuple(self.randint(1, most) for _ in range(length))

    def some(self, chance: float = 0.5) -> bool:
        """True, with a chance."""
        return self.random() < chance

    def stride(self) -> int:
        """An output stride."""
        return self.choice((32, 32, 32, 16, 8))


# --- generators ---------------------------------------------------------------------------------------


def byob(draw: Draw) -> Config:
    kinds = draw.choice(
        (("basic",), ("bottle",), ("dark",), ("edge",), ("rep",), ("one",), ("bottle", "basic", "dark"))
    )
    widths = draw.ladder(draw.randint(3, 5), draw.choice((32, 48, 64)), 16)
    blocks = []
    for index, width in enumerate(widths):
        more = {"attn_layer": draw.choice(ATTENTION)} if draw.some(0.2) else {}
        blocks.append(
            byobnet.ByoBlockCfg(
                type=draw.choice(kinds),
                d=draw.randint(1, 3),
                c=width,
                s=1 if index == 0 and draw.some(0.3) else 2,
                gs=draw.choice((None, 0, 0, 1, 8, 16)),
                br=draw.choice((0.25, 0.5, 1.0, 2.0)),
                **more,
            )
        )
    config = byobnet.ByoModelCfg(
        blocks=tuple(blocks),
        downsample=draw.choice(("conv1x1", "avg", "")),
        stem_type=draw.choice(("", "3x3", "7x7", "deep", "tiered", "quad", "quad2", "rep", "one")),
        stem_pool=draw.choice(("", "maxpool", "avgpool", "max2", "avg2")),
        stem_chs=draw.choice((24, 32, 64)),
        num_features=draw.choice((0, 0, 256)),
        act_layer=draw.choice(ACTS),
        norm_layer=draw.choice(("batchnorm", "batchnorm", "groupnorm1")),
        aa_layer=draw.choice(("", "", "avg", "blurpc")),
        head_type=draw.choice(("classifier", "classifier", "mlp", "attn_abs", "attn_rot")),
        head_hidden_size=None,
        attn_layer=draw.choice(ATTENTION),
    )
    return byobnet.ByobNet, {"cfg": config, "output_stride": draw.stride(), "img_size": SIZE}


def regnets(draw: Draw) -> Config:
    while True:  # until there are four stages, which is what the class asks for
        depth, w0, slope, factor = (
            draw.randint(6, 16),
            draw.choice((24, 32, 48)),
            draw.uniform(8, 40),
            draw.uniform(1.7, 2.8),
        )
        if regnet.generate_regnet(slope, w0, factor, depth, 8)[1] == 4:
            break
    config = regnet.RegNetCfg(
        depth=depth,
        w0=w0,
        wa=slope,
        wm=factor,
        group_size=draw.choice((1, 8, 16, 24)),
        bottle_ratio=draw.choice((0.25, 0.5, 1.0, 2.0, 4.0)),
        se_ratio=draw.choice((0.0, 0.25)),
        stem_width=draw.choice((16, 32)),
        downsample=draw.choice(("conv1x1", "avg", None)),
        linear_out=draw.some(0.3),
        preact=draw.some(0.3),
        num_features=draw.choice((0, 0, 320)),
        act_layer=draw.choice(ACTS),
    )
    return regnet.RegNet, {"cfg": config, "output_stride": draw.stride()}


def _block(draw: Draw, stride: int, width: int) -> str:
    kind = draw.choice(("ir", "ir", "ir", "ds", "dsa", "er", "cn", "uir"))
    kernel = draw.choice(("3", "5", "7", "3.5", "3.5.7")) if kind in ("ir", "ds") else draw.choice(("3", "5"))
    parts = [kind, f"r{draw.randint(1, 3)}", f"k{kernel}", f"s{stride}", f"c{width}"]
    if kind == "uir":
        parts += [f"a{draw.choice((0, 3, 5))}"]
    if kind in ("ir", "er", "uir"):
        parts += [f"e{draw.choice((1, 2, 3.67, 4, 6))}"]
        if kind == "ir" and draw.some(0.2):
            parts += ["a1.1", "p1.1"]
    if kind in ("ir", "ds", "er") and draw.some(0.4):
        parts += [f"se{draw.choice((0.25, 0.0625))}"]
    if kind != "uir" and draw.some(0.2):
        parts += [f"n{draw.choice(('re', 'r6', 'hs', 'sw', 'mi'))}"]
    if kind in ("ir", "ds", "er") and draw.some(0.2):
        parts += ["noskip"]
    if kind == "ir" and draw.some(0.08) and "." not in kernel:
        parts += ["cc4"]
    if kind in ("ir", "ds") and stride == 2 and draw.some(0.05):
        parts += ["d1"]
    return "_".join(parts)


def strings(draw: Draw) -> list[list[str]]:
    """An architecture of EfficientNet's and MobileNet's blocks."""
    widths = draw.ladder(draw.randint(4, 6), 16)
    halvings = draw.sample(range(len(widths)), min(4, len(widths)))
    return [
        [_block(draw, 2 if index in halvings else 1, width), *([_block(draw, 1, width)] if draw.some(0.2) else [])]
        for index, width in enumerate(widths)
    ]


def efficientnets(draw: Draw) -> Config:
    text = strings(draw)
    options = {
        "block_args": text,
        "stem_size": draw.choice((16, 24, 32)),
        "fix_stem": draw.some(),
        "num_features": draw.choice((0, 256, 640)),
        "pad_type": draw.choice(("", "", "same")),
        "act_layer": draw.choice(ACTS[:6]),
        "aa_layer": draw.choice((None, None, None, "blurpc", "avg")),
        "se_layer": draw.choice(("se", "se", "eca", "ese", "gca")),
        "output_stride": draw.stride(),
    }
    return efficientnet.EfficientNet, options


def mobilenets(draw: Draw) -> Config:
    options = {
        "block_args": strings(draw),
        "stem_size": draw.choice((16, 24)),
        "num_features": draw.choice((256, 640)),
        "head_bias": draw.some(),
        "head_norm": draw.some(0.2),
        "pad_type": draw.choice(("", "", "same")),
        "act_layer": draw.choice(ACTS[:6]),
        "se_from_exp": draw.some(),
        "layer_scale_init_value": draw.choice((None, None, 1e-5)),
    }
    return mobilenetv3.MobileNetV3, options


def resnets(draw: Draw) -> Config:
    block = draw.choice(
        (
            *(resnet.BasicBlock, resnet.BasicBlock, resnet.Bottleneck, resnet.Bottleneck, res2net.Bottle2neck),
            *(resnest.ResNestBottleneck, sknet.SelectiveKernelBasic, sknet.SelectiveKernelBottleneck),
        )
    )
    options: dict[str, Any] = {
        "block": block,
        "layers": draw.counts(4, 2),
        "output_stride": draw.stride(),
        "stem_width": draw.choice((16, 32, 64)),
        "stem_type": draw.choice(("", "deep", "deep_tiered")),
        "replace_stem_pool": draw.some(0.3),
        "down_kernel_size": draw.choice((1, 1, 3)),
        "avg_down": draw.some(),
        "channels": draw.choice(((64, 128, 256, 512), (32, 64, 128, 256), (64, 64, 96, 160))),
        "act_layer": draw.choice(ACTS),
        "aa_layer": draw.choice((None, None, None, "avg", BlurPool2d)),
        "drop_block_rate": draw.choice((0.0, 0.0, 0.1)),
        "drop_path_rate": draw.choice((0.0, 0.1)),
    }
    if block not in (resnet.BasicBlock, sknet.SelectiveKernelBasic):
        options["cardinality"] = draw.choice((1, 1, 2, 8))
        options["base_width"] = draw.choice((16, 26, 64))
        options["block_reduce_first"] = 1 if block is resnest.ResNestBottleneck else draw.choice((1, 1, 2))
    if block is resnest.ResNestBottleneck:
        options["aa_layer"] = None
    if block in (resnet.BasicBlock, resnet.Bottleneck) and draw.some():
        options["block_args"] = {"attn_layer": draw.choice(ATTENTION[3:])}
    if block is res2net.Bottle2neck:
        options["block_args"] = {"scale": draw.choice((2, 4, 6))}
    if block is resnest.ResNestBottleneck:
        options["block_args"] = {"radix": draw.choice((1, 2, 4)), "avd": draw.some(), "avd_first": draw.some()}
    return resnet.ResNet, options


def resnets_v2(draw: Draw) -> Config:
    options: dict[str, Any] = {
        "layers": draw.counts(4, 2),
        "channels": draw.choice(((64, 128, 256, 512), (256, 512, 1024, 2048), (96, 160, 224, 320))),
        "output_stride": draw.stride(),
        "width_factor": draw.choice((1, 1, 2)),
        "stem_chs": draw.choice((32, 64)),
        "stem_type": draw.choice(("", "same", "fixed", "deep", "deep_fixed", "deep_same", "tiered")),
        "avg_down": draw.some(),
        "preact": draw.some(0.7),
        "basic": draw.some(0.3),
        "act_layer": nn.ReLU,
    }
    if draw.some():
        options |= {"norm_layer": BatchNormAct2d, "conv_layer": create_conv2d}
    else:
        options["norm_layer"] = partial(GroupNormAct, num_groups=4)
    return resnetv2.ResNetV2, options


def convnexts(draw: Draw) -> Config:
    options = {
        "depths": draw.counts(4, 2),
        "dims": draw.ladder(4, draw.choice((24, 32, 48))),
        "kernel_sizes": draw.choice((7, 5, 3, (3, 5, 7, 9))),
        "ls_init_value": draw.choice((1e-6, None)),
        "stem_type": draw.choice(("patch", "overlap", "overlap_tiered", "overlap_act")),
        "patch_size": draw.choice((4, 4, 2)),
        "head_norm_first": draw.some(0.3),
        "head_hidden_size": draw.choice((None, None, 96)),
        "conv_mlp": draw.some(),
        "conv_bias": draw.some(0.8),
        "use_grn": draw.some(0.3),
        "act_layer": draw.choice(("gelu", "silu", "relu")),
        "output_stride": draw.stride(),
    }
    return convnext.ConvNeXt, options


def csps(draw: Draw) -> Config:
    length = draw.randint(3, 5)
    stride, stage = draw.choice((1, 2, 2, 4)), draw.choice(("csp", "cs3", "dark"))
    stem = cspnet.CspStemCfg(
        out_chs=draw.choice((16, 32, (16, 32), (16, 24, 32))),
        stride=stride,
        kernel_size=draw.choice((3, 3, 7)),
        pool=draw.choice(("", "max")) if stride == 4 else "",
    )
    stages = cspnet.CspStagesCfg(
        depth=draw.counts(length),
        out_chs=draw.ladder(length, draw.choice((32, 64)), 16),
        stride=(draw.choice((1, 2)), *[2] * (length - 1)),
        groups=draw.choice((1, 1, 4)),
        block_ratio=0.5 if stage == "cs3" else 1.0,
        bottle_ratio=draw.choice((0.5, 1.0)),
        avg_down=draw.some(),
        attn_layer=draw.choice((None, None, "se", "eca", "ese")),
        stage_type=stage,
        block_type=draw.choice(("bottle", "dark", "edge")),
        expand_ratio=2.0 if stage == "csp" else 1.0,
        cross_linear=draw.some(),
        down_growth=draw.some(),
    )
    config = cspnet.CspModelCfg(stem=stem, stages=stages, act_layer=draw.choice(ACTS[:6]))
    return cspnet.CspNet, {"cfg": config, "output_stride": draw.stride()}


def densenets(draw: Draw) -> Config:
    options = {
        "growth_rate": draw.choice((8, 12, 32)),
        "block_config": draw.counts(draw.randint(2, 4), 5),
        "bn_size": draw.choice((2, 4)),
        "stem_type": draw.choice(("", "deep", "deep_tiered")),
        "act_layer": draw.choice(ACTS[:6]),
        "aa_layer": draw.choice((None, None, BlurPool2d)),
        "aa_stem_only": draw.some(),
        "drop_rate": draw.choice((0.0, 0.2)),
        "proj_drop_rate": draw.choice((0.0, 0.1)),
    }
    return densenet.DenseNet, options


def dlas(draw: Draw) -> Config:
    block = draw.choice((dla.DlaBasic, dla.DlaBottleneck, dla.DlaBottle2neck))
    options = {
        "levels": (1, 1, *(draw.randint(1, 2) for _ in range(4))),
        "channels": draw.choice(
            ((16, 32, 64, 64, 128, 256), (16, 32, 64, 128, 256, 512), (8, 16, 32, 64, 96, 128))
        ),
        "block": block,
        "shortcut_root": draw.some(),
        "cardinality": 1 if block is dla.DlaBasic else draw.choice((1, 1, 8)),
        "base_width": draw.choice((28, 64)),
    }
    return dla.DLA, options


def vovnets(draw: Draw) -> Config:
    config = {
        "stem_chs": list(draw.ladder(3, 32)),
        "stem_stride": draw.choice((4, 2)),
        "stage_conv_chs": list(draw.ladder(4, 32)),
        "stage_out_chs": list(draw.ladder(4, 64)),
        "layer_per_block": draw.randint(1, 5),
        "block_per_stage": list(draw.counts(4, 2)),
        "residual": draw.some(),
        "depthwise": draw.some(),
        "attn": draw.choice(("", "ese", "eca", "se")),
    }
    act = get_act_layer(draw.choice(ACTS[:5]))
    norm = partial(get_norm_act_layer("batchnorm2d"), act_layer=act)
    return vovnet.VovNet, {"cfg": config, "norm_layer": norm, "act_layer": act}


def normfree(draw: Draw) -> Config:
    config = nfnet.NfCfg(
        depths=draw.counts(4, 2),
        channels=draw.ladder(4, draw.choice((48, 64)), 16),
        stem_type=draw.choice(("3x3", "7x7_pool", "deep", "deep_quad", "deep_tiered")),
        stem_chs=draw.choice((None, 32)),
        group_size=draw.choice((None, 8, 16)),
        attn_layer=draw.choice((None, "se", "eca", "ese")),
        attn_kwargs={},
        bottle_ratio=draw.choice((0.25, 0.5, 1.0)),
        num_features=draw.choice((0, 320)),
        reg=draw.some(0.3),
        extra_conv=draw.some(),
        gamma_in_act=draw.some(),
        same_padding=draw.some(),
        skipinit=draw.some(),
        act_layer=draw.choice(("relu", "silu", "gelu")),
    )
    return nfnet.NormFreeNet, {"cfg": config, "output_stride": draw.stride()}


def hgs(draw: Draw) -> Config:
    config: dict[str, Any] = {"stem_type": draw.choice(("v1", "v2"))}
    config["stem_chs"] = [16, 32] if config["stem_type"] == "v2" else [24, 32, 32]
    width = 32
    for index in range(4):
        out = width * draw.choice((1, 2)) + 32 * draw.randint(0, 2)
        blocks, light = draw.randint(1, 2), draw.some()
        kernel, layers = draw.choice((3, 5)), draw.randint(2, 5)
        config[f"stage{index + 1}"] = [width, draw.choice((16, 32)), out, blocks, index > 0, light, kernel, layers]
        width = out
    return hgnet.HighPerfGpuNet, {
        "cfg": config,
        "use_lab": draw.some(),
        "head_hidden_size": draw.choice((None, 256)),
    }


def dpns(draw: Draw) -> Config:
    options = {
        "k_sec": draw.counts(4, 2),
        "inc_sec": draw.choice(((16, 32, 24, 128), (8, 16, 16, 32))),
        "k_r": draw.choice((32, 64)),
        "groups": draw.choice((8, 16, 32)),
        "small": draw.some(),
        "num_init_features": draw.choice((10, 32, 64)),
        "b": draw.some(),
        "act_layer": draw.choice(ACTS[:5]),
    }
    return dpn.DPN, options


def ghosts(draw: Draw) -> Config:
    stages = []
    for index, width in enumerate(draw.ladder(5, 16)):
        se = draw.choice((0, 0.25))
        kernel = draw.choice((3, 5))
        first = [kernel, width * 3, width, se, 1 if index == 0 else 2]
        stages.append([first, *([kernel, width * 2, width, se, 1] for _ in range(draw.randint(0, 2)))])
    options = {"cfgs": stages, "width": draw.choice((0.5, 1.0)), "version": draw.choice(("v1", "v2"))}
    return ghostnet.GhostNet, options


def rexnets(draw: Draw) -> Config:
    options = {
        "initial_chs": draw.choice((8, 16, 27)),
        "final_chs": draw.choice((90, 180)),
        "width_mult": draw.choice((0.75, 1.0, 1.3)),
        "depth_mult": draw.choice((0.5, 1.0)),
        "se_ratio": draw.choice((0, 1 / 12)),
        "ch_div": draw.choice((1, 8)),
        "act_layer": draw.choice(("swish", "relu")),
    }
    return rexnet.RexNet, options


def vggs(draw: Draw) -> Config:
    plan: list[Any] = []
    for width in draw.ladder(draw.randint(3, 5), draw.choice((16, 32))):
        plan += [*[width] * draw.randint(1, 3), "M"]
    norm = draw.choice((None, nn.BatchNorm2d))
    return vgg.VGG, {"cfg": plan, "norm_layer": norm, "mlp_ratio": draw.choice((0.125, 0.25))}


GENERATORS = (
    *(
        byob,
        byob,
        byob,
        byob,
        byob,
        regnets,
        regnets,
        regnets,
        efficientnets,
        efficientnets,
        efficientnets,
        mobilenets,
    ),
    *(mobilenets, resnets, resnets, resnets, resnets, resnets_v2, convnexts, csps, csps, densenets, dlas, vovnets),
    *(normfree, hgs, dpns, ghosts, rexnets, vggs),
)


# --- from configuration to network -----------------------------------------------------------------------


def drawn(seed: int) -> tuple[str, Config]:
    """The generator and the configuration of a seed."""
    draw = Draw(seed)
    generator = draw.choice(GENERATORS)
    return generator.__name__, generator(draw)


def built(config: Config) -> nn.Module:
    """The network of a configuration, on the meta device."""
    make, options = config[0], dict(config[1])
    if isinstance(options.get("block_args"), list):
        options["block_args"] = decode_arch_def(options["block_args"], group_size=None)
    if make in (efficientnet.EfficientNet, mobilenetv3.MobileNetV3):
        options["act_layer"] = get_act_layer(options["act_layer"])
    if options.get("aa_layer") in AVERAGES:
        options["aa_layer"] = AVERAGES[options["aa_layer"]]
    if isinstance(options.get("se_layer"), str):
        options["se_layer"] = get_attn(options["se_layer"])
    with torch.device("meta"):
        network: nn.Module = make(**options)
    return network


def told(config: Config) -> str:
    """A configuration in one line."""
    options = ", ".join(f"{name}={getattr(value, '__name__', value)!r}" for name, value in config[1].items())
    return f"{config[0].__name__}({options})"
