"""Input shared by all contenders of a measurement: weights as files, images, and the number of operations."""

# B batch · C channels · H W image · K classes

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.models import create_model
from vitrail.models.backbone import Backbone
from vitrail.models.counts import count
from vitrail.settings import Preprocessing, pair
from vitrail.weights import convert, save_model

OURS = "vitrail"
PEERS = ("timm", "torchvision")
"""Libraries that get the same weights, by the names of `weights.convert`."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model and its batch on a device. It is sent to other processes, so it has no tensors."""

    model: str
    device: str
    batch_size: int
    shape: tuple[int, int, int]
    """Channels, height and width of an image."""
    num_classes: int
    flops: int
    """Operations of a forward pass for one image."""
    parameters: int
    products: tuple[tuple[int, int, int], ...]
    """Distinct products (rows, in, out) of the linear layers, for one image."""
    files: Mapping[str, Path]
    """The same weights for each library."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Reason for each library that cannot be this model."""

    def images(self) -> Float[Tensor, "B C H W"]:
        """Return the images, the same in every process."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.batch_size, *self.shape, generator=generator).to(self.device)

    def file(self, library: str) -> Path:
        """Return the weights for a library. Raises ValueError if it cannot be this model."""
        if library in self.refused:
            raise ValueError(self.refused[library])
        return self.files[library]


def write_case(name: str, folder: Path, *, img_size: int | tuple[int, int] | None, batch_size: int, device: str) -> Case:
    """Create a model with random weights and write it for every library. Raises ValueError for an invalid model."""
    torch.manual_seed(0)
    model = create_model(name, **({} if img_size is None else {"img_size": img_size})).eval()
    cost, channels = count(model.config), model.config.in_channels
    shape = (channels, *pair(model.config.img_size))
    model.preprocessing = Preprocessing(img_size=shape[1:], in_channels=channels, mean=(0.0,), std=(1.0,))
    files, refused = {OURS: folder / OURS}, {}
    files[OURS].mkdir()
    save_model(model, files[OURS], data="")
    for peer in PEERS:
        try:
            files[peer] = convert(model, peer, folder / peer)
        except ValueError as error:
            refused[peer] = str(error)
    return Case(
        model=name,
        device=device,
        batch_size=batch_size,
        shape=shape,
        num_classes=model.config.num_classes,
        flops=cost.flops,
        parameters=cost.parameters,
        products=products(model),
        files=files,
        refused=refused,
    )


@torch.no_grad()
def products(model: Backbone) -> tuple[tuple[int, int, int], ...]:
    """Return the distinct products (rows, in, out) of the linear layers in a forward pass of one image, but for the head's."""
    shapes: dict[tuple[int, int, int], None] = {}

    def record(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows = inputs[0].shape[:-1].numel()
        if rows > 1:  # the head's single row is bound by memory, not by arithmetic
            shapes[rows, inputs[0].shape[-1], output.shape[-1]] = None

    handles = [layer.register_forward_hook(record) for layer in model.modules() if isinstance(layer, nn.Linear)]
    model(torch.zeros(1, model.config.in_channels, *pair(model.config.img_size)))
    for handle in handles:
        handle.remove()
    return tuple(shapes)
