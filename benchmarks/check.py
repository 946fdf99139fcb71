"""What `vitrail check` finds of planted faults, beside imagededup and cleanvision, and what it takes.

    python benchmarks/check.py PHOTOS --peers PYTHON      all parts; writes results/check.json
    python benchmarks/check.py PHOTOS --part speed        one of them; the others keep their figures

`--peers` is a Python that has imagededup and cleanvision (the package does not need them). Parts:

near    one near duplicate each of some images of Fashion-MNIST's sample (with --full of the whole set, which takes long) and of
        the photographs: crops, flips, JPEG of quality 50, brightness. Recall, and how many of the other images are named.
faults  files that are truncated, of another format and so on, copies, blank, dark and blurred images among the photographs.
speed   exact findings beside a loop that decodes with Pillow in as many threads, in interleaved rounds.
labels  5 % of the labels of Fashion-MNIST flipped, a training of two minutes on them, and the suspects by its features.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

Ways = dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]]
PARTS = ("near", "faults", "speed", "labels")
PEERS = ("imagededup", "cleanvision")
PLANTED, FAULTS = 270, 20  # near duplicates of a set, and faults of each kind
FLIPPED = 0.05


def crop(share: float, place: Callable[[np.random.Generator], tuple[float, float]]) -> Any:
    """A way to crop to a share of both sides at a place from 0 to 1 in each direction."""

    def cropped(picture: Image.Image, draw: np.random.Generator) -> Image.Image:
        width, height = round(picture.width * share), round(picture.height * share)
        down, across = place(draw)
        left, top = round(across * (picture.width - width)), round(down * (picture.height - height))
        return picture.crop((left, top, left + width, top + height))

    return cropped


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


WAYS: Ways = {
    "crop to 80 % of both sides, centre": crop(0.8, lambda draw: (0.5, 0.5)),
    "crop to 80 % of both sides, corner": crop(0.8, lambda draw: (float(draw.integers(2)), float(draw.integers(2)))),
    "crop to 80 % of both sides, anywhere": crop(0.8, lambda draw: (draw.random(), draw.random())),
    "crop to 80 % of the area, anywhere": crop(0.8**0.5, lambda draw: (draw.random(), draw.random())),
    "mirrored": lambda picture, draw: ImageOps.mirror(picture),
    "upside down": lambda picture, draw: ImageOps.flip(picture),
    "JPEG, quality 50": lambda picture, draw: jpeg(picture, 50),
    "brightness - 20 %": lambda picture, draw: ImageEnhance.Brightness(picture).enhance(0.8),
    "brightness + 20 %": lambda picture, draw: ImageEnhance.Brightness(picture).enhance(1.2),
}


# --------------------------------------------------------------------------------------------------------------------
# Contenders: a folder -> groups of file names, and the seconds it took


def ours(folder: Path, **options: Any) -> dict[str, Any]:
    from vitrail.check import check

    start = time.perf_counter()
    checked = check(folder, val_fraction=0.0, **options)
    seconds = time.perf_counter() - start
    copies = ("exact-duplicate", "near-duplicate", "two-labels", "leakage")
    groups = [[Path(path).name for path in (*f.paths, *f.beside)] for f in checked.findings if f.kind in copies]
    names = {kind: sorted({Path(path).name for f in found for path in f.paths}) for kind, found in checked.by_kind()}
    return {"groups": groups, "names": names, "seconds": seconds}


def imagededup(folder: Path) -> dict[str, Any]:
    from imagededup.methods import PHash

    start = time.perf_counter()
    found = PHash(verbose=False).find_duplicates(image_dir=str(folder), recursive=True)
    seconds = time.perf_counter() - start
    return {"groups": [[name, other] for name, others in found.items() for other in others], "names": {}, "seconds": seconds}


def cleanvision(folder: Path) -> dict[str, Any]:
    from cleanvision import Imagelab

    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        lab = Imagelab(data_path=str(folder))
        lab.find_issues()
    seconds = time.perf_counter() - start
    groups = [
        [Path(path).name for path in group] for kind in ("exact", "near") for group in lab.info[f"{kind}_duplicates"]["sets"]
    ]
    columns = {"dark": "is_dark_issue", "blurred": "is_blurry_issue", "blank": "is_low_information_issue"}
    names = {kind: sorted(Path(path).name for path in lab.issues.index[lab.issues[column]]) for kind, column in columns.items()}
    return {"groups": groups, "names": names, "seconds": seconds}


def run_peer(python: str, peer: str, folder: Path) -> dict[str, Any]:
    """Run a peer in its own Python, which can't import this package."""
    command = [python, __file__, str(folder), "--run-peer", peer]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def all_contenders(folder: Path, python: str | None, unreadable: Sequence[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run all contenders on a folder; one that ends with an error runs again without the unreadable files."""
    yield "vitrail", ours(folder)
    for peer in PEERS if python else ():
        try:
            yield peer, run_peer(str(python), peer, folder)
        except subprocess.CalledProcessError:
            for name in unreadable:
                (folder / name).unlink(missing_ok=True)
            yield peer, run_peer(str(python), peer, folder) | {"error": "ended with an error at unreadable files; without them"}


# --------------------------------------------------------------------------------------------------------------------
# Parts


def near(photos: Path, python: str | None, *, full: bool) -> dict[str, Any]:
    """Recall of each way to make a near duplicate, and the share of the other images that are named."""
    name, arrays, _ = fashion(full=full)
    sets: dict[str, Sequence[Any]] = {name: list(arrays), "photographs": sorted(photos.rglob("*.jpg"))}
    result: dict[str, Any] = {}
    for title, images in sets.items():
        with tempfile.TemporaryDirectory() as temporary:
            expected = plant_near(images, Path(temporary))
            result[title] = {"images": len(images), "planted": len(expected)}
            for contender, found in all_contenders(Path(temporary), python):
                result[title][contender] = row = near_row(found, expected, len(images))
                print(title, contender, row, flush=True)
    return result


def plant_near(images: Sequence[Any], folder: Path) -> dict[str, tuple[str, str]]:
    """Write the images and the near duplicates of some: name of the copy -> name of its source, and the way."""
    draw, ways, expected = np.random.default_rng(0), list(WAYS), {}
    small = isinstance(images[0], np.ndarray)
    for number, image in enumerate(images):
        if small:
            Image.fromarray(image).save(folder / f"{number}.png")
        else:
            shutil.copy(image, folder / f"{number}.jpg")
    suffix = ".png" if small else ".jpg"
    for at, number in enumerate(draw.permutation(len(images))[:PLANTED].tolist()):
        with Image.open(folder / f"{number}{suffix}") as picture:
            copy = WAYS[ways[at % len(ways)]](picture if small else picture.convert("RGB"), draw)
            copy = copy.resize(picture.size, Image.Resampling.BICUBIC) if small else copy
            copy.save(folder / f"copy{number}{suffix}", quality=90)  # of which PNG takes no notice
        expected[f"copy{number}{suffix}"] = (f"{number}{suffix}", ways[at % len(ways)])
    return expected


def near_row(found: dict[str, Any], expected: dict[str, tuple[str, str]], images: int) -> dict[str, Any]:
    groups = [set(group) for group in found["groups"]]
    hit: dict[str, list[bool]] = {way: [] for way in WAYS}
    for copy, (source, way) in expected.items():
        hit[way].append(any(copy in group and source in group for group in groups))
    own = {copy: source for copy, (source, _) in expected.items()}
    others = {name for group in groups for name in group if name not in own and any(own.get(m, m) != name for m in group)}
    return {
        "recall": {way: round(float(np.mean(found)), 4) for way, found in hit.items()},
        "recall of all": round(float(np.mean([one for found in hit.values() for one in found])), 4),
        "others named": round(len(others) / images, 5),
        "seconds": round(found["seconds"], 1),
    }


def faults(photos: Path, python: str | None) -> dict[str, Any]:
    """How many of the planted faults of each kind are found, and how many other images are named."""
    files = sorted(photos.rglob("*.jpg"))[:600]
    with tempfile.TemporaryDirectory() as temporary:
        planted = plant_faults(files, Path(temporary))
        result: dict[str, Any] = {"images": len(files), "planted": {kind: len(names) for kind, names in planted.items()}}
        unreadable = sorted(planted["truncated"] | planted["not-an-image"])
        for contender, found in all_contenders(Path(temporary), python, unreadable):
            names = {kind: set(found["names"].get(kind, [])) for kind in planted}
            grouped = {name for group in found["groups"] for name in group}
            names["exact-duplicate"] = {name for name in grouped if name in planted["exact-duplicate"]}
            every = set().union(*planted.values())
            result[contender] = {
                kind: {"found": len(names[kind] & planted[kind]), "others": len(names[kind] - every)} for kind in planted
            } | {"seconds": round(found["seconds"], 1), "error": found.get("error", "")}
            print(contender, result[contender], flush=True)
    return result


def plant_faults(files: Sequence[Path], folder: Path) -> dict[str, set[str]]:
    """Write the files, and `FAULTS` of each kind made of some: kind -> names."""
    for number, file in enumerate(files):
        shutil.copy(file, folder / f"{number}.jpg")
    planted: dict[str, set[str]] = {}

    def add(kind: str, name: str, content: bytes | Image.Image) -> None:
        planted.setdefault(kind, set()).add(name)
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            content.save(folder / name)

    for number in range(FAULTS):
        data = [(folder / f"{number + FAULTS * step}.jpg").read_bytes() for step in range(8)]
        pictures = [Image.open(io.BytesIO(one)).convert("RGB") for one in data]
        add("truncated", f"truncated{number}.jpg", data[0][: len(data[0]) * (number + 1) // (FAULTS + 1)])
        add("not-an-image", f"text{number}.jpg", b"no image" * (number + 1))
        add("extension", f"extension{number}.png", jpeg_bytes(pictures[1].rotate(7 + number, expand=True)))
        add("exact-duplicate", f"same{number}.jpg", data[2])
        add("exact-duplicate", f"pixels{number}.png", pictures[3])
        add("blank", f"blank{number}.png", Image.new("RGB", (192, 256), (13 * number, 255 - 9 * number, 40)))
        add("dark", f"dark{number}.png", ImageEnhance.Brightness(pictures[4]).enhance(0.07))
        blurred = pictures[5].rotate(5 + number).filter(ImageFilter.GaussianBlur(0.04 * min(pictures[5].size)))
        add("blurred", f"blurred{number}.png", blurred)
    return planted


def jpeg_bytes(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def speed(photos: Path, rounds: int) -> dict[str, Any]:
    """Images a second of exact findings, of all findings without a model, and of a loop with Pillow."""
    from decode import SIZES, make_folder
    from vitrail.bench.rounds import interleave, ratios, summary

    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        large = Path(temporary, "large")
        make_folder(photos, large, size=SIZES["500x375"], images=1000)
        for title, folder in {"192x256 and the like": photos, "500x375": large}.items():
            files = sorted(folder.rglob("*.jpg"))

            def plain(files: list[Path] = files) -> float:
                start = time.perf_counter()
                with ThreadPoolExecutor(cores()) as pool:
                    list(pool.map(decode, files))
                return len(files) / (time.perf_counter() - start)

            def exact(folder: Path = folder, count: int = len(files)) -> float:
                return count / float(ours(folder, exact_only=True)["seconds"])

            values = interleave({"Pillow": plain, "exact": exact}, least=rounds, warmup=1, on_round=print)
            full = ours(folder)["seconds"]
            result[title] = {
                "images": len(files),
                "images_per_s": {name: summary(each) for name, each in values.items()}
                | {"all findings": round(len(files) / full, 1)},
                "ratio": summary(ratios(values["exact"], values["Pillow"])),
            }
            print(title, result[title], flush=True)
    return result


def decode(path: Path) -> None:
    with Image.open(path) as picture:
        picture.convert("RGB")


def labels(minutes: float, *, full: bool, trained: Path | None) -> dict[str, Any]:
    """Precision of the label suspects by features of a run that was trained on the flipped labels, now or before."""
    import vitrail
    from vitrail.check.features import SUSPECT, embed_all, find_label_suspects
    from vitrail.data.sources import open_source

    name, images, classes = fashion(full=full)
    draw = np.random.default_rng(0)
    flipped = draw.permutation(len(classes))[: round(FLIPPED * len(classes))]
    given = classes.copy()
    given[flipped] = (given[flipped] + draw.integers(1, 10, len(flipped))) % 10
    wrong = set(flipped.tolist())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "fashion-mnist")
        folder.mkdir()
        for prefix in ("train", "t10k"):  # the test images are not looked at
            count = len(images) if prefix == "train" else 1000
            write_idx(folder / f"{prefix}-images-idx3-ubyte", images[:count])
            write_idx(folder / f"{prefix}-labels-idx1-ubyte", given[:count].astype(np.uint8))
        os.environ["VITRAIL_DATA"] = temporary
        run, out = trained, Path(temporary, "run")
        if run is None:
            run = vitrail.train("fashion-mnist", minutes=minutes, data={"val_fraction": 0.0}, out=out).folder
        features = embed_all(run, open_source("fashion-mnist", val_fraction=0.0))
        steps = last_step(run)
    features = features_of_train(features)
    suspects = find_label_suspects(features, given, range(len(given)), 10, least=-np.inf)
    top = [suspect.number in wrong for suspect in suspects[: len(flipped)]]
    named = [suspect.number in wrong for suspect in suspects if suspect.score >= SUSPECT]
    return {
        "set": name,
        "images": len(images),
        "flipped": len(flipped),
        "minutes": minutes,
        "steps": steps,
        "precision of the top 5 %": round(float(np.mean(top)), 4),
        "named": len(named),
        "precision of the named": round(float(np.mean(named)), 4),
        "recall of the named": round(sum(named) / len(flipped), 4),
    }


def last_step(run: Path) -> int:
    """The number of steps of a run."""
    return max(int(json.loads(line).get("step", 0)) for line in (run / "metrics.jsonl").read_text().splitlines())


def features_of_train(features: Any) -> Any:
    """The features of the training images alone, with their neighbours among themselves."""
    import torch

    from vitrail.check.features import neighbours_of

    train = [at for at, path in enumerate(features.paths) if "/train/" in path]
    return neighbours_of(tuple(features.paths[at] for at in train), features.embeddings[torch.tensor(train)], device="cpu")


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + np.ascontiguousarray(array).tobytes())


def fashion(*, full: bool) -> tuple[str, np.ndarray, np.ndarray]:
    """Name, images and labels of the training images of Fashion-MNIST, or of its sample."""
    from vitrail.data.named import NAMED, find, read_arrays

    name = "fashion-mnist" if full else "fashion-sample"
    images, classes = read_arrays(NAMED[name], find(name), "train")
    return name, images[:, 0], classes


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="a folder of JPEG photographs, at any depth")
    parser.add_argument("--peers", metavar="PYTHON", help="a Python with imagededup and cleanvision")
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=2.0, help="training on the flipped labels")
    parser.add_argument("--run", type=Path, help="a run that was trained on the same flipped labels before")
    parser.add_argument("--full", action="store_true", help="the whole Fashion-MNIST in the place of its sample")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run-peer", choices=PEERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run_peer:
        print(json.dumps({"imagededup": imagededup, "cleanvision": cleanvision}[args.run_peer](args.photos)))
        return

    import machine

    out = args.out or machine.RESULTS / "check.json"
    result: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "near": lambda: near(args.photos, args.peers, full=args.full),
        "faults": lambda: faults(args.photos, args.peers),
        "speed": lambda: speed(args.photos, args.rounds),
        "labels": lambda: labels(args.minutes, full=args.full, trained=args.run),
    }
    for part in args.part or PARTS:
        result[part] = work[part]() | {"machine": machine.facts("pillow")}
        print(part, json.dumps(result[part]), file=sys.stderr, flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
