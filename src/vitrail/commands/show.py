"""`vitrail show`: tokens, parameters, FLOPs and memory of one model, and the receipt of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitrail import terminal
from vitrail.commands.models import MEMORY_HELP
from vitrail.settings import ViTConfig, pair
from vitrail.settings.families import family_of
from vitrail.terminal import counted, in_bytes

if TYPE_CHECKING:
    from vitrail.models.describe import Description, Peak
    from vitrail.settings import ModelSection
    from vitrail.train.optim import ParameterRow

USAGE = "show NAME"
SUMMARY = "tokens, parameters, FLOPs and memory of one"

HELP = f"""Tokens, parameters, FLOPs and memory of one model; of a checkpoint, also the status of every tensor.

  vitrail show B/16 --img-size 384
  vitrail show timm/vit_small_patch16_224.augreg_in21k --img-size 96x128 --num-classes 7
  vitrail show weights.pth --model.num_heads 8 --verbose
  vitrail show S/16 --img-size 96x128 --in-channels 4 --model.depth 6
  vitrail show Ti/16 --groups --optim.name muon
  vitrail show torchvision:resnet50

{MEMORY_HELP}"""


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    from vitrail.settings import layers

    usage = "NAME|RUN|WEIGHTS [--img-size 384] [--model.FIELD VALUE]… [--groups] [--verbose]"
    parser = terminal.make_settings_parser("show", HELP, usage=usage)
    parser.add_argument("name", metavar="NAME|RUN|WEIGHTS", help='such as "B/16"; a run; a Hub id, a file or a folder')
    for field, metavar in (("img_size", "N|HxW"), ("in_channels", "N"), ("num_classes", "N")):
        option = "--" + field.replace("_", "-")
        parser.add_argument(option, dest=field, type=str, metavar=metavar, help=f"short for --model.{field}")
    parser.add_argument("--batch-size", type=terminal.count, metavar="N", help="images that activations are counted for [1]")
    parser.add_argument("--groups", action="store_true", help="also print what the optimizer does to each parameter")
    parser.add_argument("--revision", type=str, metavar="R", help="branch, tag or commit of a Hub id")
    parser.add_argument("--verbose", action="store_true", help="a line for every tensor of the receipt")
    parser.add_argument("--no-strict", action="store_true", help="load what fits, even if much is missing or has no place")
    layers.add_settings(parser, sections=("model", "optim"))
    parsed = terminal.parse_settings(parser, words)
    short = {field: parsed[field] for field in layers.OF_THE_DATA if parsed.get(field) is not None}

    from vitrail.models import meta_model
    from vitrail.models.describe import describe_model, training_peaks
    from vitrail.weights.shape import resolve_model

    changes, strict = ({"model": short}, layers.layer_of(parsed)), not parsed.get("no_strict")
    cfg, receipt = resolve_model(parsed["name"], *changes, revision=parsed.get("revision"), strict=strict)
    if receipt is not None:
        print(receipt.verbose() if parsed.get("verbose") else receipt, end="\n\n")
    batch_size, title = parsed.get("batch_size") or 1, cfg.model.name if receipt is None else parsed["name"]
    shape = cfg.model.shape()
    cost, peaks = describe_model(shape, batch_size=batch_size), training_peaks(shape, batch_size=batch_size)
    print_model(cfg.model, cost, *peaks, batch_size=batch_size, title=title)
    if parsed.get("groups"):
        from vitrail.train.optim import group_table

        print_groups(group_table(meta_model(cfg.model), cfg.optim))
    return terminal.OK


def print_model(
    cfg: ModelSection, cost: Description, peak: Peak, recomputed: Peak | None, *, batch_size: int, title: str
) -> None:
    """Print a model's shape and cost."""
    height, width = pair(cfg.img_size)
    memory = f"of activations for {counted(batch_size, 'image')}"
    classes = counted(cfg.num_classes, "class", "es") if cfg.num_classes else "no head"
    lines = {
        "images": f"{height} x {width} px, {counted(cfg.in_channels, 'channel')}; {classes}",
        **_shape(cfg, cost),
        "parameters": f"{cost.parameters:,}",
        "weights": f"{in_bytes(cost.weights_bytes)} in fp32",
        "FLOPs": _flops(cost.flops),
        "inference": f"{in_bytes(cost.inference_bytes)} {memory} in fp32",
        "training": f"{in_bytes(cost.training_bytes)} {memory} in fp32, {in_bytes(cost.training_bytes_bf16)} in bf16",
        "in all": f"{_peak(peak)}, with weights, gradients and AdamW",
        "recomputed": None if recomputed is None else f"{_peak(recomputed)} in all, with train.checkpointing",
    }
    terminal.say(title)
    for name, text in lines.items():
        if text is not None:
            terminal.say(f"  {name:10}  {text}")


def _shape(cfg: ModelSection, cost: Description) -> dict[str, str]:
    words = family_of(cfg.name).words(cfg.shape())
    if not isinstance(cfg, ViTConfig) or cost.tokens is None:
        return {"shape": words.shape}
    (height, width), (down, across) = pair(cfg.img_size), pair(cfg.patch_size)
    patches, hidden = height // down * (width // across), round(cfg.embed_dim * cfg.mlp_ratio)
    return {
        **({"stem": words.stem} if words.stem else {}),
        "shape": f"width {cfg.embed_dim:,}, {counted(cfg.depth, 'block')}, {counted(cfg.num_heads, 'head')}, MLP {hidden:,}",
        "tokens": f"{cost.tokens:,} = {cost.tokens - patches} + {counted(patches, 'patch', 'es')} of {down} x {across} px",
    }


def _peak(peak: Peak) -> str:
    return f"{in_bytes(peak.fp32)} in fp32, {in_bytes(peak.bf16)} in bf16"


def _flops(count: int) -> str:
    return f"{f'{count / 1e9:,.2f} G' if count >= 1e9 else f'{count / 1e6:.2f} M'} in the forward pass of 1 image"


def print_groups(rows: Sequence[ParameterRow]) -> None:
    """Print the optimizer, rate factor and weight decay of each parameter."""
    table = terminal.make_table("parameter", "shape", "optimizer", "rate factor", "weight decay", words=("shape", "optimizer"))
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        table.add_row(row.name, shape, row.optimizer, f"{row.lr_factor:.4g}", f"{row.weight_decay:g}")
    terminal.say()
    terminal.make_console().print(table)
