"""`vitrail explain`: attribution maps of images with scores, and statistics of a whole model."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitrail import terminal

USAGE = "explain RUN IMAGES…"
SUMMARY = "attention and attribution maps of images, with scores; statistics of a whole model"
HELP = """Attention and attribution maps: a PNG for each image, with a faithfulness score beside each map.

  vitrail explain runs/first photo.jpg                        evidence for the predicted class
  vitrail explain runs/first photo.jpg --query cat            … for a class of your choice
  vitrail explain runs/first photo.jpg --compare              all methods side by side, with their scores
  vitrail explain runs/first photo.jpg --method attention --layers all --heads all
  vitrail explain W photo.jpg --method similarity --query 120,80 --img-size 448
  vitrail explain runs/first --model                          the model as a whole: a table, a picture, what to conclude

Methods:
{methods}

The score: patches are put into a blurred image (insertion) and taken from the image (deletion) in the order of the
map, and the numbers are areas under the curve of the class's probability. A faithful map has a high insertion and a
low deletion. For comparison: random maps, and the map of a model with shuffled weights."""


def make_parser() -> terminal.Parser:
    """Return the parser, whose help lists the methods of the table."""
    from vitrail.explain import table  # needs no torch

    parser = terminal.make_parser(
        "explain",
        HELP.format(methods=table.overview()),
        "Exit code: 0, or 1 when some images could not be read; the others are done all the same.",
    )
    headless = table.default_method(set(table.NEEDS) - {"head"})
    parser.add_argument("run", metavar="RUN|WEIGHTS", help="a run; a Hub id, a file or a folder of any origin")
    parser.add_argument("images", metavar="IMAGES", nargs="*", help="files, or folders with all that is in them")
    parser.add_argument(
        "--method",
        type=method,
        metavar="NAME",
        help=f"see above [{table.default_method(table.NEEDS)}; without a head {headless}]",
    )
    parser.add_argument("--layers", type=layers, metavar="0,-1", help="layers, from 0 or from the end, or all [-1]")
    parser.add_argument("--heads", type=heads, metavar="0,3", help="heads, or mean, max, min of them, or all [mean]")
    parser.add_argument(
        "--query",
        type=query,
        default="cls",
        metavar="Q",
        help="cls; x,y in pixels of what the model sees; or a class [cls]",
    )
    parser.add_argument(
        "--discard-ratio",
        type=float,
        default=0.0,
        metavar="R",
        help=f"{', '.join(table.methods_with('discard_ratio'))}: smallest weights left out [0]",
    )
    parser.add_argument(
        "--hold-norms",
        action="store_true",
        help=f"{', '.join(table.methods_with('hold_norms'))}: a gradient that takes the norms' scales for constants",
    )
    parser.add_argument("--img-size", type=size, metavar="N|HxW", help="look at the images at another size")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--compare", action="store_true", help="all methods that are evidence, side by side")
    what.add_argument("--model", action="store_true", help="statistics of all layers and heads, on IMAGES or on the run's data")
    parser.add_argument(
        "--steps", type=int, default=20, metavar="N", help="steps of insertion and deletion; 0 for no scores [20]"
    )
    parser.add_argument("--grid", action="store_true", help="draw the patches")
    parser.add_argument("--arrays", action="store_true", help="also write the maps as .npy, (maps, images, rows, columns)")
    parser.add_argument("--svg", action="store_true", help="with --model: also write the picture as SVG")
    parser.add_argument("--limit", type=terminal.count, default=64, metavar="N", help="with --model: images at most [64]")
    parser.add_argument("--out", default="explained", metavar="FOLDER", help="where the pictures go [explained]")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a Hub id")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps [auto]")
    return parser


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    parser = make_parser()
    args = terminal.parse(parser, with_negative_numbers(words, "--layers", "--query"))
    if not args.images and not args.model:
        raise ValueError("there is no image to explain; name one, or add --model for the model as a whole")
    if args.steps < (1 if args.compare else 0):
        raise ValueError(f"--steps {args.steps} must be at least {1 if args.compare else 0}")
    refuse_without_effect(args, parser)

    from vitrail import weights
    from vitrail.deploy.predict import find_images
    from vitrail.explain import table
    from vitrail.explain.inputs import backbone_of, offers_of, require_global_attention
    from vitrail.explain.sheets import ExplainConfig
    from vitrail.models.device import pick_device
    from vitrail.weights.load import is_name

    if is_name(args.run):
        raise ValueError(f'"{args.run}" is a shape with random weights; give a run or a checkpoint')
    at_pixel = isinstance(args.query, tuple)
    config = ExplainConfig(
        method=args.method,
        layers=args.layers,
        heads=args.heads,
        query=args.query if at_pixel else "cls",
        target=None if at_pixel or args.query == "cls" else args.query,
        discard_ratio=args.discard_ratio,
        hold_norms=args.hold_norms,
        img_size=args.img_size,
        steps=args.steps,
        grid=args.grid,
    )
    model = weights.load(args.run, revision=args.revision).to(pick_device(args.device)).eval()
    if args.model:  # a model that does not offer what is needed is refused before anything is read
        require_global_attention(backbone_of(model), "--model")
    elif args.compare:
        table.default_method(offers_of(model))
    else:
        config = config.for_model(model)
    terminal.print_receipt(model, args.run)
    images = list(find_images(args.images))
    folder = Path(args.out)
    if args.model:
        return _explain_model(args, model, images, folder)
    return _explain_images(args, model, images, folder, config)


def refuse_without_effect(args: argparse.Namespace, parser: terminal.Parser) -> None:
    """Raise ValueError for an option of `explain` without effect in combination with the others."""
    from vitrail.explain import METHODS

    of_one, of_model = ["method", "layers", "heads", "discard_ratio"], ["svg", "limit"]
    if args.compare:
        says, idle = "with --compare; leave it out", of_one + of_model
    elif args.model:
        says, idle = "with --model; leave it out", [*of_one, "hold_norms", "query", "steps", "grid", "arrays"]
    else:
        says, idle = "without --model; add that, or leave it out", of_model
    for name in idle:
        if getattr(args, name) != parser.get_default(name):
            raise ValueError(f"--{name.replace('_', '-')} has no effect {says}")
    if args.method in METHODS and not METHODS[args.method].evidence and args.steps != parser.get_default("steps"):
        raise ValueError(f"--steps has no effect with --method {args.method}, which has no scores; leave it out")
    if args.compare and isinstance(args.query, tuple):
        x, y = args.query
        raise ValueError(f"--query {x},{y} asks about a patch, and --compare about a class; leave it out, or name a class")


def _explain_images(args: argparse.Namespace, model: Any, images: list[Path], folder: Path, config: Any) -> int:
    """Write a sheet for each image, or one for all of them if the method's maps depend on each other."""
    from vitrail.data.listing import mark_output
    from vitrail.explain import METHODS, draw
    from vitrail.explain.sheets import explain, side_by_side, unique_names

    good = readable(images, model)
    together = bool(good) and not args.compare and METHODS[config.method].joint
    named = (
        [(config.method, good)] if together else [(name, [path]) for name, path in zip(unique_names(good), good, strict=True)]
    )
    rows = []
    for name, paths in named:
        if args.compare:
            sheet, comparison = side_by_side(model, paths, config)
            folder.mkdir(parents=True, exist_ok=True)
            curves = [comparison.save(folder / f"{name}-curves.png")]
        else:
            sheet, curves = explain(model, paths, config), []
        folder.mkdir(parents=True, exist_ok=True)
        method = "compare" if args.compare else sheet.maps[0].method
        path = draw.save(sheet.figure, folder / (f"{name}.png" if together else f"{name}-{method}.png"))
        if args.arrays:
            sheet.save_arrays(path.with_suffix(".npy"))
        mark_output(folder, [path, path.with_suffix(".npy"), *curves], command="explain")
        rows += [row | {"file": str(path)} | ({"curves": str(*curves)} if curves else {}) for row in sheet.rows]
        if not args.json:
            print_explained(sheet.rows, files=[path, *curves], verdict=sheet.verdict)
    if args.json:
        terminal.print_json(rows)
    return terminal.report_unread(len(images) - len(good), len(images))


def readable(images: list[Path], model: Any) -> list[Path]:
    """Return the readable images; report the reason for every other one."""
    from vitrail.data.decode import BadImage, eval_view

    good = []
    for path in images:
        try:
            eval_view(path, model.preprocessing)
            good.append(path)
        except BadImage as error:
            terminal.report(f"{path}: {error}")
    return good


def _explain_model(args: argparse.Namespace, model: Any, images: list[Path], folder: Path) -> int:
    """Write statistics of all layers and heads."""
    from vitrail.data.listing import mark_output
    from vitrail.evaluate.run import open_data
    from vitrail.explain import head_statistics, plots, sample_images

    bad, tried = 0, len(images[: args.limit])
    if images:
        good: Any = readable(images[: args.limit], model)
        if not good:
            return terminal.report_unread(tried, tried)
        bad, title = tried - len(good), f"{len(good)} image{'s' * (len(good) > 1)}"
    elif args.img_size is not None:
        raise ValueError("--img-size is for IMAGES that are named; name some, or leave it out")
    else:
        classes = bool(model.config.num_classes)
        cfg, source = open_data(args.run, None, way_out="name images to look at", classes=classes)
        sample = sample_images(source, preprocessing=model.preprocessing, cfg=cfg.data, limit=args.limit)
        for one in sample.unreadable:
            terminal.report(f"{one.path}: {one.reason}")
        good, bad, tried = sample.images, len(sample.unreadable), len(sample.indexes)
        title = f"{len(good)} {sample.split} images of {source.name}"
    options = {"img_size": args.img_size} if images and args.img_size is not None else {}
    statistics = head_statistics(model, good, **options)
    folder.mkdir(parents=True, exist_ok=True)
    files = [
        plots.save(plots.overview(statistics), folder / f"model.{kind}") for kind in (["png", "svg"] if args.svg else ["png"])
    ]
    mark_output(folder, files, command="explain")
    early_and_late = statistics.early_and_late().sentences if model.config.depth > 1 else ()
    if args.json:
        terminal.print_json(
            {
                "images": title,
                "layers": statistics.table(),
                "early_and_late": list(early_and_late),
                "notes": list(statistics.notes),
                "files": [str(file) for file in files],
            }
        )
    else:
        print_statistics(statistics.table(), early_and_late, statistics.notes, title=title, files=files)
    return terminal.report_unread(bad, tried)


def method(text: str) -> str:
    """Parse a method's name, with - or _."""
    return text.replace("-", "_")


def layers(text: str) -> tuple[int, ...] | str:
    """Parse comma-separated layers, or "all"."""
    if text == "all":
        return text
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}": give layers as in 0,5,-1, or all') from None


def with_negative_numbers(words: Sequence[str], *options: str) -> list[str]:
    """Join values such as -2,-1 to the option before them: argparse takes them for options."""
    tied: list[str] = []
    for word in words:
        if tied and tied[-1] in options and re.match(r"-\d", word):
            tied[-1] = f"{tied[-1]}={word}"
        else:
            tied.append(word)
    return tied


def heads(text: str) -> tuple[int | str, ...] | str:
    """Parse comma-separated heads or mean, max, min; or "all"."""
    if text == "all":
        return text
    parts = text.split(",")
    if not all(part in ("mean", "max", "min") or part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f'"{text}": give heads as in 0,3, or mean, max, min, or all')
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def query(text: str) -> str | tuple[int, int]:
    """Parse a pixel as x,y; return other text unchanged."""
    numbers = re.fullmatch(r"(-?\d+),(-?\d+)", text)
    return (int(numbers[1]), int(numbers[2])) if numbers else text


def size(text: str) -> int | tuple[int, int]:
    """Parse a side in pixels, or height x width."""
    numbers = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not numbers or 0 in map(int, filter(None, numbers.groups())):
        raise argparse.ArgumentTypeError(f'"{text}": give a side as in 448, or height and width as in 224x448')
    return int(numbers[1]) if numbers[2] is None else (int(numbers[1]), int(numbers[2]))


def print_explained(rows: Sequence[Mapping[str, Any]], *, files: Sequence[Path], verdict: str = "") -> None:
    """Print the maps of one sheet with their scores, and the paths of the pictures."""
    from vitrail.explain import METHODS

    console = terminal.make_console()
    numbers = ("insertion", "deletion", "random map", "shuffled weights", "correlation")
    table = terminal.make_table("image", "class", "map", *numbers, words=("class", "map"))
    for row in rows:
        has = row["insertion"] is not None
        called = row["class"] or "-"
        if row.get("probability") is not None:
            called += f" ({terminal.percent(row['probability'])})"
        table.add_row(
            Path(row["image"]).name,
            called,
            f"{row['method'].replace('_', ' ')}: {row['label']}"
            if {"layer", "query"} <= METHODS[row["method"]].options  # the label names both
            else row["method"],
            f"{row['insertion']:.3f}" if has else "-",
            f"{row['deletion']:.3f}" if has else "-",
            f"{row['random_insertion']:.3f}, {row['random_deletion']:.3f}" if has else "-",
            f"{row['shuffled_insertion']:.3f}, {row['shuffled_deletion']:.3f}" if has else "-",
            "-" if row["rank_correlation"] is None else f"{row['rank_correlation']:.2f}",
        )
    console.print(table)
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row["note"]:
            notes.setdefault(row["note"], []).append(row["method"].replace("_", " "))
    for note, methods in notes.items():
        console.print(f"{', '.join(dict.fromkeys(methods))}: {note}")
    if verdict:
        console.print(verdict)
    for file in files:
        console.print(f"-> {file}", soft_wrap=True)
    console.print()


def print_statistics(
    rows: Sequence[Mapping[str, Any]],
    sentences: Sequence[str],
    notes: Sequence[str],
    *,
    title: str,
    files: Sequence[Path],
) -> None:
    """Print the statistics of each layer's heads, conclusions on early and late layers, and the paths of the pictures."""
    console = terminal.make_console()
    console.print(f"On {title}. Means over heads; in brackets the least and the greatest head.")
    console.print()
    table = terminal.make_table(
        "layer", "looks, px", "patches", "entropy, bits", "to patches", "alike", "norm", "greatest", "outliers"
    )
    for row in rows:
        alike = row["redundancy"]
        table.add_row(
            f"{row['layer']}",
            f"{row['distance_px']:.1f} ({row['distance_px_min']:.1f} to {row['distance_px_max']:.1f})",
            f"{row['distance_patches']:.2f}",
            f"{row['entropy_bits']:.2f} ({row['entropy_bits_min']:.2f} to {row['entropy_bits_max']:.2f})",
            terminal.percent(row["cls_to_patch"]),
            "-" if alike is None else f"{alike:.2f}",
            f"{row['norm_median']:.1f}",
            f"{row['norm_max']:.1f}",
            terminal.percent(row["outlier_share"]),
        )
    console.print(table)
    for line in [*sentences, *notes]:
        console.print(f"- {line}", soft_wrap=False)
    for file in files:
        console.print(f"-> {file}", soft_wrap=True)
