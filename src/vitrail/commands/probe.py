"""`vitrail probe`: k-NN, linear probe and few-shot accuracy of frozen features."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from vitrail import terminal
from vitrail.text import listed

if TYPE_CHECKING:
    from vitrail.evaluate.few_shot import Mean
    from vitrail.evaluate.intervals import Accuracy
    from vitrail.train.ladder import CheckpointProbe

USAGE = "probe WEIGHTS DATA"
SUMMARY = "quality of frozen features: k-NN, linear probe, few-shot accuracy"

HELP = """Quality of a model's frozen features on DATA, without training it: k-NN and a linear probe.

  vitrail probe timm/vit_small_patch16_224.augreg_in21k PHOTOS
  vitrail probe runs/first cifar10 --shots 1,5,10

Features are cached: a second run takes seconds. The last line says whether fine-tuning can be expected to do better."""


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    parser = terminal.make_parser("probe", HELP)
    parser.add_argument("weights", metavar="WEIGHTS|RUN", help="a run; a Hub id, a file or a folder of any origin")
    parser.add_argument("data", metavar="DATA", nargs="?", help="a folder, or the name of a set [what the run was trained on]")
    parser.add_argument("--shots", type=counts, metavar="1,5,10", help="also learn from so many images a class")
    parser.add_argument("--draws", type=terminal.count, metavar="N", help="with --shots: times that they are drawn anew [5]")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws and of what is held out [0]")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16", "auto"), default="fp32", help="of the model's pass [fp32]"
    )
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a Hub id")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    terminal.add_device(parser, batch_size=256)
    args = terminal.parse(parser, words)
    if args.draws and not args.shots:
        raise ValueError(f"--draws {args.draws} is for few images a class; add --shots 1,5,10, or leave it out")

    from vitrail.train.ladder import probe_checkpoint

    done = probe_checkpoint(
        args.weights,
        args.data,
        shots=args.shots or (),
        draws=args.draws or 5,
        seed=args.seed,
        precision=args.precision,
        revision=args.revision,
        batch_size=args.batch_size,
        device=args.device,
    )
    if args.json:
        terminal.print_json(done.to_dict())
    else:
        terminal.print_receipt(done.model, args.weights)
        print_probe(done)
    return terminal.OK


def counts(text: str) -> tuple[int, ...]:
    """Convert comma-separated whole numbers of at least 1."""
    try:
        return tuple(terminal.count(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}": give whole numbers of at least 1, as in 1,5,10') from None


def print_probe(done: CheckpointProbe) -> None:
    """Print the rungs, the few-shot accuracy and what to expect of fine-tuning."""
    ladder, images, classes = done.ladder, done.images, done.classes
    console, test = terminal.make_console(), ladder.probe.test
    split = "test" if test is not None else "val" if "val" in images else None
    where = f"scored on {images[split]:,} {split} images" if split else "scored on training images, held out in turn"
    teachers = [side for side in ("train", "val") if side in images and (side == "train" or test is not None)]
    learned, each_class = " + ".join(f"{images[side]:,} {side}" for side in teachers), sum(images[side] for side in teachers)
    console.print(f"{done.data}: {len(classes):,} classes; learned from {learned}; {where}", style="bold", soft_wrap=True)
    console.print()
    table = terminal.make_table("", "images a class", "accuracy", "95 % interval", "of", words=("of",))

    def row(name: str, each: str, score: Accuracy | Mean, of: str) -> None:
        table.add_row(name, each, terminal.percent(score.value), terminal.interval(score.interval), of)

    scored = (("k-NN", ladder.knn, ladder.knn_test), ("linear probe", ladder.probe.val, test))
    for rung, val, on_test in scored:
        score = val if on_test is None else on_test
        if score.count:
            row(rung, f"{each_class / len(classes):,.0f}", score, f"{score.count:,} images")
    for each in done.few:
        draws = terminal.counted(len(each.knn.values), "draw")
        row("k-NN", str(each.shots), each.knn, f"the mean of {draws}")
        row("linear probe", str(each.shots), each.probe, f"the mean of {draws}")
    console.print(table)
    console.print()
    for each in done.few:
        if each.short:
            names = listed([classes[k] for k in each.short])
            console.print(f"Fewer than {each.shots} images, of which all were taken: {names}.", soft_wrap=True)
    console.print(f"{ladder.advice.why[0].upper()}{ladder.advice.why[1:]}.", soft_wrap=True)
