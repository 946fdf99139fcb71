"""The command line: the table of commands, the overview, and errors in one line.

A command is one file of `vitrail.commands` and one row of the table. Modules that need torch are imported inside functions, so
that every page of help appears at once.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import importlib
import importlib.metadata
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitrail import terminal
from vitrail.data.quiet import ignore_pillow_warnings
from vitrail.text import one_line as joined

ON_DATA = {
    "check": "vitrail.commands.check",
    "train": "vitrail.commands.train",
    "resume": "vitrail.commands.resume",
    "evaluate": "vitrail.commands.evaluate",
    "predict": "vitrail.commands.predict",
    "explain": "vitrail.commands.explain",
    "probe": "vitrail.commands.probe",
}
ON_MODELS = {
    "models": "vitrail.commands.models",
    "show": "vitrail.commands.show",
    "convert": "vitrail.commands.convert",
    "push": "vitrail.commands.push",
}
COMMANDS = ON_DATA | ON_MODELS
"""Each command's module, in the order of the overview: `USAGE` and `SUMMARY` are its line there, `run` is the command."""

OVERVIEW = """Vitrail: Vision Transformers from a folder of images to a trained, measured model.

{commands}

DATA is a folder with one folder per class, or with labels.csv; or one of fashion-sample, fashion-mnist, mnist, cifar10,
cifar100, imagenet.
RUN is the folder that a training wrote.

  vitrail train --minutes 2 --out runs/first
  vitrail evaluate runs/first
  vitrail predict runs/first photo.png

vitrail COMMAND --help says more; vitrail --version says which this is; --traceback shows where an error came from.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Return 0, 1 when some images could not be read, 2 for a user's mistake, 128 + n after signal n.

    Ctrl-C is signal 2, SIGTERM 15, SIGUSR1 10.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    if hasattr(sys.stdin, "reconfigure"):  # a list of files may hold names that are no UTF-8
        sys.stdin.reconfigure(errors="surrogateescape")
    warnings.formatwarning = terminal.warning_line
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    ignore_pillow_warnings()
    try:
        code = run(words)
        sys.stdout.flush()  # a pipe that nobody reads shows here, not at exit
        if "TORCHELASTIC_RUN_ID" in os.environ:  # one of several processes, all of whose work is done and written
            sys.stderr.flush()
            os._exit(code)  # torch's threads abort now and then as the interpreter is taken down, and the run would have failed
        return code
    except SystemExit as leave:  # argparse, after --help
        return int(leave.code or 0)
    except BrokenPipeError:  # `vitrail predict … | head`
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return terminal.SOME_FAILED
    except KeyboardInterrupt as stop:  # a training says what it has saved
        if terminal.in_front():
            terminal.report(": ".join(["interrupted", *map(str, stop.args)]))
        return 128 + getattr(stop, "number", signal.SIGINT)
    except Exception as error:
        if type(error).__name__ == "Ended":  # the first of several processes has said why
            return terminal.MISTAKE
        line = one_line(error)
        if (
            line is None
            and "RANK" in os.environ
            and re.search(r"Connection (closed|reset)|Timed out waiting|[Ww]atchdog", str(error))
        ):
            line = "another process ended, or stands still; its own message says why"
        if traceback or line is None:
            raise
        terminal.report(line, process="" if terminal.in_front() else f", process {os.environ['RANK']}")
        return terminal.MISTAKE


def run(words: list[str]) -> int:
    """Run the command that the first word names, with the rest of the words."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview(), end="")
        return terminal.OK
    if words[0] == "--version":
        terminal.say(f"vitrail {importlib.metadata.version('vitrail')}")
        return terminal.OK
    if words[0] not in COMMANDS:
        close = difflib.get_close_matches(words[0], COMMANDS, n=1, cutoff=0.5)
        hint = f'did you mean "{close[0]}"?' if close else "vitrail --help says what each does"
        raise ValueError(f'"{words[0]}" is none of the commands {", ".join(COMMANDS)}; {hint}')
    if words[0] == "explain":
        return explain(words[1:])
    code: int = importlib.import_module(COMMANDS[words[0]]).run(words[1:])
    return code


def overview() -> str:
    """Return the text of `vitrail --help`."""
    rows = {name: importlib.import_module(module) for name, module in COMMANDS.items()}
    width = max(len(command.USAGE) for command in rows.values())
    groups = (
        [f"  vitrail {rows[name].USAGE:{width}}  {rows[name].SUMMARY}" for name in group] for group in (ON_DATA, ON_MODELS)
    )
    return OVERVIEW.format(commands="\n\n".join(map("\n".join, groups)))


def one_line(error: Exception) -> str | None:
    """Return the line for a user's mistake; None for a bug of ours, which keeps its traceback."""
    text = joined(error)
    if isinstance(error, OSError) and error.errno is None:  # our own words
        return text
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in text:
        where = getattr(error, "filename", None)
        return f"{f'{where}: ' if where else ''}the disk is full; make room there, or write elsewhere"
    if isinstance(error, OSError):
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([*names[:1], (error.strerror or "").lower() or text or type(error).__name__])
    # torch's error, by name: importing torch here would be slow. On a CPU and on a Mac it is a RuntimeError.
    if type(error).__name__ in ("OutOfMemoryError", "MemoryError") or re.search(r"allocate memory|out of memory", text):
        return "memory ran out; use a smaller batch (--train.batch_size, or --batch-size), or --train.checkpointing true"
    return text if isinstance(error, ValueError) else None


EXPLAIN_HELP = """What a model looks at, and what speaks for a class: a PNG for each image, with a number beside each map.

  vitrail explain runs/first photo.jpg                        what speaks for the class that it predicts
  vitrail explain runs/first photo.jpg --query cat            … for a class of your choice
  vitrail explain runs/first photo.jpg --compare              all methods side by side, with their scores
  vitrail explain runs/first photo.jpg --method attention --layers all --heads all
  vitrail explain W photo.jpg --method similarity --query 120,80 --img-size 448
  vitrail explain runs/first --model                          the model as a whole: a table, a picture, what to conclude

Methods: relevance (gradient-weighted attention), gradcam, integrated-gradients: what speaks for a class; attention,
rollout: where tokens look; pca, similarity: which patches are alike.

The score: patches are put into a blurred image (insertion) and taken from the image (deletion) in the order of the
map, and the numbers are areas under the class's probability. A map that tells what the model goes by has a high
insertion and a low deletion. Beside it stand random maps, and the map that shuffled weights make."""


# --------------------------------------------------------------------------------------------------------------------
# vitrail explain


def explain(words: list[str]) -> int:
    """`vitrail explain RUN|WEIGHTS IMAGES…`."""
    parser = terminal.make_parser(
        "explain", EXPLAIN_HELP, "Exit code: 0, or 1 when some images could not be read; the others are done all the same."
    )
    parser.add_argument("run", metavar="RUN|WEIGHTS", help="a run; a Hub id, a file or a folder of any origin")
    parser.add_argument("images", metavar="IMAGES", nargs="*", help="files, or folders with all that is in them")
    parser.add_argument(
        "--method", type=terminal.method, metavar="NAME", help="see above [relevance; without a head attention]"
    )
    parser.add_argument("--layers", type=terminal.layers, metavar="0,-1", help="layers, from 0 or from the end, or all [-1]")
    parser.add_argument("--heads", type=terminal.heads, metavar="0,3", help="heads, or mean, max, min of them, or all [mean]")
    parser.add_argument(
        "--query",
        type=terminal.query,
        default="cls",
        metavar="Q",
        help="cls; x,y in pixels of what the model sees; or a class [cls]",
    )
    parser.add_argument("--discard-ratio", type=float, default=0.0, metavar="R", help="rollout: smallest weights left out [0]")
    parser.add_argument(
        "--hold-norms", action="store_true", help="relevance, gradcam: a gradient that takes the norms' scales for constants"
    )
    parser.add_argument("--img-size", type=terminal.size, metavar="N|HxW", help="look at the images at another size")
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
    args = terminal.parse(parser, terminal.with_negative_numbers(words, "--layers", "--query"))
    if not args.images and not args.model:
        raise ValueError("there is no image to explain; name one, or add --model for the model as a whole")
    if args.steps < (1 if args.compare else 0):
        raise ValueError(f"--steps {args.steps} must be at least {1 if args.compare else 0}")
    refuse_without_effect(args, parser)

    from vitrail import weights
    from vitrail.deploy.predict import find_images
    from vitrail.explain.inputs import unwrapped
    from vitrail.explain.sheets import Ask
    from vitrail.models.device import pick_device
    from vitrail.weights.load import is_name

    if is_name(args.run):
        raise ValueError(f'"{args.run}" is a shape with random weights; give a run or a checkpoint')
    at_pixel = isinstance(args.query, tuple)
    ask = Ask(
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
    unwrapped(model)  # another family is refused before anything is read
    terminal.print_receipt(model, args.run)
    images = list(find_images(args.images))
    folder = Path(args.out)
    if args.model:
        return _explain_model(args, model, images, folder)
    return _explain_images(args, model, images, folder, ask)


def refuse_without_effect(args: argparse.Namespace, parser: terminal.Parser) -> None:
    """Raises ValueError for an option of `explain` that changes nothing beside the others."""
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
    if args.method in ("pca", "similarity") and args.steps != parser.get_default("steps"):
        raise ValueError(f"--steps has no effect with --method {args.method}, which has no scores; leave it out")
    if args.compare and isinstance(args.query, tuple):
        x, y = args.query
        raise ValueError(f"--query {x},{y} asks about a patch, and --compare about a class; leave it out, or name a class")


def _explain_images(args: argparse.Namespace, model: Any, images: list[Path], folder: Path, ask: Any) -> int:
    """A sheet for each image, or with `pca`, whose components are those of all, for all of them."""
    from vitrail.data.listing import mark_output
    from vitrail.explain import draw
    from vitrail.explain.sheets import explain, side_by_side, unique_names

    good = readable(images, model)
    together = ask.method == "pca" and bool(good)  # its components are those of all images
    named = [("pca", good)] if together else [(name, [path]) for name, path in zip(unique_names(good), good, strict=True)]
    rows = []
    for name, paths in named:
        if args.compare:
            made, found = side_by_side(model, paths, ask)
            folder.mkdir(parents=True, exist_ok=True)
            curves = [found.save(folder / f"{name}-curves.png")]
        else:
            made, curves = explain(model, paths, ask), []
        folder.mkdir(parents=True, exist_ok=True)
        method = "compare" if args.compare else made.maps[0].method
        path = draw.save(made.figure, folder / (f"{name}.png" if together else f"{name}-{method}.png"))
        if args.arrays:
            made.save_arrays(path.with_suffix(".npy"))
        mark_output(folder, [path, path.with_suffix(".npy"), *curves], command="explain")
        rows += [row | {"file": str(path)} | ({"curves": str(*curves)} if curves else {}) for row in made.rows]
        if not args.json:
            terminal.print_explained(made.rows, files=[path, *curves], verdict=made.verdict)
    if args.json:
        terminal.print_json(rows)
    return terminal.report_unread(len(images) - len(good), len(images))


def readable(images: list[Path], model: Any) -> list[Path]:
    """The images that can be read; of each other one it is said why not."""
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
    """Statistics of all layers and heads."""
    from vitrail.data.augment import normalise
    from vitrail.data.listing import mark_output
    from vitrail.evaluate.run import open_data
    from vitrail.explain import head_statistics, plots

    bad, tried = 0, len(images[: args.limit])
    if images:
        seen: Any = readable(images[: args.limit], model)
        if not seen:
            return terminal.report_unread(tried, tried)
        bad, said = tried - len(seen), f"{len(seen)} image{'s' * (len(seen) > 1)}"
    elif args.img_size is not None:
        raise ValueError("--img-size is for IMAGES that are named; name some, or leave it out")
    else:
        import torch

        cfg, source = open_data(args.run, None, way_out="name images to look at")
        which = next((name for name in ("test", "val", "train") if name in source.splits), "train")
        split = source.load(which, preprocessing=model.preprocessing, cfg=cfg.data)  # type: ignore[arg-type]
        chosen = torch.linspace(0, len(split) - 1, min(args.limit, len(split))).round().long()
        raw, lost = split.read(chosen)
        for one in lost:
            terminal.report(f"{one.path}: {one.reason}")
        seen, bad, tried = normalise(raw.images, model.preprocessing), len(lost), len(chosen)
        said = f"{len(seen)} {which} images of {source.name}"
    options = {"img_size": args.img_size} if images and args.img_size is not None else {}
    found = head_statistics(model, seen, **options)
    folder.mkdir(parents=True, exist_ok=True)
    files = [plots.save(plots.overview(found), folder / f"model.{kind}") for kind in (["png", "svg"] if args.svg else ["png"])]
    mark_output(folder, files, command="explain")
    early_and_late = found.early_and_late().sentences if model.config.depth > 1 else ()
    if args.json:
        terminal.print_json(
            {
                "images": said,
                "layers": found.table(),
                "early_and_late": list(early_and_late),
                "notes": list(found.notes),
                "files": [str(file) for file in files],
            }
        )
    else:
        terminal.print_statistics(found.table(), early_and_late, found.notes, title=said, files=files)
    return terminal.report_unread(bad, tried)
