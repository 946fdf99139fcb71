"""`vitrail check`: look through a data set before training."""

from __future__ import annotations

import dataclasses

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

    from vitrail.data.check import check as look_through

    report = look_through(args.data)
    if args.json:
        sizes = [{"height": height, "width": width, "images": images} for (height, width), images in report.sizes.items()]
        bad = [{"path": path, "reason": reason} for path, reason in report.bad]
        found = {"name": report.name, "images": report.images, "counts": report.counts, "sizes": sizes, "modes": report.modes}
        if report.labels is not None:
            found["labels"] = [{"labels": number, "images": images} for number, images in report.labels.items()]
        alike = {"duplicates": report.duplicates, "contradictions": report.contradictions}
        values = {
            split: dataclasses.asdict(used) | {"range": used.range or "full", "warning": used.few_levels(used.range)}
            for split, used in report.values.items()
        }
        terminal.print_json({**found, "values": values, "bad": bad, **alike, "notes": report.notes})
    else:
        print(report)
    return terminal.SOME_FAILED if report.bad else terminal.OK
