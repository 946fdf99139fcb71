"""The command line: the table of commands, the overview, and errors in one line.

A command is one file of `vitrail.commands` and one row of the table. Modules that need torch are imported inside functions, so
that every page of help appears at once.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import importlib.metadata
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence

from vitrail import terminal
from vitrail.data.quiet import ignore_pillow_warnings
from vitrail.text import one_line as joined

ON_DATA = {
    "check": "vitrail.commands.check",
    "train": "vitrail.commands.train",
    "pretrain": "vitrail.commands.pretrain",
    "resume": "vitrail.commands.resume",
    "evaluate": "vitrail.commands.evaluate",
    "compare": "vitrail.commands.compare",
    "sweep": "vitrail.commands.sweep",
    "report": "vitrail.commands.report",
    "predict": "vitrail.commands.predict",
    "embed": "vitrail.commands.embed",
    "explain": "vitrail.commands.explain",
    "probe": "vitrail.commands.probe",
    "serve": "vitrail.commands.serve",
}
ON_MODELS = {
    "bench": "vitrail.commands.bench",
    "models": "vitrail.commands.models",
    "show": "vitrail.commands.show",
    "convert": "vitrail.commands.convert",
    "export": "vitrail.commands.export",
    "push": "vitrail.commands.push",
}
COMMANDS = ON_DATA | ON_MODELS
"""Each command's module, in the order of the overview: `USAGE` and `SUMMARY` are its line there, `run` is the command."""

OVERVIEW = """Vitrail: Vision Transformers from a folder of images to a trained, measured model.

{commands}

DATA is a folder with one folder per class, or with labels.csv; or one of fashion-sample, fashion-mnist, mnist, cifar10,
cifar100, imagenet. `pretrain` and `embed` also take a folder without classes.
RUN is the folder that a training wrote.

  vitrail train --minutes 2 --out runs/first
  vitrail evaluate runs/first
  vitrail predict runs/first photo.png

vitrail COMMAND --help says more; vitrail --version says which this is; --traceback shows where an error came from.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Return 0, 1 when some images could not be read, 2 for a user's mistake, 128 + n after signal n.

    Ctrl-C is signal 2, SIGTERM 15, SIGUSR1 10.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    if hasattr(sys.stdin, "reconfigure"):  # a list of files may hold names that are no UTF-8
        sys.stdin.reconfigure(errors="surrogateescape")
    warnings.formatwarning = terminal.warning_line
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    ignore_pillow_warnings()
    try:
        code = run(words)
        sys.stdout.flush()  # a pipe that nobody reads shows here, not at exit
        if "TORCHELASTIC_RUN_ID" in os.environ:  # one of several processes, all of whose work is done and written
            sys.stderr.flush()
            os._exit(code)  # torch's threads abort now and then as the interpreter is taken down, and the run would have failed
        return code
    except SystemExit as leave:  # argparse, after --help
        return int(leave.code or 0)
    except BrokenPipeError:  # `vitrail predict … | head`
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return terminal.SOME_FAILED
    except KeyboardInterrupt as stop:  # a training says what it has saved
        if terminal.in_front():
            terminal.report(": ".join(["interrupted", *map(str, stop.args)]))
        return 128 + getattr(stop, "number", signal.SIGINT)
    except Exception as error:
        if type(error).__name__ == "PeerFailed":  # the first process reports the reason
            return terminal.MISTAKE
        line = one_line(error)
        if (
            line is None
            and "RANK" in os.environ
            and re.search(r"Connection (closed|reset)|Timed out waiting|[Ww]atchdog", str(error))
        ):
            line = "another process ended, or stands still; its own message says why"
        if traceback or line is None:
            raise
        terminal.report(line, process="" if terminal.in_front() else f", process {os.environ['RANK']}")
        return terminal.MISTAKE


def run(words: list[str]) -> int:
    """Run the command that the first word names, with the rest of the words."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview(), end="")
        return terminal.OK
    if words[0] == "--version":
        terminal.say(f"vitrail {importlib.metadata.version('vitrail')}")
        return terminal.OK
    if words[0] not in COMMANDS:
        close = difflib.get_close_matches(words[0], COMMANDS, n=1, cutoff=0.5)
        hint = f'did you mean "{close[0]}"?' if close else "vitrail --help says what each does"
        raise ValueError(f'"{words[0]}" is none of the commands {", ".join(COMMANDS)}; {hint}')
    code: int = importlib.import_module(COMMANDS[words[0]]).run(words[1:])
    return code


def overview() -> str:
    """Return the text of `vitrail --help`."""
    rows = {name: importlib.import_module(module) for name, module in COMMANDS.items()}
    width = max(len(command.USAGE) for command in rows.values())
    groups = (
        [f"  vitrail {rows[name].USAGE:{width}}  {rows[name].SUMMARY}" for name in group] for group in (ON_DATA, ON_MODELS)
    )
    return OVERVIEW.format(commands="\n\n".join(map("\n".join, groups)))


def one_line(error: Exception) -> str | None:
    """Return the line for a user's mistake; None for a bug of ours, which keeps its traceback."""
    text = joined(error)
    if isinstance(error, OSError) and error.errno is None:  # our own words
        return text
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in text:
        where = getattr(error, "filename", None)
        return f"{f'{where}: ' if where else ''}the disk is full; make room there, or write elsewhere"
    if isinstance(error, OSError):
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([*names[:1], (error.strerror or "").lower() or text or type(error).__name__])
    # torch's error, by name: importing torch here would be slow. On a CPU and on a Mac it is a RuntimeError.
    if type(error).__name__ in ("OutOfMemoryError", "MemoryError") or re.search(r"allocate memory|out of memory", text):
        return "memory ran out; use a smaller batch (--train.batch_size, or --batch-size), or --train.checkpointing true"
    return text if isinstance(error, ValueError) else None
