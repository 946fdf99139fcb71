"""Teacher for distillation: loading, checks, and conversion of the student's images to the teacher's preprocessing."""

# B batch · C channels · H W image · K classes

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.settings import Preprocessing
from vitrail.weights.load import count_classes, is_name, load

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey pixel (ITU-R BT.601), as in Pillow's conversion."""


class Teacher(nn.Module):
    """Teacher network, with conversion of the student's images to its own preprocessing."""

    def __init__(self, net: nn.Module, *, preprocessing: Preprocessing, student: Preprocessing) -> None:
        """Wrap `net`, which has this `preprocessing`, for images with the preprocessing `student`."""
        super().__init__()
        self.net, self.preprocessing, self.student = net, preprocessing, student
        self.eval().requires_grad_(False)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Compute logits for images with the student's preprocessing."""
        return self.net(convert_preprocessing(images, source=self.student, target=self.preprocessing))


def convert_preprocessing(
    images: Float[Tensor, "B C H W"], *, source: Preprocessing, target: Preprocessing
) -> Float[Tensor, "B _ _ _"]:
    """Convert normalised images from one preprocessing to another: channels, mean, deviation and size.

    Channels are scaled exactly: x = z σ + μ gives the pixels, (x - μ') / σ' the target. Grey pixels are repeated for every
    colour, and colours are converted to grey as in Pillow. Another size is resized bilinearly with antialiasing, and another
    aspect ratio squashed.
    """
    if images.shape[-2:] != target.img_size:
        images = F.interpolate(images, size=target.img_size, mode="bilinear", antialias=True)
    if (source.mean, source.std) == (target.mean, target.std):
        return images
    mean, std, new_mean, new_std = (
        torch.tensor(values, device=images.device).view(-1, 1, 1)
        for values in (source.mean, source.std, target.mean, target.std)
    )
    pixels = images * std + mean
    if target.in_channels == 1 and source.in_channels == 3:
        pixels = (pixels * torch.tensor(LUMA, device=images.device).view(-1, 1, 1)).sum(dim=1, keepdim=True)
    return ((pixels - new_mean) / new_std).expand(-1, target.in_channels, -1, -1)


WAY = "give one that was trained on this data: `vitrail train` makes one, with --model torchvision:resnet50 a CNN"


def load_teacher(
    name: str, *, num_classes: int, classes: Sequence[str], preprocessing: Preprocessing, device: torch.device
) -> Teacher:
    """Load a teacher for images of `preprocessing`, in evaluation mode and without gradients.

    `name` is what `vitrail.load` takes, a run's folder above all, or a published model of another library,
    "torchvision:regnet_y_16gf", "timm:regnety_160", whose images have ImageNet's 224 pixels. Raises ValueError for a teacher
    with other classes, random weights, or channels that the images do not have.
    """
    if is_name(name):
        raise ValueError(f'distill.teacher "{name}" has random weights; train it, and give the folder of that run')
    if (published := count_classes(name)) is not None:
        require_count(name, published, num_classes)  # before anything is fetched
    net = load(name)
    require_count(name, net.config.num_classes, num_classes)
    require_names(name, net.classes, classes)
    sees = require_preprocessing("distill.teacher", name, net.preprocessing, student=preprocessing, way_out=WAY)
    return Teacher(net, preprocessing=sees, student=preprocessing).to(device)


def require_preprocessing(
    setting: str, name: str, sees: Preprocessing | None, *, student: Preprocessing, way_out: str
) -> Preprocessing:
    """Return the preprocessing of a frozen model. Raises ValueError if the student's images can't be converted to it."""
    channels = student.in_channels
    if sees is None:
        raise ValueError(f'{setting} "{name}" does not say what happens to its images; {way_out}')
    if sees.range not in (None, student.range):
        raise ValueError(
            f'{setting} "{name}" was trained with data.range {list(sees.range or ())}, and this run has '
            f"{list(student.range or ())}; give that"
        )
    if sees.in_channels != channels and {sees.in_channels, channels} != {1, 3}:
        raise ValueError(
            f'{setting} "{name}" takes images of {sees.in_channels} channels, and these have {channels}; {way_out}'
        )
    return sees


def require_count(name: str, theirs: int, ours: int) -> None:
    """Raise ValueError if the teacher has another number of classes."""
    if theirs != ours:
        raise ValueError(f'distill.teacher "{name}" has {theirs:,} classes, and the data {ours:,}; {WAY}')


def require_names(name: str, theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Raise ValueError if the teacher's classes have other names, or another order.

    A teacher without class names passes, and so does one with words where the data has ImageNet's identifiers (n01440764),
    as published models have: sorted, these are in the order of published models.
    """
    if not theirs or are_identifiers(theirs) != are_identifiers(ours) or tuple(theirs) == tuple(ours):
        return
    other, expected = next((a, b) for a, b in zip(theirs, ours, strict=True) if a != b)
    how = "in another order" if set(theirs) == set(ours) else "by other names"
    raise ValueError(f'distill.teacher "{name}" has its classes {how}, "{other}" where the data has "{expected}"; {WAY}')


def are_identifiers(classes: Sequence[str]) -> bool:
    """Return whether the class names are WordNet identifiers, and sorted."""
    return all(re.fullmatch(r"n\d{8}", name) for name in classes) and list(classes) == sorted(classes)
