"""Which families of timm's encoders export: the smallest member of each at its own size, through gate and judge.

    python -m benchmarks.robustness.families --out FILE.json [NAME[@SIZE] ...]

Weights are random. About half a minute each on a core.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import timm
import torch

from benchmarks.rows import FAILED, Row, Rows
from byol.bundle.graph.judge import weights_of
from byol.bundle.graph.operators import OPERATORS
from byol.bundle.graph.walk import Step, walk
from byol.encoders import TIMM
from byol.encoders.build import build_encoder
from byol.encoders.timm_models import input_config
from byol.export.graph import INPUT, OUTPUT, encoder_to_onnx
from byol.export.parity import measure
from byol.limits import MAX_BATCH_SIZE
from byol.training.config import TrainConfig

# The smallest member of a family, at the side of timm's own input or at the one after @.
FAMILIES = """
mvitv2_tiny coat_tiny convnext_atto@64 convnext_atto convnextv2_atto@64 convnextv2_atto inception_next_atto
resnet50_gn resnetv2_50d_gn efficientnet_b3_gn test_efficientnet_gn test_efficientnet_ln resnetv2_50d_evos
test_efficientnet_evos nf_resnet26 nfnet_l0 dm_nfnet_f0 caformer_s18 focalnet_tiny_srf maxvit_nano_rw_256
vit_tiny_patch16_224 deit_tiny_patch16_224 vit_base_patch16_siglip_224 vit_relpos_small_patch16_224
vit_small_r26_s32_224 samvit_base_patch16_224 vitamin_small_224 naflexvit_base_patch16_gap beit_base_patch16_224
eva02_tiny_patch14_224 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_ns_224 mixer_s32_224
gmixer_12_224 resmlp_12_224 gmlp_ti16_224 cait_xxs24_224 xcit_nano_12_p16_224 pit_ti_224 levit_128s tiny_vit_5m_224
hiera_tiny_224 sam2_hiera_tiny coatnet_pico_rw_224 convit_tiny crossvit_9_240 davit_tiny twins_pcpvt_small
twins_svt_small pvt_v2_b0 gcvit_xxtiny nest_tiny tnt_s_patch16_224 volo_d1_224 visformer_tiny nextvit_small
sequencer2d_s convmixer_768_32 mambaout_femto poolformer_s12 poolformerv2_s12 efficientformer_l1
efficientformerv2_s0 edgenext_xx_small mobilevit_xxs mobilevitv2_050 fastvit_t8 repvit_m0_9 starnet_s1
efficientvit_b0 efficientvit_m0 efficientvim_m1 swiftformer_xs shvit_s1 fasternet_t0 rdnet_tiny
resnet10t resnetv2_18 resnext50_32x4d res2net50_26w_4s resnest14d seresnet18 skresnet18 ecaresnet26t botnet26t_256
halonet26t lambda_resnet26t tresnet_m selecsls42b dpn48b densenet121 dla46_c hrnet_w18_small vgg11_bn vovnet39a
regnetx_002 regnety_002 repvgg_a0 cspresnet50 cs3darknet_s darknet17 gernet_s hgnetv2_b0 rexnet_100
efficientnet_b0 tf_efficientnetv2_b0 mobilenetv2_035 mobilenetv3_small_050 mobilenetv4_conv_small
mobilenetv4_hybrid_medium mobileone_s0 ghostnet_050 repghostnet_050 lcnet_035 tinynet_e mnasnet_small xception41
inception_v3 inception_v4
"""


def sized(family: str) -> tuple[str, int]:
    """A member's name and size."""
    name, _, side = family.partition("@")
    return name, int(side or input_config(name)[1]["input_size"][1])


def tried(name: str, size: int) -> Row:
    """What became of one encoder: either its figures or in which words it is refused."""
    row: Row = {}
    started = time.perf_counter()
    try:
        row |= figures(name, size)
    except ValueError as error:
        row["refused"] = str(error)
    return {**row, "seconds": round(time.perf_counter() - started, 1)}


def figures(name: str, size: int) -> Row:
    """Nodes, and the deviation from torch; raises `ValueError` where gate or judge refuse."""
    torch.manual_seed(0)
    encoder = build_encoder(f"{TIMM}{name}", "imagenet", size).eval()
    proto = encoder_to_onnx(encoder, size, TrainConfig.mean, TrainConfig.std)
    parity, _ = measure(encoder, proto.SerializeToString(), size, TrainConfig.mean, TrainConfig.std)
    steps = [Step.of(number, node, OPERATORS) for number, node in enumerate(proto.graph.node)]
    for batch in (1, MAX_BATCH_SIZE):
        walk(steps, weights_of(proto.graph)[0], (INPUT, [OUTPUT]), (batch, size, size, 3))
    return {"nodes": len(proto.graph.node), "error": parity.max_relative_error, "cosine": parity.min_cosine}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as docs/export.md has them: what exports, then what is refused in which words."""
    named = sorted(rows, key=lambda row: (row["row"], row["size"]))
    passed, others = [r for r in named if "error" in r], [r for r in named if "error" not in r]
    lines = ["| encoder | px | nodes | relative error |", "|---|---|---|---|"]
    lines += [f"| {row['row']} | {row['size']} | {row['nodes']} | {row['error']:.1e} |" for row in passed]
    lines += ["", "| refused | px | in these words |", "|---|---|---|"]
    lines += [f"| {row['row']} | {row['size']} | {row.get('refused') or row[FAILED]} |" for row in others]
    return "\n".join(lines)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="What it holds of other families stays.")
@click.option("--shown", is_flag=True, help="Nothing is tried; the table of --out is printed.")
def main(names: tuple[str, ...], out: Path, shown: bool) -> None:
    rows = Rows(out, "benchmarks.robustness.families", goes_on=True, timm=timm.__version__)
    chosen = [] if shown else list(map(sized, names or FAMILIES.split()))
    rows.rows = [row for row in rows.rows if (row["row"], row["size"]) not in chosen]
    for name, size in chosen:
        rows.find(name, partial(tried, name, size), size=size)
    click.echo(table(rows.rows))


if __name__ == "__main__":
    main()
