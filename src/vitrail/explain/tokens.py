"""Patch tokens behind a layer."""

# B batch · N tokens · D width

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from vitrail.explain.inputs import Scene, require_finite_output
from vitrail.explain.passes import forward_pass


def tokens_behind(scene: Scene, layer: int) -> Float[Tensor, "B N D"]:
    """Return the tokens behind a layer, in float32; behind the last one, after the last norm.

    Raises ValueError for tokens that are not finite.
    """
    if scene.model.global_attention:
        x = forward_pass(scene, layers=[layer + 1], to_the_end=False).last
        tokens = (scene.vit.norm(x) if layer == scene.vit.config.depth - 1 else x).float()
    else:
        features = scene.model.features(scene.images)
        assert features.tokens is not None
        tokens = features.tokens.float()
    require_finite_output(tokens, f"output of layer {layer}", so="its patches can't be compared")
    return tokens
