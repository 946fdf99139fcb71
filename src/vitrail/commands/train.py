"""`vitrail train`: train a model and write a run folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vitrail import terminal

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from vitrail.train import Run

USAGE = "train [DATA]"
SUMMARY = "trains; without DATA, on the sample that comes with the package"

HELP = """Trains a Vision Transformer, measures it, and writes a run folder.

  vitrail train                                   the sample that comes with the package
  vitrail train PHOTOS --minutes 30               a folder with one folder per class
  vitrail train PHOTOS --weights W                fine-tunes a Hub id, a file, a folder or a run
  vitrail train cifar10 --model S/4 --optim.lr 5e-4
  vitrail train PHOTOS --model torchvision:resnet50   a CNN in the same loop; timm:efficientnet_b0 …

--model B/16 is short for --model.name B/16, --weights W for --model.weights W, --minutes 2 for --train.minutes 2.
The command line wins over --config, which wins over --recipe, which wins over the defaults in brackets.
A length (epochs, steps or minutes) replaces any other length; a model's name starts its section afresh."""


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    usage = "[DATA] [--weights W] [--recipe R] [--model B/16] [--minutes 2] [--out RUN] [--SECTION.FIELD VALUE]…"
    parsed = terminal.parse_settings(make_run_parser("train", HELP, usage=usage, recipe="the one for DATA"), words)

    from vitrail.train.run import train

    return finish_run(train, parsed)


def make_run_parser(command: str, description: str, *, usage: str, recipe: str) -> ArgumentParser:
    """Return the parser of a command that trains: data, recipe (`recipe` says which without one), run folder, all settings."""
    from vitrail.settings import layers

    parser = terminal.make_settings_parser(command, description, usage=usage)
    parser.add_argument("path", nargs="?", metavar="DATA", help="a folder, or the name of a set [fashion-sample]")
    parser.add_argument("--recipe", type=str, metavar="R", help=f"one of {', '.join(layers.recipes())} [{recipe}]")
    parser.add_argument("--config", type=str, metavar="FILE", help="YAML file of settings; a run's config.yaml is one")
    parser.add_argument(
        "--out",
        type=str,
        metavar="RUN",
        help="the run folder, a new one but for --resume [the next in runs/]",
    )
    parser.add_argument(
        "--resume", type=str, choices=["auto"], help="auto: go on with the run in --out where there is one, else begin it"
    )
    layers.add_settings(parser)
    return parser


def finish_run(start: Callable[..., Run], parsed: Namespace) -> int:
    """Train by `start` with what `make_run_parser` parsed, and print what is next. Return the exit code."""
    from vitrail.settings import layers
    from vitrail.train.folder import Finished

    try:
        done = start(
            parsed.get("path"),
            recipe=parsed.get("recipe"),
            config=parsed.get("config"),
            out=parsed.get("out"),
            resume=parsed.get("resume"),
            **layers.layer_of(parsed),
        )
    except Finished as finished:  # all that --resume auto asks for
        if terminal.in_front():
            terminal.say(finished)
        return terminal.OK
    print_next_steps(done)
    return terminal.OK


def print_next_steps(done: Run) -> None:
    """Print where a run is and the commands that use it, in the process that talks."""
    from vitrail.tasks import TASKS

    if terminal.in_front():
        terminal.print_what_is_next(done.folder, TASKS[done.task].next_steps)
