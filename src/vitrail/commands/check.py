"""`vitrail check`: look through a data set before training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitrail import terminal
from vitrail.text import printable

if TYPE_CHECKING:
    from vitrail.check import CheckedData, DataFinding

USAGE = "check DATA [--weights W] [--fix-list FILE]"
SUMMARY = "looks through a data set before training: broken files, duplicates, leakage, labels"

HELP = """Looks through a data set before training. Nothing is changed, moved or deleted.

  vitrail check PHOTOS
  vitrail check PHOTOS --weights RUN --fix-list fix.csv --page check.html

Files that are broken or named as another format; sizes, colours, range of values; classes too small or out of balance; exact
and near duplicates, also across splits and under different labels; blank, dark and blurred images. With --weights also
labels that the nearest images do not have, and images unlike all others. With --weights RUN and RUN's own data, the findings
are kept as RUN/check.json, which the report of the run shows."""

_SHOWN = 3  # findings of a kind that the table names
_LENGTH = 160  # characters of an example


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    parser = terminal.make_parser(
        "check",
        HELP,
        "Exit code: 0, or 1 when files are unreadable; with --strict 1 when there is any finding.",
    )
    parser.add_argument("data", metavar="DATA", help="a folder, with or without classes, or the name of a set")
    parser.add_argument("--weights", metavar="W", help="a run; a Hub id, a file or a folder of any origin: for its features")
    parser.add_argument("--fix-list", metavar="FILE", help="write a CSV: file, finding, evidence, suggestion")
    parser.add_argument("--page", metavar="FILE", help="write an HTML page with thumbnails, which needs no other file")
    parser.add_argument("--strict", action="store_true", help="exit code 1 for any finding")
    parser.add_argument(
        "--exact",
        action="store_true",
        help="only what is certain, faster: no near duplicates, no colours, no dark and blurred images",
    )
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    terminal.add_device(parser, batch_size=64)
    args = terminal.parse(parser, words)

    from vitrail.check import check
    from vitrail.data.listing import mark_output
    from vitrail.evaluate.run import is_run
    from vitrail.weights.run_folder import CHECK, read_run

    checked = check(args.data, weights=args.weights, exact_only=args.exact, device=args.device, batch_size=args.batch_size)
    written = [checked.write_fix_list(args.fix_list)] if args.fix_list else []
    if args.page:
        from vitrail.check.page import write_page

        written.append(write_page(checked, args.data, args.page))
    for path in written:
        mark_output(path.parent, [path], command="check")
    if args.weights and is_run(args.weights) and read_run(Path(args.weights)).is_of(args.data):
        written.append(checked.write_json(Path(args.weights, CHECK)))
    if args.json:
        terminal.print_json(checked.to_dict())
    else:
        print_checked(checked)
        for path in written:
            terminal.say(f"Written: {path}")
    if checked.unreadable or (args.strict and checked.findings):
        return terminal.SOME_FAILED
    return terminal.OK


def print_checked(checked: CheckedData) -> None:
    """Print the classes, figures and findings of a data set."""
    console = terminal.make_console()
    noun, plural = ("class", "classes") if checked.labels is None else ("label", "labels")
    classes = list(next(iter(checked.counts.values()), {}))
    kinds = f"{len(classes)} {plural}" if classes else "no classes"
    unreadable = terminal.counted(len(checked.unreadable), "unreadable file")
    terminal.say(f"{checked.name}: {terminal.counted(checked.images, 'image')}, {kinds}, {unreadable}")
    terminal.say()
    table = terminal.make_table(noun, *checked.counts)
    for name in classes:
        table.add_row(name, *(f"{split[name]:,}" for split in checked.counts.values()))
    table.add_row("all", *(f"{images:,}" for images in checked.totals.values()))
    console.print(table)
    terminal.say()
    for line in checked.describe():
        terminal.say(line)
    terminal.say()
    if not checked.findings:
        terminal.say("Nothing was found.")
    else:
        found = terminal.make_table("finding", "number", "files", "examples", words=("examples",))
        for kind, findings in checked.by_kind():
            files = len({path for finding in findings for path in finding.paths})
            first, *others = _examples(findings)
            found.add_row(kind, f"{len(findings):,}", f"{files:,}" if files else "", first)
            for example in others:
                found.add_row("", "", "", example)
        console.print(found)
    for line in checked.left_out:
        terminal.say(f"left out: {line}")


def _examples(findings: tuple[DataFinding, ...]) -> list[str]:
    lines = []
    for finding in findings[:_SHOWN]:
        where = f"{finding.paths[0]}: " if finding.paths and finding.paths[0] not in finding.evidence else ""
        text = printable(f"{where}{finding.evidence}")
        lines.append(text if len(text) <= _LENGTH else text[: _LENGTH - 1] + "…")
    more = [f"and {len(findings) - _SHOWN:,} more"] if len(findings) > _SHOWN else []
    return [*lines, *more]
