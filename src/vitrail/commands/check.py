"""`vitrail check`: look through a data set before training."""

from __future__ import annotations

from vitrail import terminal

USAGE = "check DATA"
SUMMARY = "looks through a data set before training"


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    parser = terminal.make_parser(
        "check",
        "Looks through a data set before training: classes, sizes, unreadable files, images on two sides or under two classes.",
        "Exit code: 0, or 1 when files are unreadable.",
    )
    parser.add_argument("data", metavar="DATA", help="a folder, or the name of a set")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    args = terminal.parse(parser, words)

    from vitrail.data.check import check

    report = check(args.data)
    if args.json:
        terminal.print_json(report.to_dict())
    else:
        print(report)
    return terminal.SOME_FAILED if report.bad else terminal.OK
