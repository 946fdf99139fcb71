"""Material of a report that takes the model and the images: examples, maps over them, and statistics of the layers."""

# C channels · H W image

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

from PIL import Image
from torch import Tensor

from vitrail.data.augment import normalise
from vitrail.data.sources import Source, SplitName, open_source
from vitrail.evaluate.predictions import SplitPredictions
from vitrail.explain import draw
from vitrail.explain.layer_statistics import LayerStatistics
from vitrail.explain.sample import sample_images
from vitrail.explain.statistics import head_statistics
from vitrail.models.backbone import Backbone
from vitrail.models.device import pick_device
from vitrail.report.choice import Choice, choose_examples, choose_labels
from vitrail.report.explanations import NO_MAPS, Explanations, explain_images
from vitrail.report.facts import RunFacts
from vitrail.weights.load import load

STATISTICS_IMAGES = 32
"""Images that the statistics of layers and heads are measured on, at most."""
STATISTICS_S = 10.0
"""Seconds after which no further image is measured."""


@dataclass(frozen=True, eq=False)
class Example:
    """An image of the report, as the model sees it."""

    name: str
    picture: Image.Image


@dataclass(frozen=True, eq=False)
class Material:
    """Pictures and measurements; what is missing has its reason."""

    choice: Choice | None = None
    """Rows of the predictions that are shown; None without predictions image by image."""
    examples: Mapping[int, Example] = field(default_factory=dict)
    """By row of the predictions."""
    no_examples: str = ""
    """Why there are no pictures."""
    explanations: Explanations = NO_MAPS
    """Of `choice.explained` as far as there are pictures, in that order."""
    statistics: LayerStatistics | None = None
    no_statistics: str = ""
    """Why there are no statistics of layers and heads."""


def collect_material(facts: RunFacts, *, images: str | None = None, device: str = "auto") -> Material:
    """Load the model and the images of a run, and measure what the report shows of them.

    `images` is where the data set of the scores is; by default where the run found it. Whatever can't be opened costs its part
    of the report alone.
    """
    material = Material(choose(facts))
    try:
        source = open_images(facts, images)
        model = load(str(facts.info.folder)).to(pick_device(device)).eval()
        material = measure_layers(material, model, source, facts)
        if material.choice is None or facts.predictions is None:
            return dataclasses.replace(material, no_examples="there are no predictions image by image to choose from")
        return show_examples(material, facts, model, source, facts.predictions)
    except (ValueError, OSError) as error:
        reason = str(error)
        return dataclasses.replace(
            material,
            no_examples=material.no_examples or reason,
            no_statistics=material.no_statistics or ("" if material.statistics else reason),
        )


def choose(facts: RunFacts) -> Choice | None:
    """Choose the images to show; None without predictions image by image."""
    if facts.classified is not None and facts.classified.predictions is not None:
        return choose_examples(facts.classified.predictions, facts.classified.confusion)
    if facts.labelled is not None and facts.labelled.predictions is not None:
        return choose_labels(facts.labelled.predictions)
    return None


def open_images(facts: RunFacts, images: str | None) -> Source:
    """Open the data set whose images the scores are of. Raises ValueError where it is not there."""
    return open_source(images or facts.info.data, val_fraction=facts.settings.data.val_fraction, classes=facts.supervised)


# --------------------------------------------------------------------------------------------------------------------
# Examples


def show_examples(
    material: Material, facts: RunFacts, model: Backbone, source: Source, predictions: SplitPredictions
) -> Material:
    """Read the chosen images and explain some of them. Raises ValueError for another data set than that of the predictions."""
    choice = material.choice
    assert choice is not None
    name = cast(SplitName, facts.evaluation.split)
    split = source.load(name, preprocessing=facts.info.preprocessing, cfg=facts.settings.data)
    if not predictions.are_of(split):
        raise ValueError(
            f"the images of {source.name} are not those that were evaluated; name where those are (--images DATA), or evaluate "
            "these"
        )
    if not choice.rows:
        return dataclasses.replace(material, no_examples="there are no errors to show")
    raw, _ = split.read(predictions.indexes[list(choice.rows)])
    rows = {int(index): row for index, row in zip(predictions.indexes[list(choice.rows)].tolist(), choice.rows, strict=True)}
    found = {rows[index]: place for place, index in enumerate(raw.indexes.tolist())}
    examples = {
        row: Example(str(split.names[int(raw.indexes[place])]), draw.picture(raw.images[place])) for row, place in found.items()
    }
    explained = [row for row in choice.explained if row in found]
    explanations = NO_MAPS
    if explained:
        normalised = normalise(raw.images, facts.info.preprocessing)[[found[row] for row in explained]]
        targets = predictions.explained[explained].tolist()
        explanations = explain_images(model, normalised.to(next(model.parameters()).device), targets)
    return dataclasses.replace(material, examples=examples, explanations=explanations)


# --------------------------------------------------------------------------------------------------------------------
# The model as a whole


def measure_layers(material: Material, model: Backbone, source: Source, facts: RunFacts) -> Material:
    """Add statistics of layers and heads on some images, or the reason why there are none."""
    if not model.global_attention:
        reason = "attention distances are measured of models whose patches attend to the whole image"
        return dataclasses.replace(material, no_statistics=reason)
    sample = sample_images(source, preprocessing=facts.info.preprocessing, cfg=facts.settings.data, limit=STATISTICS_IMAGES)
    if not len(sample.images):
        return dataclasses.replace(material, no_statistics="no image could be read")

    def batches() -> Iterator[Tensor]:
        start = time.perf_counter()
        for part in sample.images.split(4):
            yield part
            if time.perf_counter() - start > STATISTICS_S:
                return

    return dataclasses.replace(material, statistics=head_statistics(model, batches(), batch_size=4))
