"""Cosine similarity of one token with the patch tokens."""

# B batch · N tokens

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor, nn

from vitrail.explain.inputs import Images, Query, Scene, has_class_token, layer_label, open_scene, require_layer
from vitrail.explain.maps import Maps, maps_of
from vitrail.explain.tokens import tokens_behind
from vitrail.settings import Pair


@torch.no_grad()
def similarity(
    model: nn.Module,
    images: Images,
    *,
    query: Query = "cls",
    layer: int = -1,
    pad: bool = False,
    sizes: Int64[Tensor, "B 2"] | None = None,
    patch_size: int | Pair | None = None,
    img_size: int | Pair | None = None,
) -> Maps:
    """Return the cosine of one token with the token of every patch, from -1 to 1.

    `query` is the class token, or the patch that holds a pixel (x, y). The tokens are those behind a layer; behind the last
    one, after the last norm too. Raises ValueError for a layer or query that does not exist, and for a model without patch
    tokens.
    """
    with open_scene(
        model, images, method="similarity", pad=pad, sizes=sizes, patch_size=patch_size, img_size=img_size
    ) as scene:
        index, position = require_layer(scene.model, layer), _token_of(scene, query)
        tokens = tokens_behind(scene, index)
        cosine = F.cosine_similarity(tokens, tokens[:, position, None], dim=2)  # (B, N)
        maps = scene.patches(cosine) * scene.present()
        source = "class token" if query == "cls" else f"patch at {query[0]},{query[1]}"
        label = f"{layer_label(scene.model, index)}, {source}"
        return maps_of(scene, maps, method="similarity", labels=label, signed=True)


def _token_of(scene: Scene, query: Query) -> int:
    """Return the index of a query among the tokens. Raises ValueError for one that some image does not have."""
    if query == "cls":
        if not has_class_token(scene.model):
            raise ValueError('query "cls": this model has no class token; ask for a patch by a pixel (x, y)')
        return 0
    return scene.token(query)
