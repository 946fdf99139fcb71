"""`vitrail probe`: k-NN, linear probe and few-shot accuracy of frozen features."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vitrail import terminal
from vitrail.text import listed

if TYPE_CHECKING:
    from vitrail.evaluate.few_shot import FewShot, Mean
    from vitrail.evaluate.metrics import Accuracy
    from vitrail.train.ladder import Ladder

USAGE = "probe WEIGHTS DATA"
SUMMARY = "what frozen features are worth: k-NN, a linear probe, a few images a class"

HELP = """What a model's features are worth on DATA without any training of it: k-NN, and a linear probe.

  vitrail probe timm/vit_small_patch16_224.augreg_in21k PHOTOS
  vitrail probe runs/first cifar10 --shots 1,5,10

Features are kept: a second look takes seconds. The last line says whether fine-tuning can be expected to do better."""


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

    from vitrail import weights
    from vitrail.evaluate.few_shot import few_shot
    from vitrail.evaluate.run import open_data
    from vitrail.models.device import autocast_dtype, pick_device
    from vitrail.train import ladder
    from vitrail.weights.load import is_name

    if is_name(args.weights):
        raise ValueError(f'"{args.weights}" is a shape with random weights; give a run or a checkpoint')
    device = pick_device(args.device)
    dtype = autocast_dtype(args.precision, device)
    model = weights.load(args.weights, revision=args.revision).to(device)
    assert model.preprocessing is not None
    cfg, source = open_data(args.weights, args.data)
    views = ladder.views(source, preprocessing=model.preprocessing, cfg=cfg.data)
    seen = ladder.features(
        model, views, preprocessing=model.preprocessing, batch_size=args.batch_size, device=device, autocast_dtype=dtype
    )
    classes = len(source.classes)
    rungs = ladder.ladder(seen, num_classes=classes, device=device, seed=args.seed)
    judges = seen.get("test") or seen.get("val")
    if args.shots and judges is None:
        raise ValueError(f"--shots needs images to score on, and {source.name} has neither test nor val; add a folder of them")
    few = (
        ()
        if judges is None or not args.shots
        else few_shot(
            seen["train"], judges, shots=args.shots, draws=args.draws or 5, num_classes=classes, seed=args.seed, device=device
        )
    )

    images = {name: len(features) for name, features in seen.items()}
    if args.json:
        short = [[source.classes[k] for k in each.short] for each in few]
        shots = [
            {"shots": each.shots, "knn": each.knn.to_dict(), "probe": each.probe.to_dict(), "short": names}
            for each, names in zip(few, short, strict=True)
        ]
        terminal.print_json({"data": source.name, "images": images, "classes": classes, **rungs.to_dict(), "few_shot": shots})
    else:
        terminal.print_receipt(model, args.weights)
        print_probe(rungs, few, name=source.name, images=images, classes=source.classes)
    return terminal.OK


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers of at least 1, with commas between."""
    try:
        return tuple(terminal.count(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f'"{text}": give whole numbers of at least 1, as in 1,5,10') from None


def print_probe(
    ladder: Ladder, few: Sequence[FewShot], *, name: str, images: Mapping[str, int], classes: Sequence[str]
) -> None:
    """The rungs, what a few images a class are enough for, and what can be expected of fine-tuning."""
    console, test = terminal.make_console(), ladder.probe.test
    split = "test" if test is not None else "val" if "val" in images else None
    where = f"scored on {images[split]:,} {split} images" if split else "scored on training images, held out in turn"
    teachers = [side for side in ("train", "val") if side in images and (side == "train" or test is not None)]
    learned, each_class = " + ".join(f"{images[side]:,} {side}" for side in teachers), sum(images[side] for side in teachers)
    console.print(f"{name}: {len(classes):,} classes; learned from {learned}; {where}", style="bold", soft_wrap=True)
    console.print()
    table = terminal.make_table("", "images a class", "accuracy", "95 % interval", "of", words=("of",))

    def row(name: str, each: str, score: Accuracy | Mean, of: str) -> None:
        table.add_row(name, each, terminal.percent(score.value), terminal.interval(score.interval), of)

    scored = (("k-NN", ladder.knn, ladder.knn_test), ("linear probe", ladder.probe.val, test))
    for rung, val, on_test in scored:
        score = val if on_test is None else on_test
        if score.count:
            row(rung, f"{each_class / len(classes):,.0f}", score, f"{score.count:,} images")
    for each in few:
        draws = terminal.counted(len(each.knn.values), "draw")
        row("k-NN", str(each.shots), each.knn, f"the mean of {draws}")
        row("linear probe", str(each.shots), each.probe, f"the mean of {draws}")
    console.print(table)
    console.print()
    for each in few:
        if each.short:
            names = listed([classes[k] for k in each.short])
            console.print(f"Fewer than {each.shots} images, of which all were taken: {names}.", soft_wrap=True)
    console.print(f"{ladder.advice.why[0].upper()}{ladder.advice.why[1:]}.", soft_wrap=True)
