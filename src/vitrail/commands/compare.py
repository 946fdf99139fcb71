"""`vitrail compare`: runs side by side on the same images, with a paired test."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vitrail import terminal

if TYPE_CHECKING:
    from vitrail.evaluate.compare import RunComparison

USAGE = "compare RUN RUN…"
SUMMARY = "runs side by side on the same images, with a paired test"


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    parser = terminal.make_parser(
        "compare",
        "Evaluates runs on the same images and compares each with the first: the difference in points with its 95 % interval,\n"
        "and McNemar's test of the images that one of the two alone gets right.\n"
        "Runs whose settings differ in the seed alone are a group.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders that `vitrail train` wrote; or checkpoints, and --data")
    parser.add_argument("--data", metavar="DATA", help="a folder, or the name of a set [what the first run was trained on]")
    parser.add_argument("--split", choices=("train", "val", "test"), help="which images [test, else val]")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    terminal.add_device(parser, batch_size=256)
    args = terminal.parse(parser, words)

    from vitrail.evaluate.compare import compare_runs

    done = compare_runs(args.runs, args.data, split=args.split, batch_size=args.batch_size, device=args.device)
    if args.json:
        terminal.print_json(done.to_dict())
    else:
        print_comparison(done)
    return terminal.OK


def print_comparison(done: RunComparison) -> None:
    """Print a table of the runs and, where there are seeds, one of the groups."""
    console = terminal.make_console()
    console.print(f"{done.data}, {done.split}: {done.images:,} images", style="bold", soft_wrap=True)
    console.print()
    columns = ("run", "accuracy", "95 % interval", "calibration error", "difference", "its interval", "p", "than the first")
    table = terminal.make_table(*columns, words=("than the first",))
    for row in done.runs:
        cells = [row.run, terminal.percent(row.accuracy.value), terminal.interval(row.accuracy.interval)]
        cells.append(terminal.percent(row.calibration_error))
        if (paired := row.to_first) is not None:
            cells += [points(paired.difference), points_of(paired.interval), f"{paired.p_value:.2g}", paired.verdict]
        table.add_row(*cells)
    console.print(table)
    console.print()
    if all(len(group.runs) == 1 for group in done.groups):
        return
    titles = ("runs", "seeds", "mean", "its interval", "difference", "interval", "than the first")
    table = terminal.make_table(*titles, words=("than the first",))
    for group in done.groups:
        cells = [group.runs[0], str(len(group.runs)), terminal.percent(group.mean)]
        cells.append(terminal.interval(group.interval) if math.isfinite(group.interval[0]) else "needs 2 seeds")
        if (difference := group.to_first) is not None:
            cells += [points(difference.difference), points_of(difference.interval), difference.verdict]
        table.add_row(*cells)
    console.print(table)
    console.print()


def points(share: float) -> str:
    """Format a difference of shares in points."""
    return f"{100 * share:+.2f}"


def points_of(interval: tuple[float, float]) -> str:
    """Format an interval of a difference in points."""
    return f"{points(interval[0])} to {points(interval[1])}" if all(map(math.isfinite, interval)) else "needs 2 seeds each"
