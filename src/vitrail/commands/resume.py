"""`vitrail resume`: continue a run that was stopped."""

from __future__ import annotations

from vitrail import terminal
from vitrail.commands.runs import print_next_steps

USAGE = "resume RUN"
SUMMARY = "goes on where a run stopped"


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    parser = terminal.make_parser("resume", "Goes on from the last checkpoint of a run that was stopped.")
    parser.add_argument("run", metavar="RUN", help="the folder that `vitrail train` wrote")
    parser.add_argument("--workers", type=int, metavar="N", help="other loader processes than data.workers says; 0 for none")
    terminal.add_report(parser)
    args = terminal.parse(parser, words)
    if args.workers is not None and args.workers < 0:
        raise ValueError(f"--workers {args.workers} must be at least 0")

    from vitrail.train.run import resume as go_on

    print_next_steps(go_on(args.run, workers=args.workers), report=not args.no_report)
    return terminal.OK
