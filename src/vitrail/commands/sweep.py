"""`vitrail sweep`: runs over values of settings and seeds, compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vitrail import terminal
from vitrail.commands.compare import print_comparison
from vitrail.commands.runs import run_parser

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

USAGE = "sweep DATA --set K=V,V"
SUMMARY = "a run for each value of a setting and each seed, compared"

HELP = """Trains a run for each value of a setting and each seed, and compares them on the same images.
Of several settings all combinations are trained.

  vitrail sweep PHOTOS --set model.pool=cls,avg --seeds 3
  vitrail sweep PHOTOS --set optim.lr=1e-4,3e-4,1e-3 --set model=S/16,B/16 --train.epochs 20 --out sweeps/lr
  vitrail sweep PHOTOS --set data.fraction=0.25,0.5,1          a learning curve

All settings are checked before the first run. The same command with the same --out goes on where it stopped: finished runs
stay, a stopped one is resumed, and further values and seeds are added. The other options are those of `vitrail train`."""


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    usage = "[DATA] --set SECTION.FIELD=VALUE,VALUE… [--seeds 3] [--out FOLDER] [options of train]"
    parser = run_parser("sweep", HELP, usage=usage, recipe="the one for DATA", add_options=add_sweep)
    parsed = terminal.parse_settings(parser, words)
    choices = read_choices(parser, parsed.get("set") or [])

    from vitrail.settings import layers
    from vitrail.train.sweep import SEEDS, sweep

    seeds = parsed.get("seeds")
    done = sweep(
        parsed.get("path"),
        choices=choices,
        seeds=SEEDS if seeds is None else seeds,
        settings=layers.layer_of(parsed),
        recipe=parsed.get("recipe"),
        config=parsed.get("config"),
        out=parsed.get("out"),
        split=parsed.get("split"),
    )
    terminal.say()
    print_comparison(done.comparison)
    for curve in done.learning_curves:
        terminal.say(f"Learning curve, {curve.conclusion}.")
    for folder, reason in done.failed:
        terminal.report(f"{folder} failed: {reason}")
    terminal.say(f"Written: {done.folder / 'sweep.json'}, {done.folder / 'sweep.png'}")
    return terminal.SOME_FAILED if done.failed else terminal.OK


def add_sweep(parser: ArgumentParser) -> None:
    """Add the options of a sweep."""
    parser.add_argument(
        "--set", type=str, action="append", metavar="KEY=V,V…", help="a setting and its values; of several, all combinations"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each, with the seeds from train.seed on [3]")
    parser.add_argument("--out", type=str, metavar="FOLDER", help="the folder of the runs [the next in runs/]")
    parser.add_argument("--split", choices=("train", "val", "test"), help="which images they are compared on [val, else test]")


def read_choices(parser: ArgumentParser, texts: Sequence[str]) -> dict[str, list[Any]]:
    """Read the values of each --set as the command line reads one of them. Raises ValueError for an invalid one."""
    from vitrail.settings import layers

    choices: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        option = terminal.SHORT.get(f"--{key}", f"--{key}")
        key = option.removeprefix("--")
        if not equals:
            raise ValueError(f'--set "{text}" has no values; write SECTION.FIELD=VALUE,VALUE')
        if key in choices:
            raise ValueError(f"--set {key} stands twice; write all of its values behind one")
        choices[key] = []
        for value in split_values(values):
            found: Any = layers.layer_of(terminal.parse_settings(parser, [option, value]))
            for part in key.split("."):
                if part not in found:
                    raise ValueError(layers.unknown_key(key, dashes="--set "))
                found = found[part]
            choices[key].append(found)
    return choices


def split_values(text: str) -> list[str]:
    """Split at commas that are not within brackets or braces."""
    return [value.strip() for value in re.split(r",(?![^\[{(]*[\]})])", text)]
