"""`vitrail pretrain`: train a backbone without labels and write a run folder."""

from __future__ import annotations

import functools

from vitrail import terminal
from vitrail.commands.runs import finish_run, run_parser

USAGE = "pretrain [DATA]"
SUMMARY = "trains without labels, on any folder of images, for `train --weights RUN`"

HELP = """Trains a backbone without labels, scores its embedding, and writes a run folder to go on from.

  vitrail pretrain                                the sample that comes with the package
  vitrail pretrain ALBUM --minutes 30             images loose, or in any tree of folders
  vitrail train PHOTOS --weights RUN              then: fine-tune it on what is labelled
  vitrail pretrain ALBUM --method mae --mae.mask_ratio 0.6 --model.depth 8

Methods, each with a section of settings; those on views take any backbone:
  lejepa   views: they agree, and projections are normally distributed (Balestriero & LeCun 2025)
  mae      most patches are hidden, and a light decoder predicts their pixels (He et al. 2022)
  simmim   masked squares become a mask token, one layer predicts their pixels; also for a Swin (Xie et al. 2022)
  beit     masked blocks: their discrete tokens are predicted, of a k-means codebook (Bao et al. 2022)
  dino     views: a student learns what its running mean says of other crops (Caron et al. 2021); --dino.ibot_weight

Each evaluation prints the k-NN accuracy of the embedding where images have classes, else its effective rank; mae and
simmim draw originals, visible patches and reconstructions into RUN/reconstructions. RUN/curves.png and RUN/pca.png show
whether it works; a run whose embedding collapses is stopped (--guard.stop false), with what to change. At the end the
weights are compared with those that training started from (--train.compare false).

DATA is what `vitrail train` takes, or a folder without classes: train, val and test in it are splits, else
data.val_fraction of the images is held out. Settings come in the order of `vitrail train`; those of heads and labels
have no effect, and a note names them."""


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    usage = "[DATA] [--method M] [--recipe R] [--model Ti/16] [--minutes 2] [--out RUN] [--SECTION.FIELD VALUE]…"
    parser = run_parser("pretrain", HELP, usage=usage, recipe="the method's own")
    parser.add_argument(
        "--method", type=str, metavar="M", help="lejepa, mae, simmim, beit or dino [that of the recipe, else lejepa]"
    )
    parsed = terminal.parse_settings(parser, words)

    from vitrail.train.run import pretrain

    return finish_run(functools.partial(pretrain, method=parsed.get("method")), parsed)
