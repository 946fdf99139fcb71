"""Feature maps of torchvision's and timm's models, whose code returns logits."""

# B batch · C channels · H W image · E width of the embedding

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

Maps = tuple[Float[Tensor, "B _C _h _w"], ...]
Embed = Callable[[Tensor], Float[Tensor, "B E"]]


def timm_features(net: Any, images: Float[Tensor, "B C H W"], embed: Embed) -> tuple[Float[Tensor, "B E"], Maps | None]:
    """Return embedding and maps of a timm model in one pass; no maps where it has no `forward_intermediates`."""
    if not hasattr(net, "forward_intermediates"):
        return embed(images), None
    last, maps = net.forward_intermediates(images, output_fmt="NCHW")
    return net.forward_head(last, pre_logits=True), by_resolution(maps) or None


def torchvision_features(
    net: nn.Module, images: Float[Tensor, "B C H W"], embed: Embed, *, head: str
) -> tuple[Float[Tensor, "B E"], Maps | None]:
    """Return embedding and maps of a torchvision model in one pass of `embed`; `head` is the path of its classifier.

    Its models have no call for maps, but all are made of layers and sequences in forward order: the maps are what these
    return before the pooling. In Swin Transformers channels come last, and a ViT has tokens.
    """
    kind, maps = type(net).__name__, list[Tensor]()

    def keep(module: nn.Module, _: Any, out: Any) -> Tensor | None:
        if not isinstance(out, Tensor):
            return None
        if kind == "SwinTransformer" and out.ndim == 4:
            maps.append(out.permute(0, 3, 1, 2))
            return maps[-1].permute(0, 2, 3, 1)  # the same memory, behind the map for gradients
        if kind == "VisionTransformer" and out.ndim == 3:
            patch: int = net.patch_size  # type: ignore[assignment]
            maps.append(out[:, 1:].mT.unflatten(2, (images.shape[2] // patch, images.shape[3] // patch)))
        elif kind != "VisionTransformer" and out.ndim == 4:
            maps.append(out)
        return None

    handles = [layer.register_forward_hook(keep) for layer in _layers(net, head=head, transposed=kind == "SwinTransformer")]
    try:
        return embed(images), by_resolution(maps) or None
    finally:
        for handle in handles:
            handle.remove()


def by_resolution(maps: list[Tensor]) -> Maps:
    """Return the last map of each resolution, from fine to coarse."""
    levels = {tuple(one.shape[-2:]): one for one in maps}
    return tuple(sorted(levels.values(), key=lambda one: -one.shape[-2] * one.shape[-1]))


def _layers(net: nn.Module, *, head: str, transposed: bool) -> Iterator[nn.Module]:
    """Yield the layers of a model in forward order, those of its sequences one by one, without pooling and head."""
    for name, layer in net.named_children():
        if name == head.partition(".")[0] or isinstance(layer, nn.AdaptiveAvgPool2d | nn.Dropout):
            continue
        if isinstance(layer, nn.Sequential | nn.ModuleList):
            yield from layer
        elif not transposed or name == "features":  # what follows puts the channels first again
            yield layer
