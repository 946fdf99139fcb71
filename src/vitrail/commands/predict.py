"""`vitrail predict`: labels and probabilities of images."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from vitrail import terminal
from vitrail.text import printable

if TYPE_CHECKING:
    from vitrail.deploy.predict import Prediction

USAGE = "predict RUN IMAGES…"
SUMMARY = "labels and probabilities of images"


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    from vitrail.deploy.backends import overview  # needs no torch

    parser = terminal.make_parser(
        "predict",
        "Labels and probabilities of images.",
        f"backends:\n{overview()}\n\n"
        "Exit code: 0, or 1 when some images could not be read or got no label; the others are done all the same.",
    )
    parser.add_argument(
        "run", metavar="RUN", help="the folder that `vitrail train` or `vitrail export` wrote; or any checkpoint with a head"
    )
    parser.add_argument(
        "images", metavar="IMAGES", nargs="+", help="files, folders with all that is in them, - for a list on stdin"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print a list of objects: path, label, probability, top, error")
    shape.add_argument("--csv", action="store_true", help="print a line an image: path, label, probability, …, error")
    parser.add_argument("--top", type=int, default=1, metavar="K", help="the K most probable classes [1]")
    parser.add_argument(
        "--coverage",
        type=float,
        metavar="C",
        help="a set of classes for each image, of which the share C holds the right one",
    )
    parser.add_argument("--uncalibrated", action="store_true", help="probabilities without the temperature of the model's card")
    terminal.add_device(parser, batch_size=32)
    parser.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="one of those below; auto: the fastest correct one on the device [auto]",
    )
    parser.add_argument(
        "--merge", type=terminal.count, default=0, metavar="R", help="merge the R most similar patches in each block: faster"
    )
    parser.add_argument("--verbose", action="store_true", help="print the backend, its speed and its difference from fp32")
    terminal.add_ray(parser, formats=("parquet", "csv"))
    parser.add_argument(
        "--out", metavar="OUT", help="with --ray, the folder or URL to write to; what is there is not computed again"
    )
    parser.add_argument("--overwrite", action="store_true", help="with --ray, remove what OUT has and start over")
    args = terminal.parse(parser, words)
    if on_ray := terminal.ray_options(args):
        return _predict_on_ray(args, on_ray)
    if args.out or args.overwrite:
        raise ValueError("--out and --overwrite are for --ray; without it predictions are printed: `… --csv > FILE`")

    from vitrail.deploy.predict import NOT_FINITE, Predictor, find_images

    if args.top < 1:
        raise ValueError(f"--top {args.top} must be at least 1")
    paths = chain.from_iterable(lines(sys.stdin) if path == "-" else [path] for path in args.images)
    images = list(find_images(paths))
    if not images:
        raise ValueError("stdin named no image; write one path a line")
    predictor = Predictor(
        args.run,
        device=args.device,
        batch_size=args.batch_size,
        backend=args.backend,
        calibrated=not args.uncalibrated,
        merge=args.merge,
    )
    terminal.print_receipt(predictor.model, args.run)
    if mismatch := predictor.range_mismatch(images):
        terminal.report(mismatch)
    if args.verbose and (comparison := predictor.compare(images)):
        terminal.report(comparison)
    done = predictor.predict(images, top=args.top, coverage=args.coverage)

    if args.json:
        terminal.print_json([prediction.to_dict() for prediction in done])
    elif args.csv:
        print_csv(done, top=min(args.top, len(predictor.classes)))
    else:
        print_predictions(done)
    bad = [prediction for prediction in done if prediction.error is not None]
    for prediction in bad:
        terminal.report(f"{prediction.path}: {prediction.error}")
    unread = sum(prediction.error != NOT_FINITE for prediction in bad)
    if wrong := len(bad) - unread:
        terminal.report(f"{wrong} of {len(done)} image{'s' * (len(done) > 1)} got no label: the model's output is not finite")
    return terminal.report_unread(unread, len(done)) or (terminal.SOME_FAILED if wrong else terminal.OK)


def _predict_on_ray(args: argparse.Namespace, options: dict[str, Any]) -> int:
    """Predict on a Ray cluster, into a folder."""
    from vitrail.deploy.ray_data import predict_on_ray

    if not args.out:
        raise ValueError("--ray needs --out: the folder or URL that the workers write to")
    if args.csv or args.verbose:
        raise ValueError("--csv and --verbose are for printed predictions, and --ray writes files; use --format csv")
    data = list(chain.from_iterable(lines(sys.stdin) if path == "-" else [path] for path in args.images))
    done = predict_on_ray(
        args.run,
        data,
        args.out,
        top=args.top,
        coverage=args.coverage,
        calibrated=not args.uncalibrated,
        device=args.device,
        batch_size=args.batch_size,
        backend=args.backend,
        overwrite=args.overwrite,
        **options,
    )
    return terminal.report_computed(done, "label", json=args.json)


def lines(stream: Iterable[str]) -> Iterator[str]:
    """Return the lines of a stream that are not blank."""
    return (line.rstrip("\r\n") for line in stream if line.strip())


def print_predictions(done: Sequence[Prediction]) -> None:
    """Print a table with one row per image."""
    from vitrail.deploy.predict import NOT_FINITE

    many = any(len(prediction.top) > 1 for prediction in done)

    def failed(prediction: Prediction) -> str:  # the reason goes to stderr
        return "no label" if prediction.error == NOT_FINITE else "unreadable"

    if any(prediction.labels is not None for prediction in done):
        table = terminal.make_table("image", "labels", *(["most probable"] if many else []), words=("labels", "most probable"))
        for prediction in done:
            text = failed(prediction) if prediction.error is not None else _pairs(prediction.labels or ()) or "none"
            table.add_row(prediction.path, text, *([_pairs(prediction.top)] if many else []))
        terminal.make_console().print(table)
        return
    sets, marked = any(each.classes is not None for each in done), any(each.outlier for each in done)
    more = [*(["then"] if many else []), *(["set"] if sets else []), *(["unlike training"] if marked else [])]
    table = terminal.make_table("image", "label", "probability", *more, words=("label", "then", "set", "unlike training"))
    for prediction in done:
        if prediction.error is not None or prediction.probability is None:
            table.add_row(prediction.path, failed(prediction), "")
            continue
        cells = [_pairs(prediction.top[1:])] if many else []
        cells += [", ".join(prediction.classes or ()) or "none"] if sets else []
        cells += ["yes" if prediction.outlier else ""] if marked else []
        table.add_row(prediction.path, prediction.label, terminal.percent(prediction.probability), *cells)
    terminal.make_console().print(table)


def _pairs(labels: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{label} {terminal.percent(p)}" for label, p in labels)


def print_csv(done: Sequence[Prediction], *, top: int) -> None:
    """Print path,label,probability,label_2,probability_2,…,error; an image without a label has empty fields and its error.

    For a multi-label model, the column `labels` after the path has all labels from 0.5 on, separated by ";". With sets, the
    column `set` has the classes, and with an outlier threshold `outlier` is 1 or 0.
    """
    several = any(prediction.labels is not None for prediction in done)
    sets, marked = any(each.classes is not None for each in done), any(each.outlier is not None for each in done)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    quoting = csv.writer(sys.stdout, lineterminator="\n", quoting=csv.QUOTE_ALL)
    ranks = [("label", "probability"), *((f"label_{rank}", f"probability_{rank}") for rank in range(2, top + 1))]
    shown = printable if sys.stdout.isatty() else str  # a file gets the names as they are
    more = [*(["set"] if sets else []), *(["outlier"] if marked else [])]
    writer.writerow(["path", *(["labels"] if several else []), *chain.from_iterable(ranks), *more, "error"])
    for prediction in done:
        pairs = [(label, f"{p:.6f}") for label, p in prediction.top] or [("", "")] * top
        labels = [";".join(label for label, _ in prediction.labels or ())] if several else []
        extra = [";".join(prediction.classes or ())] if sets else []
        extra += ["" if prediction.outlier is None else str(int(prediction.outlier))] if marked else []
        cells = [prediction.path, *labels, *chain.from_iterable(pairs), *extra, prediction.error or ""]
        row = list(map(shown, cells))
        (quoting if any("\r" in cell for cell in row) else writer).writerow(row)  # csv quotes \n of itself, and \r not
