"""`vitrail train`: train a model and write a run folder."""

from __future__ import annotations

from vitrail import terminal
from vitrail.commands.runs import finish_run, run_parser

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
A length (epochs, steps or minutes) replaces any other length; a model's name resets the other fields of its section."""


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    usage = "[DATA] [--weights W] [--recipe R] [--model B/16] [--minutes 2] [--out RUN] [--SECTION.FIELD VALUE]…"
    parser = run_parser("train", HELP, usage=usage, recipe="the one for DATA")
    parsed = terminal.parse_settings(parser, words)

    from vitrail.train.run import train

    return finish_run(train, parsed)
