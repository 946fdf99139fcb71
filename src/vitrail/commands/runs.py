"""Shared parts of the commands that train: options, call, and next steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vitrail import terminal

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from vitrail.train import Run


def add_run_folder(parser: ArgumentParser) -> None:
    """Add the options of a command that trains one run."""
    parser.add_argument(
        "--out",
        type=str,
        metavar="RUN",
        help="the run folder, a new one but for --resume [the next in runs/]",
    )
    parser.add_argument(
        "--resume", type=str, choices=["auto"], help="auto: resume the run in --out if there is one, else start it"
    )
    terminal.add_report(parser)


def run_parser(
    command: str,
    description: str,
    *,
    usage: str,
    recipe: str,
    add_options: Callable[[ArgumentParser], None] = add_run_folder,
) -> ArgumentParser:
    """Return the parser of a command that trains: data, recipe, options of its own, and every setting."""
    from vitrail.settings import layers

    parser = terminal.make_settings_parser(command, description, usage=usage)
    parser.add_argument("path", nargs="?", metavar="DATA", help="a folder, or the name of a set [fashion-sample]")
    parser.add_argument("--recipe", type=str, metavar="R", help=f"one of {', '.join(layers.recipes())} [{recipe}]")
    parser.add_argument("--config", type=str, metavar="FILE", help="YAML file of settings; a run's config.yaml is one")
    add_options(parser)
    layers.add_settings(parser)
    return parser


def finish_run(start: Callable[..., Run], parsed: Namespace) -> int:
    """Run a training with the options of `run_parser`, and print the next steps. Return the exit code."""
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
    print_next_steps(done, report=not parsed.get("no_report"))
    return terminal.OK


def print_next_steps(done: Run, *, report: bool) -> None:
    """Write the report of a run, and print its path and the commands that use the run, in the process that prints."""
    from vitrail.tasks import TASKS

    if not terminal.in_front():
        return
    if report:
        from vitrail.report import try_report

        terminal.say(try_report(done.folder))
    terminal.print_what_is_next(done.folder, TASKS[done.task].next_steps)
