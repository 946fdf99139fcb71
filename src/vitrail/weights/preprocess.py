"""Preprocessing of a checkpoint's images, and its class names.

Sources in order: a run's config.json, preprocessor_config.json, the config.json of a library. If none states it, the default
of the repository that trained the weights is taken, else ImageNet's statistics as a guess, which is marked as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vitrail.models.card import Calibration, Card, Kind
from vitrail.models.receipt import Receipt
from vitrail.settings import Pair, Preprocessing, tupled
from vitrail.weights.eval_transform import IMAGENET, EvalTransform, Numbers
from vitrail.weights.libraries import LIBRARIES
from vitrail.weights.library import Config

DEFAULTS = tuple(default for library in LIBRARIES.values() for default in library.default_transforms)


@dataclass(frozen=True)
class Given:
    """Preprocessing and classes of a checkpoint."""

    preprocessing: Preprocessing
    classes: tuple[str, ...]
    """In the order of the head's outputs; empty if the files name none, or another number of them."""
    source: str
    """Source of the preprocessing, in a few words, with what had to be approximated."""
    guessed: bool
    """True where no source states it."""
    multi_label: bool = False
    """True for a head of several labels per image."""
    calibration: Calibration | None = None
    """What a run's config.json states of the logits of these classes."""
    images_seen: int | None = None
    """Images that the run's model was trained on, each pass counted; None: not stated."""

    def card(self, receipt: Receipt) -> Card:
        """Return the card of the model that is loaded from the checkpoint."""
        task: Kind = "multi-label" if self.multi_label else "classify"
        return Card(
            preprocessing=self.preprocessing,
            classes=self.classes,
            task=task,
            calibration=self.calibration,
            images_seen=self.images_seen,
            receipt=receipt,
        )


def preprocessing_for(
    *,
    img_size: Pair,
    in_channels: int,
    num_classes: int,
    config: Config,
    preprocessor: Config,
    origin: str,
    file_img_size: Pair,
    answered: EvalTransform | None = None,
) -> Given:
    """Return the preprocessing of a checkpoint for a model of `img_size` and `in_channels`, and the names of its classes.

    `config` is a config.json (or open_clip_config.json) and `preprocessor` a preprocessor_config.json; either may be
    empty. `origin` is the library or repository that wrote the weights, `file_img_size` the size they were made for;
    `answered` is the transform that the caller states, if anybody does.
    The crop's share stays if img_size differs. One channel takes the mean over the file's channels, more of them repeat
    the file's. Raises ValueError for a file with invalid values.
    """
    sources = transforms(config, preprocessor, origin, file_img_size)
    stated = answered or next((transform for transform in sources if transform is not None), None)
    transform = stated or EvalTransform(*IMAGENET, 0.875, "center", "bicubic", "a guess: ImageNet's mean and std")
    preprocessing = Preprocessing(
        img_size=img_size,
        in_channels=in_channels,
        mean=for_channels(transform.mean, in_channels),
        std=for_channels(transform.std, in_channels),
        crop_pct=transform.crop_pct,
        crop_mode=transform.crop_mode,
        interpolation=transform.interpolation,
        range=transform.range,
    )
    labels = [library.labels(config) for library in LIBRARIES.values()]
    names = (class_names(label.names, num_classes) for label in labels)
    return Given(
        preprocessing,
        classes=next(filter(None, names), ()),
        source=transform.source,
        guessed=stated is None,
        multi_label=num_classes > 0 and any(label.multi_label for label in labels),
        calibration=read_calibration(config) if num_classes > 0 else None,
        images_seen=read_images_seen(config),
    )


def transforms(config: Config, preprocessor: Config, origin: str, img_size: Pair) -> Iterator[EvalTransform | None]:
    """Yield the transform of every source, the most specific first; None for a source that states none."""
    yield run_transform(config)
    for library in LIBRARIES.values():
        yield library.processor_transform(preprocessor, img_size)
    for library in LIBRARIES.values():
        yield library.config_transform(config)
    for name in (origin, str(config.get("model_type", ""))):
        yield from (default.at(img_size) for default in DEFAULTS if default.word in name.lower())


def run_transform(config: Config) -> EvalTransform | None:
    """Return the transform in a run folder's config.json."""
    if not isinstance(config.get("vitrail"), Mapping):
        return None
    try:
        images = Preprocessing(**tupled(config["vitrail"]["preprocessing"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"config.json's preprocessing can't be read ({error}); restore it from a copy") from error
    return EvalTransform(
        images.mean, images.std, images.crop_pct, images.crop_mode, images.interpolation, "the run's config.json", images.range
    )


def read_calibration(config: Config) -> Calibration | None:
    """Return the calibration in a run's config.json. Raises ValueError for one that can't be read."""
    ours = config.get("vitrail")
    if not isinstance(ours, Mapping) or ours.get("calibration") is None:
        return None
    try:
        return Calibration(**tupled(ours["calibration"]))
    except (TypeError, AttributeError) as error:
        raise ValueError(f"config.json's calibration can't be read ({error}); restore it from a copy") from error


def read_images_seen(config: Config) -> int | None:
    """Return how many images the model of a run's config.json was trained on, each pass counted; None: not stated."""
    ours = config.get("vitrail")
    seen = ours.get("images_seen") if isinstance(ours, Mapping) else None
    return seen if isinstance(seen, int) and seen >= 0 else None


def class_names(names: Any, num_classes: int) -> tuple[str, ...]:
    """Return a list, or a mapping from the index, as names; empty if they are not one per class, or placeholders."""
    if isinstance(names, Mapping):
        by_index = {str(index): name for index, name in names.items()}  # the keys of JSON are strings
        names = [by_index.get(str(i), "") for i in range(len(by_index))]
    if not isinstance(names, list | tuple) or len(names) != num_classes:
        return ()
    if not all(isinstance(name, str) and name for name in names):
        return ()
    return () if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else tuple(names)


def for_channels(values: Numbers, channels: int) -> Numbers:
    """Return the mean of the values for one channel; for more, repeat the values."""
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[i % len(values)] for i in range(channels))
