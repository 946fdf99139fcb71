"""A trained model to learn from: loaded, checked, and shown what the student sees, in its own terms."""

# B batch · C channels · H W image · K classes

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.models.backbone import Backbone
from vitrail.models.baseline import create_baseline, is_baseline, published_classes
from vitrail.settings import Preprocessing
from vitrail.weights.load import is_name, load

LUMA = (0.299, 0.587, 0.114)
"""Red, green and blue in a grey pixel (ITU-R BT.601), as Pillow's conversion has them."""


class Teacher(nn.Module):
    """A network behind what turns the student's images into its own."""

    def __init__(self, net: nn.Module, *, sees: Preprocessing, given: Preprocessing) -> None:
        """`sees` is what `net` was trained on, `given` how the images come that it will be shown."""
        super().__init__()
        self.net, self.sees, self.given = net, sees, given
        self.eval().requires_grad_(False)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits for images as the student sees them."""
        return self.net(translate(images, given=self.given, sees=self.sees))


def translate(images: Float[Tensor, "B C H W"], *, given: Preprocessing, sees: Preprocessing) -> Float[Tensor, "B _ _ _"]:
    """Images normalised for one model as another takes them: its channels, mean, deviation and size.

    Channels are scaled exactly: x = z σ + μ gives the pixels, (x - μ') / σ' the other model's. Grey pixels stand in for all
    colours, and colours are made grey as Pillow does. Bilinear with antialiasing where the size differs, and squashed where
    the shape does.
    """
    if images.shape[-2:] != sees.img_size:
        images = F.interpolate(images, size=sees.img_size, mode="bilinear", antialias=True)
    if (given.mean, given.std) == (sees.mean, sees.std):
        return images
    mean, std, new_mean, new_std = (
        torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (given.mean, given.std, sees.mean, sees.std)
    )
    pixels = images * std + mean
    if sees.in_channels == 1 and given.in_channels == 3:
        pixels = (pixels * torch.tensor(LUMA, device=images.device).view(-1, 1, 1)).sum(dim=1, keepdim=True)
    return ((pixels - new_mean) / new_std).expand(-1, sees.in_channels, -1, -1)


WAY = "give one that was trained on this data: `vitrail train` makes one, with --model torchvision:resnet50 a CNN"


def load_teacher(
    name: str, *, num_classes: int, classes: Sequence[str], preprocessing: Preprocessing, device: torch.device
) -> Teacher:
    """The teacher of that name, for images of `preprocessing`, in evaluation mode and without gradients.

    `name` is what `vitrail.load` takes, a run's folder above all, or a published model of another library,
    "torchvision:regnet_y_16gf", "timm:regnety_160", which sees ImageNet's 224 pixels. Raises ValueError for one that has
    other classes, random weights, or channels that the images have not.
    """
    if is_baseline(name):
        require_count(name, published_classes(name), num_classes)  # before anything is fetched
        net: Backbone = create_baseline(name, num_classes=num_classes, pretrained=True)
    elif is_name(name):
        raise ValueError(f'distill.teacher "{name}" has random weights; train it, and give the folder of that run')
    else:
        net = load(name)
    require_count(name, net.config.num_classes, num_classes)
    require_names(name, net.classes, classes)
    sees, own = net.preprocessing, preprocessing.in_channels
    if sees is None:
        raise ValueError(f'distill.teacher "{name}" does not say what happens to its images; {WAY}')
    if sees.range not in (None, preprocessing.range):
        raise ValueError(
            f'distill.teacher "{name}" was trained with data.range {list(sees.range or ())}, and this run has '
            f"{list(preprocessing.range or ())}; give that"
        )
    if sees.in_channels != own and {sees.in_channels, own} != {1, 3}:
        raise ValueError(f'distill.teacher "{name}" takes images of {sees.in_channels} channels, and these have {own}; {WAY}')
    return Teacher(net, sees=sees, given=preprocessing).to(device)


def require_count(name: str, theirs: int, ours: int) -> None:
    """Raises ValueError where the teacher tells another number of classes apart."""
    if theirs != ours:
        raise ValueError(f'distill.teacher "{name}" has {theirs:,} classes, and the data {ours:,}; {WAY}')


def require_names(name: str, theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Raises ValueError where as many classes are other ones, or stand in another order.

    A teacher that has no names for them is taken at its number. So is one that has words where the data has ImageNet's
    identifiers (n01440764), as published models have: sorted, these are in the order that published models keep.
    """
    if not theirs or are_identifiers(theirs) != are_identifiers(ours) or tuple(theirs) == tuple(ours):
        return
    other, own = next((a, b) for a, b in zip(theirs, ours, strict=True) if a != b)
    how = "in another order" if set(theirs) == set(ours) else "by other names"
    raise ValueError(f'distill.teacher "{name}" has its classes {how}, "{other}" where the data has "{own}"; {WAY}')


def are_identifiers(classes: Sequence[str]) -> bool:
    """Whether the classes are called by WordNet identifiers, and sorted."""
    return all(re.fullmatch(r"n\d{8}", name) for name in classes) and list(classes) == sorted(classes)
