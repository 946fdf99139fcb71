"""`vitrail evaluate`: measure a run or a checkpoint on a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from vitrail import terminal

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path

    from rich.table import Table

    from vitrail.evaluate import EmbeddingScores, Evaluation, MultiLabelEvaluation
    from vitrail.evaluate.merging import MergingLoss
    from vitrail.evaluate.robustness import Robustness
    from vitrail.evaluate.trust import Trust

USAGE = "evaluate RUN [DATA]"
SUMMARY = "accuracy with 95 % intervals, per class, and the confusion matrix"

MANY_CLASSES = 40


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    parser = terminal.make_parser(
        "evaluate",
        "Measures a run: accuracy with 95 % intervals, each class, and what is taken for what.\n"
        "Of a model without classes: the k-NN accuracy of its embedding, else its effective rank; and uniformity.",
    )
    parser.add_argument("run", metavar="RUN", help="the folder that `vitrail train` wrote; or a checkpoint, and DATA")
    parser.add_argument("data", metavar="DATA", nargs="?", help="a folder, or the name of a set [what the run was trained on]")
    parser.add_argument("--split", choices=("train", "val", "test"), help="which images [test, else val]")
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where evaluation.json, confusion.png, report.html … go [RUN, or a folder in it for other images]",
    )
    parser.add_argument(
        "--robustness",
        action="store_true",
        help="also measure some of the images corrupted, rotated, rescaled, compressed and at other input sizes",
    )
    parser.add_argument("--images", type=terminal.count, metavar="N", help="with --robustness: how many images [1000]")
    parser.add_argument(
        "--merge",
        type=terminal.count,
        metavar="R",
        help="also measure with R patches merged in each block (token merging): what it costs in accuracy",
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    terminal.add_device(parser, batch_size=256)
    terminal.add_report(parser)
    args = terminal.parse(parser, words)
    if args.images is not None and not args.robustness:
        raise ValueError(f"--images {args.images} is for --robustness; add it, or leave --images out")

    from vitrail.evaluate import EmbeddingScores, Evaluation, MultiLabelEvaluation, evaluate_run
    from vitrail.evaluate.merging import measure_merging
    from vitrail.evaluate.robustness import IMAGES, measure_robustness
    from vitrail.evaluate.run import is_run

    done = evaluate_run(
        args.run, args.data, split=args.split, batch_size=args.batch_size, device=args.device, report=terminal.report
    )
    files, robustness, merging = done.save(args.out), None, None
    if args.merge and not isinstance(done.scores, Evaluation):
        terminal.report("merging is not measured: it is the accuracy on images with one class each")
    elif args.merge:
        merging = measure_merging(
            args.run, args.data, r=args.merge, split=args.split, batch_size=args.batch_size, device=args.device
        )
        files += merging.save(args.out or done.folder)
    if args.robustness and not isinstance(done.scores, Evaluation):
        terminal.report("robustness is not measured: it is the accuracy on images with one class each")
    elif args.robustness:
        robustness = measure_robustness(
            args.run,
            args.data,
            split=args.split,
            images=args.images or IMAGES,
            batch_size=args.batch_size,
            device=args.device,
        )
        files += robustness.save(args.out or done.folder)
    report = "" if args.no_report or not is_run(args.run) else write_report(args, files[0].parent)
    if args.json:
        more: dict[str, MergingLoss | Robustness | None] = {"merging": merging, "robustness": robustness}
        terminal.print_json(done.to_dict() | {name: part.to_dict() for name, part in more.items() if part is not None})
        return terminal.OK
    title = f"{done.data}, {done.split}: {done.scores.count:,} images"
    if isinstance(done.scores, MultiLabelEvaluation):
        print_labels(done.scores, title=title)
    elif isinstance(done.scores, EmbeddingScores):
        print_embedding(done.scores, title=title)
    else:
        assert isinstance(done.scores, Evaluation)
        print_evaluation(done.scores, title=title)
    if merging is not None:
        print_merging(merging)
    if robustness is not None:
        print_robustness(robustness)
    terminal.say("Written: " + ", ".join(map(str, files)))
    if report:
        terminal.say(report)
    return terminal.OK


def write_report(args: Namespace, scores: Path) -> str:
    """Write the report of a run with the scores of a folder. Return the line that says where it is."""
    from vitrail.report import try_report

    return try_report(args.run, scores=scores, images=args.data, device=args.device)


def print_evaluation(result: Evaluation, *, title: str) -> None:
    """Print accuracy, overall and of each class."""
    overall = terminal.make_table("", "accuracy", "95 % interval")
    overall.add_row("top-1", terminal.percent(result.top1), terminal.interval(result.top1_interval))
    if len(result.classes) > 5:
        overall.add_row("top-5", terminal.percent(result.top5), terminal.interval(result.top5_interval))
    overall.add_row("macro F1", terminal.percent(result.macro_f1), terminal.interval(result.macro_f1_interval))
    rows = [Scored(each.name, each.count, each.accuracy, each.interval) for each in result.per_class]
    print_tables(title, overall, rows, columns=("class", "accuracy"), lowest="classes of lowest accuracy")
    if result.trust is not None:
        print_trust(result.trust)


def print_trust(trust: Trust) -> None:
    """Print calibration, selective prediction, sets and outliers."""
    table = terminal.make_table("probabilities", "value", "95 % interval")
    table.add_row("temperature", f"{trust.temperature:.3f}", "")
    before = "" if trust.temperature == 1 else f" ({terminal.percent(trust.error_before)} without the temperature)"
    table.add_row("calibration error", f"{terminal.percent(trust.error)}{before}", "")
    for each in trust.selective:
        what = f"answered at {terminal.percent(each.target)} precision"
        table.add_row(what, terminal.percent(each.share), "")
    for sets in trust.coverages:
        what = f"sets of {terminal.percent(sets.target)} coverage, {sets.mean_size:.2f} classes"
        table.add_row(what, terminal.percent(sets.covered.value), terminal.interval(sets.covered.interval))
    if trust.outliers is not None:
        table.add_row("unlike training", terminal.percent(trust.outliers.value), terminal.interval(trust.outliers.interval))
    console = terminal.make_console()
    console.print(table)
    console.print()


def print_merging(merging: MergingLoss) -> None:
    """Print the accuracy with and without token merging."""
    table = terminal.make_table("token merging", "top-1", "95 % interval")
    for what, top1 in (("none", merging.without), (f"{merging.r} patches in each block", merging.merged)):
        table.add_row(what, terminal.percent(top1.value), terminal.interval(top1.interval))
    low, high = (f"{100 * side:+.2f}" for side in merging.paired.interval)
    table.add_row("difference in points", f"{100 * merging.paired.difference:+.2f}", f"{low} to {high}")
    console = terminal.make_console()
    console.print(table)
    console.print()


def print_labels(result: MultiLabelEvaluation, *, title: str) -> None:
    """Print mean average precision, F1, and the average precision of each label."""
    overall = terminal.make_table("", "score", "95 % interval")
    overall.add_row("mean average precision", terminal.percent(result.mean_ap), terminal.interval(result.mean_ap_interval))
    overall.add_row("F1 of all labels from 50 % on", terminal.percent(result.f1), terminal.interval(result.f1_interval))
    rows = [Scored(each.name, each.count, each.average_precision, each.interval) for each in result.per_class]
    print_tables(title, overall, rows, columns=("label", "average precision"), lowest="labels of lowest precision")


def print_embedding(result: EmbeddingScores, *, title: str) -> None:
    """Print k-NN accuracy where images have classes, effective rank and uniformity."""
    table = terminal.make_table("embedding", "score", "95 % interval")
    if result.knn is not None:
        table.add_row("k-NN accuracy", terminal.percent(result.knn.value), terminal.interval(result.knn.interval))
    low, high = result.effective_rank_interval
    table.add_row("effective rank, dimensions", f"{result.effective_rank:.1f}", f"{low:.1f} to {high:.1f}")
    if result.uniformity is not None:
        value, (low, high) = result.uniformity
        table.add_row("uniformity, lower is more even", f"{value:.2f}", f"{low:.2f} to {high:.2f}")
    print_tables(title, table)


def print_robustness(result: Robustness) -> None:
    """Print the accuracy on changed images: corruptions by severity, the sweeps, and two means."""
    part = f"{result.images:,} of the {result.split_images:,} images"
    console = terminal.make_console()
    console.print(f"Robustness, on {part}; clean accuracy {terminal.percent(result.clean.value)}", style="bold", soft_wrap=True)
    console.print()
    table = terminal.make_table("accuracy at severity", *map(str, range(1, 6)), "mean")
    for name, measured in result.corruptions.items():
        values = [each.accuracy.value for each in measured]
        table.add_row(name, *map(terminal.percent, values), terminal.percent(sum(values) / len(values)))
    console.print(table)
    console.print()
    table = terminal.make_table("sweep", "accuracy", words=("accuracy",))
    for name, measured in result.sweeps.items():
        table.add_row(name, ", ".join(f"{each.value:.3g}: {terminal.percent(each.accuracy.value)}" for each in measured))
    console.print(table)
    console.print()
    table = terminal.make_table("", "error", "95 % interval")
    for name, mean in (
        ("mean corruption error", result.mean_corruption_error),
        ("more than the clean error", result.relative_corruption_error),
    ):
        table.add_row(name, terminal.percent(mean.value), terminal.interval(mean.interval))
    console.print(table)
    console.print()
    for note in result.notes:
        terminal.say(f"Not measured: {note}")


class Scored(NamedTuple):
    """Score of one class or label."""

    name: str
    images: int
    score: float
    interval: tuple[float, float]


def print_tables(
    title: str, overall: Table, rows: Sequence[Scored] = (), *, columns: tuple[str, str] = ("", ""), lowest: str = ""
) -> None:
    """Print the overall scores and, where there are rows, those with images; of more than `MANY_CLASSES`, the lowest."""
    console = terminal.make_console()
    console.print(title, style="bold", soft_wrap=True)
    console.print()
    console.print(overall)
    console.print()
    if not rows:
        return
    shown = [row for row in rows if row.images]
    if len(shown) > MANY_CLASSES:
        console.print(f"The {MANY_CLASSES} {lowest}; evaluation.json has all {len(rows)}:")
        shown = sorted(shown, key=lambda row: row.score)[:MANY_CLASSES]
    table = terminal.make_table(columns[0], "images", columns[1], "95 % interval")
    for row in shown:
        table.add_row(row.name, f"{row.images:,}", terminal.percent(row.score), terminal.interval(row.interval))
    console.print(table)
    console.print()
