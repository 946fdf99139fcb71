"""`vitrail export`: a model in a file that needs no Vitrail, checked against the original."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitrail import terminal

if TYPE_CHECKING:
    from vitrail.deploy.export import Contract, Exported

USAGE = "export RUN --to …"
SUMMARY = "a model as ONNX, OpenVINO, torch.export or a web page, checked on real images"

HELP = """Writes a folder with the model in another format, card.json (preprocessing, classes, temperature …) and
contract.json: the logits beside the original's on real images, time and size of both. An export whose logits
differ is an error, and nothing is written.

  vitrail export runs/first --to onnx
  vitrail export timm/vit_small_patch16_224.augreg_in21k --to openvino --images PHOTOS --out small
  vitrail export runs/first --to web --runtime node_modules/onnxruntime-web

The file takes normalised images of the model's size, any number at once. With --dynamic size, of any size; with
--raw-images, decoded ones: uint8, rows x columns x channels, which it resizes and normalises itself."""


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    from vitrail.deploy.export.formats import FORMATS, overview  # needs no torch

    parser = terminal.make_parser("export", HELP, f"formats:\n{overview()}")
    parser.add_argument("run", metavar="RUN", help="the folder that `vitrail train` wrote; or any checkpoint with a head")
    parser.add_argument("--to", required=True, metavar="FORMAT", help=f"{', '.join(FORMATS)}: see below")
    parser.add_argument("--out", metavar="FOLDER", help="where it goes [RUN-FORMAT]")
    parser.add_argument("--images", metavar="DATA", help="a folder or a named set to compare on [the run's validation images]")
    parser.add_argument("--count", type=terminal.count, metavar="N", help="images to compare on [256]")
    parser.add_argument("--dynamic", choices=("size",), help="size: take images of any size; for ViTs")
    parser.add_argument("--raw-images", action="store_true", help="take decoded images, and resize and normalise in the graph")
    parser.add_argument("--runtime", metavar="FOLDER", help="with --to web: folder of onnxruntime-web, to copy beside the page")
    parser.add_argument("--int8", action="store_true", help="products in int8, within a budget of accuracy")
    parser.add_argument(
        "--max-loss",
        type=float,
        metavar="POINTS",
        help="with --int8: points of top-1 that it may cost on the validation images [0.3]",
    )
    parser.add_argument(
        "--merge", type=terminal.count, default=0, metavar="R", help="merge the R most similar patches in each block"
    )
    parser.add_argument("--json", action="store_true", help="print the contract as JSON")
    args = terminal.parse(parser, words)

    if args.max_loss is not None and not args.int8:
        raise ValueError(f"--max-loss {args.max_loss:g} is for --int8; add it, or leave --max-loss out")
    from vitrail.deploy.export.int8 import MAX_LOSS
    from vitrail.deploy.export.run import IMAGES, export

    done = export(
        args.run,
        args.to,
        out=args.out,
        images=args.images,
        dynamic_size=args.dynamic == "size",
        raw_images=args.raw_images,
        count=args.count or IMAGES,
        runtime=args.runtime,
        merge=args.merge,
        int8=args.int8,
        max_loss=MAX_LOSS if args.max_loss is None else args.max_loss,
    )
    if args.json:
        terminal.print_json(done.contract.to_dict())
        return terminal.OK
    print_contract(done)
    terminal.say(f"Written: {done.folder}")
    if FORMATS[args.to].page is not None and args.runtime is None:
        terminal.say(f"The page needs two files in {done.folder / 'ort'}: --runtime copies them, see vitrail export --help")
    return terminal.OK


def print_contract(done: Exported) -> None:
    """Print the contract."""
    contract = done.contract
    deviation, console = contract.deviation, terminal.make_console()
    title = f"{contract.format}, on {terminal.counted(deviation.images, 'image')} of {contract.data}"
    console.print(title, style="bold", soft_wrap=True)
    console.print()
    table = terminal.make_table("logits", "value", "allowed")
    difference, agreement = contract.limits.max_difference, contract.limits.agreement
    allowed = "any" if difference is None else f"{difference:.0e}"
    table.add_row("largest difference", f"{deviation.max_difference:.1e}", allowed)
    table.add_row("mean difference", f"{deviation.mean_difference:.1e}", "")
    table.add_row(
        "same class", terminal.percent(deviation.agreement), "any" if agreement is None else terminal.percent(agreement)
    )
    if deviation.pixel_difference is not None:
        table.add_row("mean difference of a pixel, levels", f"{deviation.pixel_difference:.1e}", "")
    console.print(table)
    console.print()
    print_changes(contract)
    table = terminal.make_table("", "before", "after", "times faster")
    for speed in contract.speeds:
        before, after = speed.before_s, speed.after_s
        what = terminal.counted(speed.batch, "image")
        table.add_row(f"latency of {what}", f"{1e3 * before:.3g} ms", f"{1e3 * after:.3g} ms", f"{before / after:.2f}")
    for speed in contract.speeds:
        rates = (f"{speed.batch / seconds:,.1f}" for seconds in (speed.before_s, speed.after_s))
        table.add_row(f"images/s at batch {speed.batch}", *rates, "")
    table.add_row("size", terminal.in_bytes(contract.before_bytes), terminal.in_bytes(contract.after_bytes), "")
    console.print(table)
    console.print()


def print_changes(contract: Contract) -> None:
    """Print what token merging and int8 cost in accuracy."""
    costs = (contract.merging, None if contract.int8 is None else contract.int8.change)
    changes = [change for change in costs if change is not None]
    if not changes:
        return
    table, console = (
        terminal.make_table("top-1", "before", "after", "points", "95 % interval", words=("top-1",)),
        terminal.make_console(),
    )
    for change in changes:
        low, high = (f"{100 * side:+.2f}" for side in change.paired.interval)
        rates = (terminal.percent(top1.value) for top1 in (change.before, change.after))
        table.add_row(change.method, *rates, f"{-change.loss:+.2f}", f"{low} to {high}")
    console.print(table)
    first = changes[0]
    console.print(f"on {terminal.counted(first.before.count, 'image')} of {first.data}", soft_wrap=True)
    if contract.int8 is not None:
        stays = ", ".join(contract.int8.in_float) or "none"
        console.print(f"layers in int8: {len(contract.int8.layers)}; back in float to keep the budget: {stays}", soft_wrap=True)
    console.print()
