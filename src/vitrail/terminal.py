"""Shared parts of the commands: parsers and their values, lines, tables, JSON and exit codes."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vitrail.text import json_escaped, one_line, printable

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
    from rich.console import Console
    from rich.table import Table

OK, SOME_FAILED, MISTAKE = 0, 1, 2


# --------------------------------------------------------------------------------------------------------------------
# Options

SHORT = {"--model": "--model.name", "--minutes": "--train.minutes", "--weights": "--model.weights"}


class Help(argparse.RawDescriptionHelpFormatter):
    """Help formatter with room for long options."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=min(shutil.get_terminal_size((110, 24)).columns, 110))


class Parser(argparse.ArgumentParser):
    """argparse's parser, whose errors are raised for `cli.main` to report."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError."""
        raise ValueError(f"{message}; see {self.prog} --help")


def make_parser(command: str, description: str, epilog: str = "") -> Parser:
    """Return the parser of a command."""
    return Parser(prog=f"vitrail {command}", description=description, epilog=epilog, formatter_class=Help, allow_abbrev=False)


def make_settings_parser(command: str, description: str, *, usage: str) -> ArgumentParser:
    """Return a parser for typed settings (jsonargparse). Parse with `parse_settings`."""
    from jsonargparse import ArgumentParser

    prog = f"vitrail {command}"
    return ArgumentParser(
        prog=prog,
        usage=f"{prog} {usage}",
        description=description,
        formatter_class=Help,
        exit_on_error=False,
        allow_abbrev=False,
    )


def count(text: str | int) -> int:
    """Convert text to a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def add_device(parser: Parser, *, batch_size: int) -> None:
    """Add the options of a command that runs a model."""
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps [auto]")
    parser.add_argument("--batch-size", type=count, default=batch_size, metavar="N", help=f"images a batch [{batch_size}]")


def add_ray(parser: Parser, *, formats: Sequence[str]) -> None:
    """Add the options of a command that runs on a Ray cluster. Read them with `ray_options`."""
    group = parser.add_argument_group(
        "past one machine",
        "The Ray cluster of RAY_ADDRESS, or one that starts here. All its machines see images and output.",
    )
    group.add_argument("--ray", action="store_true", help="compute on a Ray cluster; the output is a folder, here or a URL")
    if len(formats) > 1:
        group.add_argument("--format", choices=formats, help=f"format of the output's files [{formats[0]}]")
    group.add_argument("--workers", metavar="N|MIN-MAX", help="number of workers [as many as there is room for]")
    group.add_argument("--worker-cpus", type=count, metavar="N", help="CPUs of a worker [4, or all that a machine has]")
    group.add_argument("--columns", metavar="ID,IMAGE", help="columns of a Parquet table of images [id,image]")
    group.add_argument("--rows", type=count, metavar="N", help="images of a file at most [4096]")


RAY_OPTIONS = ("format", "workers", "worker_cpus", "columns", "rows")


def ray_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_ray`, as `deploy.ray_data` takes them. Raises ValueError for those without --ray."""
    given = {name: getattr(args, name) for name in RAY_OPTIONS if getattr(args, name, None) is not None}
    if not args.ray:
        if given:
            raise ValueError(f"--{next(iter(given)).replace('_', '-')} is for --ray; add it, or leave it out")
        return {}
    from vitrail.deploy.ray_data import Cluster, parse_workers, require_ray

    require_ray()
    options: dict[str, Any] = {name: given[name] for name in ("format", "rows") if name in given}
    if "columns" in given:
        columns = tuple(given["columns"].split(","))
        if len(columns) != 2 or not all(columns):
            raise ValueError(f'--columns "{given["columns"]}" must be two names with a comma between: ID,IMAGE')
        options["columns"] = columns
    workers = parse_workers(given["workers"]) if "workers" in given else None
    return options | {"cluster": Cluster(workers=workers, cpus=given.get("worker_cpus"))}


def report_computed(done: Any, what: str, *, json: bool) -> int:
    """Print the result of a command on a cluster (`deploy.ray_data.Computed`). Return the exit code."""
    written = done.written
    if json:
        print_json(done.to_dict())
    else:
        speed = f"{(written.images - done.begun_with) / max(done.seconds, 1e-9):,.1f} images/s"
        before = f"; {done.begun_with:,} were there already" if done.begun_with else ""
        say(f"Written: {done.out}")
        say(f"{counted(written.images, 'row')} in {counted(written.files, 'file')}, {speed}{before}")
    if not written.failed:
        return OK
    some = "; ".join(f"{name}: {error}" for name, error in written.first_failed)
    more = f"; and {written.failed - len(written.first_failed)} more" if written.failed > len(written.first_failed) else ""
    report(f"{written.failed} of {counted(written.images, 'image')} have no {what} ({some}{more})")
    return SOME_FAILED


def add_report(parser: Parser | ArgumentParser) -> None:
    """Add the option of a command that writes a report at its end."""
    parser.add_argument("--no-report", action="store_true", help="write no report.html at the end")


def parse(parser: Parser, words: list[str]) -> argparse.Namespace:
    """Parse words, with options anywhere among them. Raises ValueError in one line that names the nearest option."""
    for option in _options(words):
        if option not in parser._option_string_actions:
            close = difflib.get_close_matches(option, parser._option_string_actions, n=1)
            raise ValueError(_no_option(option, parser.prog, close))
    return parser.parse_intermixed_args(words)


def parse_settings(parser: ArgumentParser, words: list[str]) -> Namespace:
    """Parse words without filling in defaults. Raises ValueError in one line that names the nearest option."""
    from vitrail.settings import layers

    words = list(chain.from_iterable(word.split("=", 1) if word.startswith("--") else [word] for word in words))
    words = [SHORT.get(word, word) for word in words]
    for position, word in enumerate(words[1:], start=1):
        if words[position - 1] in ("--model.img_size", "--model.patch_size"):
            words[position] = layers.sides(word)
    known = parser._option_string_actions
    for option in _options(words):
        section, dot, _ = option.rpartition(".")
        if option in known or (section in known and option[2:] in layers.key_types()):  # --augment.rand_augment.n
            continue
        near = difflib.get_close_matches(option, [*SHORT, *known], n=1, cutoff=0.8)
        suggested = [name for name in (f"--{layers.nearest_key(option[2:])}",) if name in known]
        raise ValueError(_no_option(option, parser.prog, suggested or near if dot else near or suggested))
    try:
        return parser.parse_args(words, defaults=False)
    except argparse.ArgumentError as error:
        raise ValueError(layers.explain(error)) from error


def _options(words: Iterable[str]) -> Iterator[str]:
    """Yield the options among the words, without what follows a "="."""
    return (word.partition("=")[0] for word in takewhile(lambda word: word != "--", words) if word.startswith("--"))


def _no_option(option: str, prog: str, close: list[str]) -> str:
    return f"{option} is not an option of {prog}; " + (f"did you mean {close[0]}?" if close else f"see {prog} --help")


# --------------------------------------------------------------------------------------------------------------------
# Output


def warning_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """Format a warning as one line, with its category unless it is a UserWarning."""
    kind = "" if category is UserWarning else f"{category.__name__}: "
    return f"vitrail: {kind}{one_line(message)}\n"


def in_front() -> bool:
    """Return whether this process prints, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def say(text: object = "") -> None:
    """Print one line to stdout, with control characters escaped."""
    print(printable(text))


def report(text: object, *, process: str = "") -> None:
    """Print one line to stderr: an error, a warning or an assumption."""
    print(f"vitrail{process}: {printable(text)}", file=sys.stderr)


def make_console() -> Console:
    """Return a console with colours and the terminal's width, or for plain text of any width in a pipe."""
    from vitrail.console import PlainConsole

    terminal = sys.stdout.isatty()
    return PlainConsole(
        color_system="auto" if terminal else None,
        width=None if terminal else 1000,
    )


def make_table(*columns: str, words: Sequence[str] = ()) -> Table:
    """Return an empty table; columns are numbers, except the first and those in `words`."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if not position or column in words else "right", overflow="fold")
    return table


def print_json(value: Any) -> None:
    """Print a value as indented JSON. Raises ValueError for numbers that are not finite, which JSON does not have."""
    print(json_escaped(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)))


def percent(share: float) -> str:
    """Format a share, as in 87.3 %."""
    return f"{100 * share:.1f} %"


def interval(ends: tuple[float, float]) -> str:
    """Format the ends of an interval of shares in per cent, as in 84.1 to 90.2."""
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def counted(count: int, noun: str, plural: str = "s") -> str:
    """Format a number and its noun, as in 12 heads."""
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def in_bytes(count: float) -> str:
    """Format a number of bytes, as in 86.6 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def print_what_is_next(folder: Path, commands: Sequence[str]) -> None:
    """Print where a run is, and the commands that use it, with {run} for its folder."""
    say()
    say(f"The run is in {folder}. What to run next:")
    for command in commands:
        say(f"  {command.replace('{run}', shlex.quote(str(folder)))}")


def print_receipt(model: Any, source: str) -> None:
    """Print to stderr what was assumed about weights that are not a run's; a run records everything."""
    if not Path(source, "config.yaml").is_file() and model.receipt is not None:
        print(model.receipt, file=sys.stderr)  # which are lines to be shown


def report_unread(bad: int, images: int) -> int:
    """Report how many of the images could not be read. Return the exit code."""
    if not bad:
        return OK
    others = "; the others are done" if bad < images else ""
    report(f"{bad} of {images} image{'s' * (images > 1)} could not be read{others}")
    return SOME_FAILED
