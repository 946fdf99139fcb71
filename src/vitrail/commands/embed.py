"""`vitrail embed`: the features of images in a file."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from vitrail import terminal
from vitrail.text import printable

if TYPE_CHECKING:
    from vitrail.deploy.embeddings import Embedded

USAGE = "embed DATA --weights W --out FILE"
SUMMARY = "features of images in a .parquet or .npy file, pooled or of each patch"

HELP = """Writes the features of images to a file: one row for each image, in input order.

  vitrail embed PHOTOS --weights timm/vit_small_patch16_224.augreg_in21k --out features.parquet
  vitrail embed ALBUM --weights runs/pre --out patches.npy --patches --dtype float16

A .parquet file has the columns path, label, embedding and error. Beside a .npy file are a .csv (path, label, error) and a
.json. An image that can't be read has a row of NaN, and the reason. After an interruption the same command goes on where it
stopped."""

_SHOWN = 3  # images that the line about those without embedding names


def run(words: list[str]) -> int:
    """Run the command. Return its exit code."""
    from vitrail.commands.explain import size
    from vitrail.deploy.backends import overview  # needs no torch

    parser = terminal.make_parser(
        "embed",
        HELP,
        f"backends:\n{overview()}\n\nExit code: 0, or 1 when some images have no embedding; the others are done all the same.",
    )
    parser.add_argument(
        "data", metavar="DATA", help="a folder, with or without classes; a named set; a .txt list of files, or - for stdin"
    )
    parser.add_argument("--weights", required=True, metavar="W", help="a run; a Hub id, a file or a folder of any origin")
    parser.add_argument("--out", required=True, metavar="FILE", help="the file to write: .parquet or .npy")
    parser.add_argument("--split", choices=("train", "val", "test"), help="which images [all]")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--pool", default="head", metavar="P", help="head: what the head reads; cls; avg: mean of patches [head]")
    what.add_argument("--patches", action="store_true", help="the embedding of each patch, rows x columns x width")
    parser.add_argument("--dtype", default="float32", metavar="TYPE", help="float32 or float16 [float32]")
    parser.add_argument("--img-size", type=size, metavar="N|HxW", help="size of the images [the model's own]")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE, or an unfinished one of other settings")
    parser.add_argument(
        "--backend", default="auto", metavar="NAME", help="one of those below; auto: the fastest correct [auto]"
    )
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    terminal.add_device(parser, batch_size=32)
    terminal.add_ray(parser, formats=("parquet",))
    args = terminal.parse(parser, words)
    if on_ray := terminal.ray_options(args):
        return _embed_on_ray(args, on_ray)

    from vitrail.commands.predict import lines
    from vitrail.deploy.embeddings import embed

    done = embed(
        args.weights,
        list(lines(sys.stdin)) if args.data == "-" else args.data,
        args.out,
        split=args.split,
        patches=args.patches,
        pool=args.pool,
        dtype=args.dtype,
        img_size=args.img_size,
        batch_size=args.batch_size,
        device=args.device,
        backend=args.backend,
        overwrite=args.overwrite,
        report=terminal.report,
    )
    if args.json:
        terminal.print_json(done.to_dict())
    else:
        print_embedded(done)
    if not done.failed:
        return terminal.OK
    some = "; ".join(f"{item.path}: {item.reason}" for item in done.failed[:_SHOWN])
    more = f"; and {len(done.failed) - _SHOWN} more" if len(done.failed) > _SHOWN else ""
    terminal.report(
        f"{len(done.failed)} of {terminal.counted(done.count, 'image')} have no embedding ({printable(some)}{more})"
    )
    return terminal.SOME_FAILED


def _embed_on_ray(args: argparse.Namespace, options: dict[str, Any]) -> int:
    """Embed on a Ray cluster, into a folder."""
    from vitrail.deploy.ray_data import embed_on_ray

    if args.split is not None:
        raise ValueError("--split is for folders with splits on one machine; with --ray name the split's folder")
    if args.data == "-":
        raise ValueError("with --ray a list of images is a .txt file, not stdin")
    done = embed_on_ray(
        args.weights,
        args.data,
        args.out,
        patches=args.patches,
        pool=args.pool,
        dtype=args.dtype,
        img_size=args.img_size,
        batch_size=args.batch_size,
        device=args.device,
        backend=args.backend,
        overwrite=args.overwrite,
        **options,
    )
    return terminal.report_computed(done, "embedding", json=args.json)


def print_embedded(done: Embedded) -> None:
    """Print the files, and what is in them."""
    what = f"{' x '.join(map(str, done.shape))} numbers of {done.dtype}"
    size = terminal.in_bytes(sum(file.stat().st_size for file in done.files))
    computed = done.count - done.resumed_at
    speed = f"{computed / max(done.seconds, 1e-9):,.1f} images/s"
    before = f"; {done.resumed_at:,} were there already" if done.resumed_at else ""
    terminal.say(f"Written: {', '.join(map(str, done.files))}")
    terminal.say(f"{terminal.counted(done.count, 'row')} of {what}, {size}, {speed}{before}")
