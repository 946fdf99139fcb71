"""`vitrail models`: the table of sizes, and the table of pretrained checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitrail import terminal

if TYPE_CHECKING:
    from vitrail.weights import pretrained

USAGE = "models"
SUMMARY = "the families and sizes there are"

MEMORY_HELP = """Parameters and FLOPs (of one image's forward pass, a multiply-add is two) are exact. Weights are fp32.
Memory is that of activations: at its peak in inference, kept for the backward pass in training."""


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    parser = terminal.make_parser("models", "Table of sizes, each with the patches in common use.", MEMORY_HELP)
    parser.add_argument("--img-size", default="224", metavar="N|HxW", help="image side in pixels [224]")
    parser.add_argument("--in-channels", type=int, default=3, metavar="N", help="channels of the images [3]")
    parser.add_argument("--num-classes", type=int, default=1000, metavar="N", help="outputs of the head [1000]")
    parser.add_argument("--batch-size", type=terminal.count, metavar="N", help="also print the memory of so many images")
    parser.add_argument("--pretrained", action="store_true", help="table of pretrained checkpoints instead")
    parser.add_argument("--json", action="store_true", help="with --pretrained: the same as JSON")
    args = terminal.parse(parser, words)
    if args.pretrained:
        for name in ("img_size", "in_channels", "num_classes", "batch_size"):
            if getattr(args, name) != parser.get_default(name):
                raise ValueError(f"--{name.replace('_', '-')} is for the table of sizes; leave it or --pretrained out")

        from vitrail.weights import pretrained

        rows = pretrained.rows()
        if args.json:
            terminal.print_json([{**dataclasses.asdict(row), "shape": row.shape and row.shape._asdict()} for row in rows])
        else:
            print_pretrained(rows)
        return terminal.OK
    if args.json:
        raise ValueError("--json is for the table of checkpoints; add --pretrained")

    shape = {"img_size": args.img_size, "in_channels": args.in_channels, "num_classes": args.num_classes}
    print_sizes(shape, batch_size=args.batch_size)
    return terminal.OK


def print_sizes(shape: Mapping[str, Any], *, batch_size: int | None) -> None:
    """Print a row for each size of each family: ViTs of one width in one table, the others in a second one; then the families
    with their papers. Memory of activations, which takes some seconds more, is printed for a `batch_size`."""
    from vitrail.models.describe import Description, cost_of, describe_model
    from vitrail.settings import ViTConfig, layers
    from vitrail.settings.families import FAMILIES, parse_name

    section = layers.build([{"model": shape}]).model  # once: this check takes as long as counting a model
    typed = {field: getattr(section, field) for field in layers.OF_THE_DATA}
    costs = ("parameters", "GFLOPs", "weights", *(("inference", "training", "in bf16") if batch_size else ()))
    vits = terminal.make_table("name", "width", "depth", "heads", "tokens", *costs)
    others = terminal.make_table("name", "shape", *costs, words=("shape",))
    for family in FAMILIES.values():
        for name in family.names:
            config = family.config(**{**parse_name(name), **typed})
            cost = describe_model(config, batch_size=batch_size) if batch_size else cost_of(config)
            figures = [f"{cost.parameters:,}", f"{cost.flops / 1e9:,.2f}", terminal.in_bytes(cost.weights_bytes)]
            if isinstance(cost, Description):
                figures += map(terminal.in_bytes, (cost.inference_bytes, cost.training_bytes, cost.training_bytes_bf16))
            if isinstance(config, ViTConfig):
                numbers = (config.embed_dim, config.depth, config.num_heads, cost.tokens)
                vits.add_row(name, *(f"{number:,}" for number in numbers), *figures)
            else:
                others.add_row(name, family.words(config).shape, *figures)
    console = terminal.make_console()
    console.print(vits)
    console.print()
    console.print(others)
    console.print()
    for family in FAMILIES.values():
        if family.paper:
            console.print(f"{family.names[0]} to {family.names[-1]}: {family.noun}, {family.paper}", soft_wrap=True)


def print_pretrained(rows: Sequence[pretrained.PretrainedRow]) -> None:
    """Print one line per checkpoint, or two on a narrow terminal: an id is copied by readers, so it is never cut."""
    console = terminal.make_console()
    ids = ["id", *(row.id for row in rows)]
    cells = [("size", "px", "data", "top-1", "source", "licence"), *map(_of_a_checkpoint, rows)]
    room, *widths = (max(map(len, column)) for column in (ids, *zip(*cells, strict=True)))
    one_line = console.width >= room + sum(widths) + 2 * len(widths)
    for name, texts in zip(ids, cells, strict=True):
        line = "  ".join(f"{text:{width}}" for text, width in zip(texts, widths, strict=True)).rstrip()
        console.print(f"{name:{room}}" if one_line else name, style="bold", end="  " if one_line else "\n  ", soft_wrap=True)
        console.print(line, soft_wrap=True)
    console.print()
    console.print("IN is ImageNet. top-1 is per cent of the validation images of ImageNet-1k, as reported in")
    for source in dict.fromkeys(row.source for row in rows):
        if source is not None:
            console.print(f"  {source.name:9}  {source.where}", soft_wrap=True)
    console.print("The licence is the one that timm or the model's page on the Hub names; read it there before you rely on it.")


def _of_a_checkpoint(row: pretrained.PretrainedRow) -> tuple[str, ...]:
    data = ", ".join(row.data).replace("ImageNet", "IN")
    top1 = "-" if row.top1 is None else f"{row.top1:.1f}"
    source = "-" if row.source is None else row.source.name
    if row.source is not None and row.source.how != "own head":
        source += f", {row.source.how}"
    return row.size, str(row.img_size), data, top1, source, row.licence
