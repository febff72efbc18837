"""Which families of timm's encoders export: the smallest member of each at its own size, through gate and judge.

    python -m benchmarks.families --out FILE.json [NAME ...]

Weights are random. About a minute each on a core.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import timm
import torch

from benchmarks.train import command_line, machine
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

FAMILIES = (
    *("vit_tiny_patch16_224", "deit_tiny_patch16_224", "vit_base_patch16_siglip_224", "beit_base_patch16_224"),
    *("eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "mixer_s32_224"),
    *(
        "cait_xxs24_224",
        "xcit_nano_12_p16_224",
        "pit_ti_224",
        "levit_128s",
        "tiny_vit_5m_224",
        "mvitv2_tiny",
        "hiera_tiny_224",
    ),
    *(
        "coat_tiny",
        "coatnet_pico_rw_224",
        "maxvit_nano_rw_256",
        "convit_tiny",
        "crossvit_9_240",
        "davit_tiny",
        "twins_pcpvt_small",
    ),
    *(
        "convnext_atto",
        "convnextv2_atto",
        "inception_next_atto",
        "focalnet_tiny_srf",
        "convmixer_768_32",
        "mambaout_femto",
    ),
    *(
        "caformer_s18",
        "poolformer_s12",
        "poolformerv2_s12",
        "efficientformer_l1",
        "efficientformerv2_s0",
        "edgenext_xx_small",
    ),
    *(
        "mobilevit_xxs",
        "mobilevitv2_050",
        "fastvit_t8",
        "repvit_m0_9",
        "starnet_s1",
        "efficientvit_b0",
        "efficientvit_m0",
    ),
    *(
        "resnet10t",
        "resnet50_gn",
        "resnetv2_18",
        "resnetv2_50d_evos",
        "resnext50_32x4d",
        "res2net50_26w_4s",
        "resnest14d",
    ),
    *(
        "seresnet18",
        "nf_resnet26",
        "nfnet_l0",
        "dm_nfnet_f0",
        "densenet121",
        "dla46_c",
        "hrnet_w18_small",
        "vgg11_bn",
        "vovnet39a",
    ),
    *("regnetx_002", "regnety_002", "repvgg_a0", "cspresnet50", "darknet17", "gernet_s", "hgnetv2_b0", "rexnet_100"),
    *("efficientnet_b0", "efficientnet_b3_gn", "tf_efficientnetv2_b0", "mobilenetv2_035", "mobilenetv3_small_050"),
    *(
        "mobilenetv4_conv_small",
        "mobileone_s0",
        "ghostnet_050",
        "lcnet_035",
        "tinynet_e",
        "mnasnet_small",
        "xception41",
    ),
    *("inception_v3", "test_efficientnet_ln", "test_efficientnet_evos"),
)


def tried(name: str) -> dict[str, Any]:
    """What became of one encoder: its size, and either its figures or why there are none."""
    size = int(input_config(name)[1]["input_size"][1])
    row: dict[str, Any] = {"name": name, "size": size}
    started = time.perf_counter()
    try:
        torch.manual_seed(0)
        encoder = build_encoder(f"{TIMM}{name}", "imagenet", size).eval()
        proto = encoder_to_onnx(encoder, size, TrainConfig.mean, TrainConfig.std)
        row["nodes"] = len(proto.graph.node)
        parity, _ = measure(encoder, proto.SerializeToString(), size, TrainConfig.mean, TrainConfig.std)
        row["error"] = parity.max_relative_error
        steps = [Step.of(number, node, OPERATORS) for number, node in enumerate(proto.graph.node)]
        for batch in (1, MAX_BATCH_SIZE):
            walk(steps, weights_of(proto.graph)[0], (INPUT, [OUTPUT]), (batch, size, size, 3))
    except ValueError as error:
        row["refused"] = str(error)
    return {**row, "seconds": round(time.perf_counter() - started, 1)}


@click.command()
@click.argument("names", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(names: tuple[str, ...], out: Path) -> None:
    rows = []
    for name in names or FAMILIES:
        rows.append(tried(name))
        found = rows[-1]
        figures = found.get("refused") or f"{found['error']:.1e}, {found['nodes']} nodes"
        click.echo(f"| {name} | {found['size']} | {figures} |")
        facts = {"command": command_line("python -m benchmarks.families"), "timm": timm.__version__, "rows": rows}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({**facts, "machine": machine("cpu")}, indent=2) + "\n")


if __name__ == "__main__":
    main()
