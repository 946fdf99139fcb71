"""The pictures of docs/explain.md and their scores: of the run that `make demo` makes, and of a model of photographs.

    python benchmarks/pictures.py PHOTOS --demo RUN --run RUN [--images 50]

--demo is the run of `make demo`, --run one of the photographs, trained by benchmarks/photographs.py's command or any other.
All images are of the test split. Pictures show the first of a class that the model names right; scores are means over more.
Writes docs/pictures/*.png and benchmarks/results/pictures.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import machine
import vitrail
from vitrail.data.sources import open_source
from vitrail.explain import Comparison, compare, draw, head_statistics, sample_images
from vitrail.explain.sheets import ExplainConfig, explain, side_by_side
from vitrail.models import ViT
from vitrail.settings import layers
from vitrail.weights import read_run

PICTURES = machine.ROOT / "docs" / "pictures"


def test_images(run: Path, data: str, count: int) -> tuple[list[Image.Image], list[int], torch.Tensor]:
    """Evenly chosen test images of a run's data: as pictures, their classes, and as the model takes them."""
    model = vitrail.load(run)
    assert model.preprocessing is not None
    source = open_source(data, val_fraction=layers.build([layers.read_config(run / "config.yaml")]).data.val_fraction)
    sample = sample_images(source, preprocessing=model.preprocessing, limit=count)
    pictures = [draw.picture(image) for image in sample.raw.images]
    for place, picture in enumerate(pictures):
        picture.filename = f"test image {place}"  # type: ignore[attr-defined]
    return pictures, sample.raw.labels.tolist(), sample.images


def first_right(model: ViT, pictures: list[Image.Image], labels: list[int], images: torch.Tensor, name: str) -> Image.Image:
    """The first image of a class that the model names right."""
    with torch.no_grad():
        said = model(images).argmax(1).tolist()
    place = next(place for place, label in enumerate(labels) if model.classes[label] == name and said[place] == label)
    return pictures[place]


def scores(found: Comparison, images: torch.Tensor) -> dict[str, Any]:
    """Every method on all images, and what the numbers favour."""
    return {
        "rows": found.table(),
        "random_range": list(found.random_range),
        "images": len(images),
        "best": found.best,
        "verdict": found.verdict,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--demo-class", default="ankle boot")
    parser.add_argument("--photo-class", default="shoes")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "pictures.json")
    args = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    result: dict[str, Any] = {"machine": machine.facts()}
    for name, run, data, chosen in (
        ("demo", args.demo, read_run(args.demo).data, args.demo_class),
        ("clothing", args.run, str(args.photos), args.photo_class),
    ):
        model = vitrail.load(run)
        assert isinstance(model, ViT)
        pictures, labels, images = test_images(run, data, args.images)
        found = compare(model, images)
        found.save(PICTURES / f"{name}-curves.png")
        result[name] = scores(found, images)
        print(name, result[name]["verdict"], flush=True)
        one = first_right(model, pictures, labels, images, chosen)
        draw.save(side_by_side(model, [one], ExplainConfig())[0].figure, PICTURES / f"{name}-compare.png")
        if name == "clothing":
            config = ExplainConfig(method="attention", layers=(-1,), heads="all", steps=0)
            draw.save(explain(model, [one], config).figure, PICTURES / "clothing-attention.png")
            alike = [picture for picture, label in zip(pictures, labels, strict=True) if model.classes[label] == chosen][:4]
            draw.save(explain(model, alike, ExplainConfig(method="pca")).figure, PICTURES / "clothing-pca.png")
            statistics = head_statistics(model, images)
            statistics.save(PICTURES / "clothing-model.png")
            result[name]["early_and_late"] = list(statistics.early_and_late().sentences)
        learned = json.loads((run / "evaluation.json").read_text())
        result[name]["top1"] = learned["top1"]
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
