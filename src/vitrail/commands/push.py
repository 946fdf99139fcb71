"""`vitrail push`: upload a run to the Hugging Face Hub."""

from __future__ import annotations

from vitrail import terminal

USAGE = "push RUN OWNER/NAME"
SUMMARY = "a run to the Hugging Face Hub, with a model card"


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    parser = terminal.make_parser(
        "push", "Uploads a run's model to the Hugging Face Hub: weights, settings, scores and a model card."
    )
    parser.add_argument("run", metavar="RUN", help="the folder that `vitrail train` or `vitrail convert --to timm` wrote")
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository, which is made if it is not there")
    parser.add_argument("--private", action="store_true", help="make it a private one")
    parser.add_argument("--revision", metavar="R", help="the branch [main]")
    args = terminal.parse(parser, words)

    from vitrail.weights import push_to_hub

    terminal.say(push_to_hub(args.run, args.repo, private=args.private, revision=args.revision))
    return terminal.OK
