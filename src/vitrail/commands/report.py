"""`vitrail report`: the page of a run, made again."""

from __future__ import annotations

from pathlib import Path

from vitrail import terminal

USAGE = "report RUN"
SUMMARY = "the page of a run: scores, errors with maps, calibration, and what to do next"


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    parser = terminal.make_parser(
        "report",
        "Makes report.html of a run again: one page that needs no other file and no network. `vitrail train` and\n"
        "`vitrail evaluate` write it at their end. With --card, a model card in the Hub's format instead.",
    )
    parser.add_argument("run", metavar="RUN", help="the folder that `vitrail train` wrote")
    parser.add_argument("--out", metavar="FILE", help="where the page goes [RUN/report.html]")
    parser.add_argument("--images", metavar="DATA", help="where the images are now [where the run found them]")
    parser.add_argument("--card", metavar="FILE", help="write the model card, as README.md of the Hub, and no page")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps [auto]")
    args = terminal.parse(parser, words)
    if args.card is not None and (args.out is not None or args.images is not None):
        raise ValueError("--card writes the card alone, which has no images; leave --out and --images out")

    if args.card is not None:
        from vitrail.weights.model_card import write_card

        terminal.say(f"Written: {write_card(args.run, Path(args.card))}")
        return terminal.OK

    from vitrail.report import write_report

    terminal.say(f"Written: {write_report(args.run, args.out, images=args.images, device=args.device)}")
    return terminal.OK
