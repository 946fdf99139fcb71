"""The plain Vision Transformer, whole, in one file.

An Image is Worth 16x16 Words (Dosovitskiy et al. 2021), with the parts that came after it: LayerScale, stochastic depth,
registers, qk-norm, SwiGLU, attention pooling, a convolutional stem, and images of any size, patch and number of channels.

    images (B, C, H, W) -> PatchEmbed -> + position -> blocks -> norm -> pool -> head -> logits (B, K)

State-dict keys are timm's. Read from the bottom up, or from `ViT.forward` down.
"""

# B batch · C channels · H W image · P patch · gh gw grid = H/P, W/P · L patches = gh gw · T prefix tokens · N tokens = T + L
# D width · M hidden width of the MLP · h heads · d = D / h · K classes · Q queries asked for

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrail.config import OTHER_SPELLINGS, Pair, Preprocessing, ViTConfig, nearest, pair

Images = Float[Tensor, "B C H W"]
Tokens = Float[Tensor, "B N D"]
KeyMask = Bool[Tensor, "B N"]  # True where a token may be looked at

PLAIN_ATTENTION_MAX_TOKENS = 640
"""On a CPU in bf16, up to this many tokens, matmul + softmax beats the flash kernel (benchmarks/attention.py)."""
_INVERSES: dict[tuple[int, int], Tensor] = {}


# --------------------------------------------------------------------------------------------------------------------
# Images to tokens


class PatchEmbed(nn.Module):
    """Cuts an image into patches and projects each: a convolution whose stride is its kernel (section 3.1).

    With stem "conv", 3x3 convolutions of stride 2 come first and the projection cuts what is left of the patch
    (Xiao et al. 2021): the same grid, easier to train on little data.
    """

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        patch, channels = pair(cfg.patch_size), cfg.in_channels
        self.stem: nn.Module = nn.Identity()
        if cfg.stem == "conv":
            self.stem, channels, patch = conv_stem(cfg)
        self.proj = nn.Conv2d(channels, cfg.embed_dim, kernel_size=patch, stride=patch, bias=not cfg.pre_norm)
        pixels = channels * patch[0] * patch[1]
        self.pixel_norm = nn.LayerNorm(pixels, eps=cfg.norm_eps) if cfg.patch_norm else None
        self.norm = nn.LayerNorm(cfg.embed_dim, eps=cfg.norm_eps) if cfg.patch_norm else None

    def forward(self, images: Images, patch: Pair | None = None) -> Float[Tensor, "B L D"]:
        """With `patch`, the filters are resized to it for this call, and the stride with them."""
        if patch is not None:
            x = F.conv2d(images, resize_patch(self.proj.weight, to=patch), self.proj.bias, stride=patch)  # (B, D, gh, gw)
            return x.flatten(2).transpose(1, 2)  # (B, L, D)
        if self.pixel_norm is not None and self.norm is not None:  # each patch is normalised, which no convolution does
            patches = F.unfold(images, self.proj.kernel_size, stride=self.proj.stride).transpose(1, 2)  # (B, L, C P P)
            return self.norm(F.linear(self.pixel_norm(patches), self.proj.weight.flatten(1), self.proj.bias))  # (B, L, D)
        x = self.proj(self.stem(images))  # (B, D, gh, gw)
        return x.flatten(2).transpose(1, 2)  # (B, L, D)


def conv_stem(cfg: ViTConfig) -> tuple[nn.Module, int, Pair]:
    """The stem, its output channels, and the patch that is left for the projection.

    Each convolution halves the image, as often as the patch is even, four times at most; widths double up to D. One more
    at full width looks around without halving.
    """
    height, width = pair(cfg.patch_size)
    halvings = 0
    while halvings < 4 and height % 2 == 0 and width % 2 == 0:
        height, width, halvings = height // 2, width // 2, halvings + 1
    if not halvings:
        raise ValueError(
            f'patch_size {cfg.patch_size} is odd, and stem "conv" halves the image; use an even patch or stem "patch"'
        )
    widths = [max(8, cfg.embed_dim >> left) for left in reversed(range(halvings))]  # …, D/4, D/2, D
    layers: list[nn.Module] = []
    before = cfg.in_channels
    for after, stride in [*((width, 2) for width in widths), (widths[-1], 1)]:
        layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        before = after
    stem = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # 1.8x as fast
    return stem, before, (height, width)


def resize_patch(weight: Float[Tensor, "D C h w"], *, to: Pair) -> Float[Tensor, "D C _ _"]:
    """The patch projection for patches of another size, (height, width). Exactly the input where the size is the same.

    FlexiViT's pseudo-inverse resize (Beyer et al. 2023, section 3.4): with B the matrix that resizes a patch (bicubic,
    antialiased), the new filters are (Bᵀ)⁺ w. Where patches grow, a resized patch has exactly the embedding of the
    original; where they shrink, the nearest one on average. B is one matrix down times one across, and so is its inverse.
    Raises ValueError for a side below one pixel.
    """
    if min(to) < 1:
        raise ValueError(f"patch_size {to} must be at least 1 pixel")
    if tuple(weight.shape[2:]) == to:
        return weight
    wide = torch.float32 if weight.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    down, across = (inverse_resize(old, new).to(weight.device, wide) for old, new in zip(weight.shape[2:], to, strict=True))
    resized = ((weight.to(wide) @ across).mT @ down).mT  # (D, C, _, _): as two products of plain matrices, the fastest way
    return resized.to(weight.dtype, memory_format=torch.contiguous_format)


def inverse_resize(old: int, new: int) -> Float[Tensor, "{old} {new}"]:
    """Pseudo-inverse of the matrix (new, old) that resizes one side of an image; its columns are resized unit vectors."""
    inverse = _INVERSES.get((old, new))
    if inverse is None:
        with torch.inference_mode(False):  # what is kept must do for a call that learns, too
            unit = torch.eye(old, dtype=torch.float64, device="cpu")[None, None]
            inverse = torch.linalg.pinv(F.interpolate(unit, size=(new, old), mode="bicubic", antialias=True)[0, 0])
        if type(inverse) is Tensor:  # torch.export computes with tensors that hold no numbers
            _INVERSES[old, new] = inverse
    return inverse


def sincos_2d(grid: Pair, dim: int) -> Float[Tensor, "L D"]:
    """Fixed 2-D sine-cosine positions: a quarter of the width each for sin x, cos x, sin y, cos y (Chen et al. 2021)."""
    omega = 1e4 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    y, x = y.reshape(-1, 1) * omega, x.reshape(-1, 1) * omega  # (L, D/4)
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1).float()


def resize_positions(pos_embed: Float[Tensor, "1 _ D"], *, old: Pair, new: Pair, prefix: int) -> Float[Tensor, "1 _ D"]:
    """Position embeddings for another grid: bicubic, antialiased; the prefix rows stay. Exactly the input where old is new."""
    if old == new:
        return pos_embed
    head, rows = pos_embed[:, :prefix], pos_embed[:, prefix:]
    image = rows.reshape(1, *old, -1).permute(0, 3, 1, 2).float()  # (1, D, gh, gw)
    if new[1] == 1:  # torch 2.14 repeats the first row where the new width is 1: turned, it does not
        image = F.interpolate(image.transpose(2, 3), size=(1, new[0]), mode="bicubic", antialias=True).transpose(2, 3)
    else:
        image = F.interpolate(image, size=new, mode="bicubic", antialias=True)
    return torch.cat([head, image.flatten(2).transpose(1, 2).to(rows.dtype)], dim=1)


# --------------------------------------------------------------------------------------------------------------------
# The block and its parts


class Attended(NamedTuple):
    """What one attention took and gave: enough for any row of its weights, softmax(q kᵀ / √d), and for their gradient."""

    tokens: Tokens
    """As it sees them: behind the norm."""
    queries: Float[Tensor, "B h Q d"]
    keys: Float[Tensor, "B h N d"]
    values: Float[Tensor, "B h N d"]
    out: Float[Tensor, "B h Q d"]
    """Before the projection."""


class Attention(nn.Module):
    """Multi-head self-attention: softmax(q kᵀ / √d) v, with q, k and v from one projection (appendix A)."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        dim, head_dim = cfg.embed_dim, cfg.head_dim or cfg.embed_dim // cfg.num_heads
        inner = cfg.num_heads * head_dim  # D, unless head_dim says otherwise
        self.num_heads = cfg.num_heads
        self.qkv = nn.Linear(dim, 3 * inner, bias=cfg.qkv_bias)
        self.q_norm = nn.LayerNorm(head_dim, eps=cfg.norm_eps) if cfg.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_dim, eps=cfg.norm_eps) if cfg.qk_norm else nn.Identity()
        self.attn_drop_rate = cfg.attn_drop_rate
        self.proj = nn.Linear(inner, dim)
        self.proj_drop = nn.Dropout(cfg.proj_drop_rate)

    def forward(self, x: Tokens, mask: KeyMask | None = None, kept: list[Attended] | None = None) -> Tokens:
        tokens, (q, k, v) = x, self.queries_keys_values(x)
        x = attend(q, k, v, mask, dropout=self.attn_drop_rate if self.training else 0.0)  # (B, h, N, d)
        if kept is not None:
            kept.append(Attended(tokens, q, k, v, x))
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))  # (B, N, D)

    def queries_keys_values(self, x: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Three of (B, h, N, d)."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.q_norm(q), self.k_norm(k), v

    def maps(self, x: Tokens, queries: Int64[Tensor, " Q"], mask: KeyMask | None = None) -> Float[Tensor, "B h Q N"]:
        """The attention weights of the rows asked for, and no others."""
        q, k, _ = self.queries_keys_values(x)
        return attention_weights(q[:, :, queries], k, mask)


def attention_weights(q: Tensor, k: Tensor, mask: KeyMask | None) -> Float[Tensor, "B h Q N"]:
    """softmax(q kᵀ / √d) over the keys that the mask lets through."""
    lead, scale = q.shape[:2], q.shape[-1] ** -0.5
    if mask is None:
        bias, beta = q.new_empty(1).expand(1, 1, 1), 0  # beta 0: the bias is not read
    else:
        bias, beta = q.new_zeros(mask.shape).masked_fill_(~mask, float("-inf")).repeat_interleave(lead[1], 0)[:, None], 1
    scores = torch.baddbmm(bias, q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2), beta=beta, alpha=scale)  # (B h, Q, N)
    return scores.softmax(dim=-1).unflatten(0, lead)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: KeyMask | None, *, dropout: float) -> Float[Tensor, "B h Q d"]:
    """Attention by the fastest way that is right for the device and type; both ways give the same numbers (a test says so)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] <= PLAIN_ATTENTION_MAX_TOKENS:
        return F.dropout(attention_weights(q, k, mask), dropout) @ v
    keys = None if mask is None else mask[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keys, dropout_p=dropout)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU's tanh form (Hendrycks & Gimpel 2016, section 2)."""
    return F.gelu(x, approximate="tanh")


def quick_gelu(x: Tensor) -> Tensor:
    """GELU's sigmoid form (Hendrycks & Gimpel 2016, section 2)."""
    return x * torch.sigmoid(1.702 * x)


GELUS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "gelu_tanh": gelu_tanh, "quick_gelu": quick_gelu}


class Mlp(nn.Module):
    """Two layers around GELU."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        hidden = round(cfg.embed_dim * cfg.mlp_ratio)
        self.gelu = GELUS.get(cfg.mlp, F.gelu)  # attention pooling has this MLP beside blocks with SwiGLU
        self.fc1 = nn.Linear(cfg.embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, cfg.embed_dim)
        self.drop = nn.Dropout(cfg.proj_drop_rate)

    def forward(self, x: Tokens) -> Tokens:
        return self.drop(self.fc2(self.gelu(self.fc1(x))))


class SwiGLU(nn.Module):
    """fc2(silu(a) · b), with a and b from one projection (Shazeer 2020)."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        hidden = round(cfg.embed_dim * cfg.mlp_ratio)
        self.fc1 = nn.Linear(cfg.embed_dim, 2 * hidden)
        self.fc2 = nn.Linear(hidden, cfg.embed_dim)
        self.drop = nn.Dropout(cfg.proj_drop_rate)

    def forward(self, x: Tokens) -> Tokens:
        a, b = self.fc1(x).chunk(2, dim=-1)
        return self.drop(self.fc2(F.silu(a) * b))


class LayerScale(nn.Module):
    """A learned factor for each channel of a branch (Touvron et al. 2021, CaiT)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.init = init
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tokens) -> Tokens:
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth: leaves a branch out for a share of the images, scaled to keep the mean (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        # a tensor: torch.compile takes a number for a constant, and would compile each block anew; on the CPU even where
        # the model is made on the meta device, for no checkpoint fills it
        self.keep_rate = torch.tensor(1 - rate, device="cpu")

    def forward(self, x: Tokens) -> Tokens:
        if not self.training:
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) < self.keep_rate
        return x * (kept.to(x.dtype) / self.keep_rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class Block(nn.Module):
    """One pre-norm encoder block (equations 2 and 3)."""

    def __init__(self, cfg: ViTConfig, *, drop_path: float) -> None:
        super().__init__()
        dim = cfg.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=cfg.norm_eps)
        self.attn = Attention(cfg)
        self.ls1 = nn.Identity() if cfg.init_values is None else LayerScale(dim, cfg.init_values)
        self.drop_path1 = DropPath(drop_path) if cfg.drop_path_rate else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=cfg.norm_eps)
        self.mlp = SwiGLU(cfg) if cfg.mlp == "swiglu" else Mlp(cfg)
        self.ls2 = nn.Identity() if cfg.init_values is None else LayerScale(dim, cfg.init_values)
        self.drop_path2 = DropPath(drop_path) if cfg.drop_path_rate else nn.Identity()

    def forward(self, x: Tokens, mask: KeyMask | None = None, kept: list[Attended] | None = None) -> Tokens:
        """With `kept`, what the attention took and gave is put there."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), mask, kept)))  # z' = γ₁·MSA(LN(z)) + z
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))  # z  = γ₂·MLP(LN(z')) + z'


# --------------------------------------------------------------------------------------------------------------------
# Tokens to logits


class AttentionPool(nn.Module):
    """One learned query looks at the tokens, then an MLP (MAP head: Zhai et al. 2022, section 2.2)."""

    def __init__(self, cfg: ViTConfig) -> None:
        super().__init__()
        dim = cfg.embed_dim
        self.num_heads = cfg.num_heads
        self.latent = nn.Parameter(torch.zeros(1, 1, dim))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=cfg.norm_eps)
        self.mlp = Mlp(cfg)

    def forward(self, x: Tokens, mask: KeyMask | None = None, kept: list[Attended] | None = None) -> Float[Tensor, "B D"]:
        q = self.q(self.latent).expand(len(x), -1, -1).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, h, 1, d)
        k, v = self.kv(x).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, h, N, d) each
        out = attend(q, k, v, mask, dropout=0.0)
        if kept is not None:
            kept.append(Attended(x, q, k, v, out))
        x = self.proj(out.transpose(1, 2).flatten(2))  # (B, 1, D)
        return (x + self.mlp(self.norm(x)))[:, 0]


class PreLogits(nn.Module):
    """The hidden layer of the paper's pre-training head (section 3.1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return torch.tanh(self.fc(x))


# --------------------------------------------------------------------------------------------------------------------
# The model


@dataclass(frozen=True, eq=False)
class Outputs:
    """What one pass through the model gives."""

    logits: Float[Tensor, "B K"]
    embedding: Float[Tensor, "B E"]
    """What the head sees: width D, or 2 D with pool "cls+avg"."""
    tokens: Tokens
    """After the last norm: prefix tokens (class, distillation, registers), then patches row by row."""
    features: tuple[Tokens, ...]
    """The tokens behind each block, before the last norm."""
    dist_logits: Float[Tensor, "B K"] | None = None
    """The distillation head's logits, where there is one; then `logits` is the class token's own."""


class ViT(nn.Module):
    """A Vision Transformer. Takes a ViTConfig, or its fields by keyword: `ViT(img_size=28, patch_size=4, in_channels=1)`."""

    pos_embed: Tensor | None

    def __init__(self, config: ViTConfig | None = None, **fields: Any) -> None:
        super().__init__()
        cfg = configured(config, fields)
        self.config = cfg
        self.grid = grid_of(pair(cfg.img_size), pair(cfg.patch_size))
        self.checkpointing = False
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.preprocessing: Preprocessing | None = None
        """What happens to an image before the model, where the weights' origin says it."""
        self.classes: tuple[str, ...] = ()
        """Names of the classes, where known."""
        self.multi_label = False
        """Whether an image may have any number of the classes: then each has a probability of its own, the logit's sigmoid."""
        self.receipt: object = None
        """What became of every tensor of the checkpoint that the weights come from (`weights.Receipt`)."""

        dim = cfg.embed_dim
        self.patch_embed = PatchEmbed(cfg)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if cfg.class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if cfg.dist_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, cfg.reg_tokens, dim)) if cfg.reg_tokens else None
        rows = self.placed_tokens + self.grid[0] * self.grid[1]
        if cfg.pos_embed == "learn":
            self.pos_embed = nn.Parameter(torch.zeros(1, rows, dim))
        else:
            self.register_buffer("pos_embed", torch.zeros(1, rows, dim) if cfg.pos_embed == "sincos2d" else None)
        self.pos_drop = nn.Dropout(cfg.pos_drop_rate)
        ramp = [cfg.drop_path_rate * i / max(1, cfg.depth - 1) for i in range(cfg.depth)]

        def norm(wanted: bool) -> nn.Module:
            return nn.LayerNorm(dim, eps=cfg.norm_eps) if wanted else nn.Identity()

        self.norm_pre = norm(cfg.pre_norm)
        self.blocks = nn.ModuleList(Block(cfg, drop_path=rate) for rate in ramp)
        self.norm = norm(cfg.final_norm and not cfg.fc_norm)
        self.attn_pool = AttentionPool(cfg) if cfg.pool == "map" else None
        self.fc_norm = norm(cfg.fc_norm)
        self.pre_logits = PreLogits(self.embedding_dim) if cfg.head == "mlp" else nn.Identity()
        self.head_drop = nn.Dropout(cfg.drop_rate)
        self.head: nn.Module = nn.Identity()
        self.head_dist: nn.Module | None = None
        self._positions: dict[Pair, tuple[Tensor, Tensor]] = {}
        self.reset_head(cfg.num_classes)
        self.reset_parameters()

    def reset_parameters(self, only: Collection[str] | None = None) -> None:
        """Fresh weights: truncated normal of 0.02, zero biases, unit norms; convolutions scaled by their fan-in (LeCun).

        With `only`, the layers whose tensors it names; the others stay as they are.
        """

        def wanted(name: str) -> bool:
            return only is None or name in only

        for path, module in self.named_modules():
            own = [f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)]
            if not any(map(wanted, own)):
                continue
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, LayerScale):
                nn.init.constant_(module.gamma, module.init)
            elif isinstance(module, AttentionPool):
                nn.init.trunc_normal_(module.latent, std=0.02)
        for name in ("cls_token", "dist_token", "reg_token"):
            token = getattr(self, name)
            if token is not None and wanted(name):
                nn.init.trunc_normal_(token, std=0.02)
        if not wanted("pos_embed"):
            return
        if self.config.pos_embed == "learn":
            nn.init.trunc_normal_(self.get_parameter("pos_embed"), std=0.02)
        elif self.config.pos_embed == "sincos2d":
            buffer = self.get_buffer("pos_embed")
            buffer[:, -self.grid[0] * self.grid[1] :] = sincos_2d(self.grid, self.config.embed_dim)

    def reset_head(self, num_classes: int) -> None:
        """A fresh head for `num_classes` outputs; 0 leaves it out, and the logits are the embedding."""
        if num_classes < 0:
            raise ValueError(f"num_classes {num_classes} must not be negative; 0 leaves the head out")
        weight: Tensor = self.patch_embed.proj.weight

        def linear() -> nn.Module:
            if not num_classes:
                return nn.Identity()
            head = nn.Linear(self.embedding_dim, num_classes, device=weight.device, dtype=weight.dtype)
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
            return head

        self.config = dataclasses.replace(self.config, num_classes=num_classes)
        self.head = linear()
        self.head_dist = linear() if self.config.dist_token else None

    @property
    def prefix_tokens(self) -> int:
        """T: class, distillation and register tokens, which stand before the patches."""
        return self.config.class_token + self.config.dist_token + self.config.reg_tokens

    @property
    def placed_tokens(self) -> int:
        """The tokens before the patches that have a row in the position embedding: never the registers."""
        return 0 if self.config.no_embed_class else self.config.class_token + self.config.dist_token

    @property
    def embedding_dim(self) -> int:
        """E, the width of what the head sees."""
        return self.config.embed_dim * (2 if self.config.pool == "cls+avg" else 1)

    # ---- calls: each is a part of `outputs`

    def forward(
        self,
        images: Images,
        *,
        pad: bool = False,
        sizes: Int64[Tensor, "B 2"] | None = None,
        patch_size: int | Pair | None = None,
    ) -> Float[Tensor, "B K"]:
        """Logits (B, K), or the embedding where there is no head.

        With `pad`, an image whose side the patch does not divide is padded with zeros on the right and below. With
        `sizes` (height and width in pixels), each image takes the upper left corner of its canvas: patches that hold
        none of its pixels are masked. With `patch_size`, this call cuts other patches than the model's own: projection and
        positions are resized to them, and learn through it (FlexiViT: Beyer et al. 2023). Raises ValueError for other
        channels, a side that the patch does not divide, and another patch where the stem can't be resized.
        """
        x, mask = self.embed(images, pad=pad, sizes=sizes, patch_size=patch_size)
        for block in self.blocks:
            x = self.run(block, x, mask)
        return self.read(x, mask)

    def forward_features(
        self,
        images: Images,
        *,
        pad: bool = False,
        sizes: Int64[Tensor, "B 2"] | None = None,
        patch_size: int | Pair | None = None,
    ) -> Tokens:
        """Tokens (B, N, D) after the last norm: prefix tokens, then patches row by row."""
        x, mask = self.embed(images, pad=pad, sizes=sizes, patch_size=patch_size)
        for block in self.blocks:
            x = self.run(block, x, mask)
        return self.norm(x)

    def outputs(
        self,
        images: Images,
        *,
        pad: bool = False,
        sizes: Int64[Tensor, "B 2"] | None = None,
        patch_size: int | Pair | None = None,
    ) -> Outputs:
        """Logits, embedding, tokens and the features behind every block, in one pass."""
        x, mask = self.embed(images, pad=pad, sizes=sizes, patch_size=patch_size)
        features = []
        for block in self.blocks:
            x = self.run(block, x, mask)
            features.append(x)
        x = self.norm(x)
        embedding = self.pool(x, mask)
        return Outputs(
            logits=self.head(self.head_drop(embedding)),
            embedding=embedding,
            tokens=x,
            features=tuple(features),
            dist_logits=None if self.head_dist is None else self.head_dist(self.head_drop(x[:, 1])),
        )

    def attention_maps(
        self,
        images: Images,
        *,
        layers: Sequence[int] = (-1,),
        queries: Literal["cls", "all"] | Sequence[int] = "cls",
        pad: bool = False,
        sizes: Int64[Tensor, "B 2"] | None = None,
        patch_size: int | Pair | None = None,
    ) -> dict[int, Float[Tensor, "B h Q N"]]:
        """Attention weights by layer, for the rows asked for only: O(N) memory a row, and the pass itself stays fused.

        `queries` are "cls", "all", or positions among the N tokens (`prefix_tokens` and up are patches). Negative layers
        count from the end; the result has the layers as they were asked for. Raises ValueError for a layer or a query
        that does not exist.
        """
        depth = self.config.depth
        for layer in layers:
            if not -depth <= layer < depth:
                raise ValueError(f"layer {layer} does not exist; this model has layers 0 to {depth - 1} (or -{depth} to -1)")
        x, mask = self.embed(images, pad=pad, sizes=sizes, patch_size=patch_size)
        rows = self.rows(queries, x.shape[1]).to(x.device)
        maps: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            asked = [layer for layer in layers if layer % depth == index]
            if asked:
                weights = block.attn.maps(block.norm1(x), rows, mask)  # type: ignore[operator, union-attr]
                maps |= dict.fromkeys(asked, weights)
            if len(maps) == len(set(layers)):
                break
            x = block(x, mask)
        return {layer: maps[layer] for layer in layers}

    # ---- steps

    def embed(
        self,
        images: Images,
        *,
        pad: bool,
        sizes: Int64[Tensor, "B 2"] | None,
        patch_size: int | Pair | None = None,
    ) -> tuple[Tokens, KeyMask | None]:
        """Patches with their positions behind the prefix tokens, and the mask of the tokens that are there (None: all)."""
        cfg, own = self.config, pair(self.config.patch_size)
        patch = own if patch_size is None else pair(patch_size)
        if patch != own:
            require_resizable(cfg, patch)
        if images.shape[1] != cfg.in_channels:
            raise ValueError(
                f"images have {images.shape[1]} channels, but the model takes {cfg.in_channels}; convert the images"
            )
        if pad:
            height, width = images.shape[-2:]
            images = F.pad(images, (0, -width % patch[1], 0, -height % patch[0]))
        grid = grid_of((images.shape[-2], images.shape[-1]), patch, or_else="pad=True")
        x = self.patch_embed(images) if patch == own else self.patch_embed(images, patch)  # (B, L, D)

        def tokens(*kinds: Tensor | None) -> list[Tensor]:
            return [kind.expand(len(x), -1, -1).to(x.dtype) for kind in kinds if kind is not None]

        front, place = tokens(self.cls_token, self.dist_token), self.placed_tokens
        apart = [*front[place:], *tokens(self.reg_token)]  # those without a position
        if place:
            x = torch.cat([*front[:place], x], dim=1)
        if self.pos_embed is not None:
            x = x + self.positions(grid).to(x.dtype)
        if apart:
            x = torch.cat([x[:, :place], *apart, x[:, place:]], dim=1)
        mask = None if sizes is None else self.token_mask(sizes, grid, patch)
        x = self.norm_pre(self.pos_drop(x))
        return self.drop_patches(x, mask) if self.training and cfg.patch_drop_rate else (x, mask)  # (B, N, D)

    def positions(self, grid: Pair) -> Float[Tensor, "1 _ D"]:
        """The position embedding at this grid; kept for each grid while nothing is being learned."""
        pos = self.pos_embed
        assert pos is not None
        prefix = self.placed_tokens
        if grid == self.grid or (torch.is_grad_enabled() and pos.requires_grad) or torch.compiler.is_compiling():
            return resize_positions(pos, old=self.grid, new=grid, prefix=prefix)
        of, resized = self._positions.get(grid, (None, None))
        # compared by value: a fused optimizer changes weights without a trace in their version counter
        if of is None or resized is None or (of.dtype, of.device) != (pos.dtype, pos.device) or not torch.equal(of, pos):
            with torch.inference_mode(False), torch.no_grad():
                of = pos.detach().clone()
                resized = resize_positions(of, old=self.grid, new=grid, prefix=prefix)
            self._positions[grid] = of, resized
        return resized

    def token_mask(self, sizes: Int64[Tensor, "B 2"], grid: Pair, patch: Pair) -> KeyMask:
        """True for the prefix tokens and for every patch that holds a pixel of its image."""
        inside = []
        for axis, (side, count) in enumerate(zip(patch, grid, strict=True)):
            edges = torch.arange(count, device=sizes.device) * side
            inside.append(edges < sizes[:, axis, None])  # (B, gh) and (B, gw)
        patches = (inside[0][:, :, None] & inside[1][:, None, :]).flatten(1)  # (B, L)
        return F.pad(patches, (self.prefix_tokens, 0), value=True)  # (B, N)

    def drop_patches(self, x: Tokens, mask: KeyMask | None) -> tuple[Float[Tensor, "B _ D"], Bool[Tensor, "B _"] | None]:
        """Leaves out a share of the patches, other ones for each image (Liu et al. 2023, PatchDropout)."""
        prefix, patches = self.prefix_tokens, x.shape[1] - self.prefix_tokens
        kept = max(1, round(patches * (1 - self.config.patch_drop_rate)))
        order = torch.rand(len(x), patches, device=x.device)
        if mask is not None:
            order = order + mask[:, prefix:]  # patches that are not there go first, so that something of every image is left
        chosen = order.topk(kept, dim=1).indices.sort(dim=1).values + prefix
        chosen = torch.cat([torch.arange(prefix, device=x.device).expand(len(x), -1), chosen], dim=1)
        x = x.gather(1, chosen[..., None].expand(-1, -1, x.shape[-1]))
        return x, None if mask is None else mask.gather(1, chosen)

    def run(self, block: nn.Module, x: Tokens, mask: KeyMask | None) -> Tokens:
        """One block, its activations kept or recomputed."""
        if self.checkpointing and self.training:
            return checkpoint(block, x, mask, use_reentrant=False)
        return block(x, mask)

    def read(self, x: Tokens, mask: KeyMask | None = None, kept: list[Attended] | None = None) -> Float[Tensor, "B K"]:
        """Logits from the tokens behind the last block. With `kept`, what attention pooling took and gave is put there."""
        x = self.norm(x)
        logits = self.head(self.head_drop(self.pool(x, mask, kept)))
        if self.head_dist is None:
            return logits
        return (logits + self.head_dist(self.head_drop(x[:, 1]))) / 2

    def pool(self, x: Tokens, mask: KeyMask | None = None, kept: list[Attended] | None = None) -> Float[Tensor, "B E"]:
        """What the head sees: the class token, the mean of the patch tokens, both, or attention pooling."""
        cfg = self.config
        start = 0 if cfg.pool_include_prefix else self.prefix_tokens
        seen, there = x[:, start:], None if mask is None else mask[:, start:]
        if self.attn_pool is not None:
            x = self.attn_pool(seen, there, kept)
        elif cfg.pool == "cls":
            x = x[:, 0]
        else:
            mean = seen.mean(dim=1) if there is None else (seen * there[..., None]).sum(dim=1) / there.sum(dim=1, keepdim=True)
            x = mean if cfg.pool == "avg" else torch.cat([x[:, 0], mean], dim=1)
        return self.pre_logits(self.fc_norm(x))

    def rows(self, queries: Literal["cls", "all"] | Sequence[int], tokens: int) -> Int64[Tensor, " Q"]:
        """Positions of the queries among the tokens."""
        if queries == "all":
            return torch.arange(tokens)
        if queries == "cls":
            if not self.config.class_token:
                raise ValueError('queries "cls": this model has no class token; ask for patches by position, or "all"')
            return torch.zeros(1, dtype=torch.long)
        if isinstance(queries, str):
            raise ValueError(f'queries "{queries}" is neither "cls" nor "all" nor positions')
        for query in queries:
            if not 0 <= query < tokens:
                raise ValueError(f"query {query} does not exist; this image has tokens 0 to {tokens - 1}")
        return torch.tensor(list(queries), dtype=torch.long)


def configured(config: ViTConfig | None, fields: dict[str, Any]) -> ViTConfig:
    """The config with the fields put in. Raises ValueError for a field that does not exist."""
    check_names(fields)
    return dataclasses.replace(config or ViTConfig(), **fields)


def check_names(fields: Iterable[str]) -> None:
    """Raises ValueError for a name that is no field of ViTConfig."""
    known = [f.name for f in dataclasses.fields(ViTConfig)]
    for name in fields:
        if name not in known:
            meant = OTHER_SPELLINGS.get(name)
            hint = f'; did you mean "{meant}"?' if meant in known else nearest(name, known)
            raise ValueError(f'"{name}" is not a field of ViTConfig{hint}')


def require_resizable(cfg: ViTConfig, patch: Pair) -> None:
    """Raises ValueError where the patches of this model can have their own size only, or where `patch` is none."""
    if min(patch) < 1:
        raise ValueError(f"patch_size {patch} must be at least 1 pixel")
    fixed = 'stem "conv"' if cfg.stem == "conv" else "patch_norm true" if cfg.patch_norm else ""
    if fixed:
        height, width = pair(cfg.patch_size)
        raise ValueError(
            f"a model with {fixed} cuts its own patches of {height}x{width} and no others, not {patch[0]}x{patch[1]}; "
            "leave the other patch out"
        )


def grid_of(size: Pair, patch: Pair, *, or_else: str = "another patch_size") -> Pair:
    """Patches down and across. Raises ValueError where the patch does not divide the image, with a second way out."""
    for side, part in zip(size, patch, strict=True):
        if side % part or side < part:
            near = max(1, round(side / part)) * part
            raise ValueError(f"image side {side} is not a multiple of patch {part}; use {near}, or {or_else}")
    return size[0] // patch[0], size[1] // patch[1]
