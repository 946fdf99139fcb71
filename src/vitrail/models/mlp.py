"""MLP of a block, in the families with one form of it; a plain ViT's, which has several, is in `vit.py`."""

# B batch · N tokens or positions · D width

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.models.linear import Linear


class Mlp(nn.Module):
    """Two layers around GELU, or around another form of it."""

    def __init__(self, dim: int, hidden: int, *, drop: float = 0.0, gelu: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.gelu = gelu
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.drop(self.fc2(self.gelu(self.fc1(x))))
