"""Masked autoencoder (He et al. 2022): hide most patches, encode the others, predict the pixels of the hidden ones."""

# B batch · C channels · H W image · P patch · gh gw grid · L patches = gh gw · V visible patches · T prefix tokens
# D width of the encoder · d width of the decoder · X numbers in a patch = P P C · E embedding

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int64
from PIL import Image
from torch import Tensor, nn

from vitrail.data.augment import normalise
from vitrail.data.batch import Batch, RawBatch
from vitrail.data.dataset import Split
from vitrail.data.draws import Draws
from vitrail.evaluate.embedding import has_classes
from vitrail.evaluate.evaluate import in_eval_mode
from vitrail.models.backbone import Backbone, Features, View
from vitrail.models.device import autocast
from vitrail.models.positions import grid_of, sincos_2d
from vitrail.models.vit import Block
from vitrail.settings import AugmentConfig, Pair, Preprocessing, Settings, ViTConfig, pair
from vitrail.settings.mae import MaeConfig
from vitrail.tasks.task import CollapseCause
from vitrail.tasks.unsupervised import Unsupervised

PICTURED = 8
"""Maximum number of images of a split that a picture shows."""
Images = Float[Tensor, "B C H W"]
Visible = Int64[Tensor, "B V"]


# --------------------------------------------------------------------------------------------------------------------
# Pixels


def to_patches(images: Images, patch: Pair) -> Float[Tensor, "B L X"]:
    """Cut images into patches, row by row; the pixels of a patch are row by row too, the channels of a pixel side by side."""
    x = images.unflatten(2, (-1, patch[0])).unflatten(4, (-1, patch[1]))  # (B, C, gh, P, gw, P)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (B, L, X)


def from_patches(patches: Float[Tensor, "B L X"], *, patch: Pair, grid: Pair) -> Images:
    """Join patches to images: the inverse of `to_patches`."""
    x = patches.unflatten(1, grid).unflatten(3, (*patch, -1))  # (B, gh, gw, P, P, C)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # (B, C, H, W)


def patch_statistics(patches: Float[Tensor, "B L X"]) -> tuple[Float[Tensor, "B L 1"], Float[Tensor, "B L 1"]]:
    """Return mean and standard deviation of each patch: √(unbiased variance + 1e-6), as in the published code."""
    return patches.mean(dim=2, keepdim=True), (patches.var(dim=2, keepdim=True) + 1e-6).sqrt()


def masked_loss(predicted: Float[Tensor, "B L X"], targets: Float[Tensor, "B L X"], hidden: Bool[Tensor, "B L"]) -> Tensor:
    """Compute the mean squared error of the hidden patches."""
    errors = (predicted.float() - targets).square().mean(dim=2)  # (B, L)
    return (errors * hidden).sum() / hidden.sum()


# --------------------------------------------------------------------------------------------------------------------
# The decoder


class Decoder(nn.Module):
    """Light Transformer from the visible tokens to the pixels of all patches (section 3, "MAE decoder")."""

    def __init__(self, cfg: MaeConfig, *, width: int, pixels: int) -> None:
        super().__init__()
        shape = ViTConfig(embed_dim=cfg.decoder_dim, depth=cfg.decoder_depth, num_heads=cfg.decoder_heads)
        self.embed = nn.Linear(width, cfg.decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, cfg.decoder_dim))
        self.blocks = nn.ModuleList(Block(shape, drop_path=0.0) for _ in range(cfg.decoder_depth))
        self.norm = nn.LayerNorm(cfg.decoder_dim, eps=shape.norm_eps)
        self.pred = nn.Linear(cfg.decoder_dim, pixels)
        self._positions: dict[tuple[Pair, torch.device], Tensor] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all weights as in the published code: Xavier uniform, zero biases, mask token N(0, 0.02)."""
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Float[Tensor, "B N D"], visible: Visible, *, prefix: int, grid: Pair) -> Float[Tensor, "B L X"]:
        """Predict the pixels of every patch from the prefix tokens and those of the visible patches."""
        x = self.embed(tokens)  # (B, T + V, d)
        places = visible[:, :, None].expand(-1, -1, x.shape[2])
        patches = self.mask_token.to(x.dtype).expand(len(x), grid[0] * grid[1], -1).scatter(1, places, x[:, prefix:])
        patches = patches + self.positions(grid, x.device).to(x.dtype)  # those of the prefix are zero
        x = torch.cat([x[:, :prefix], patches], dim=1)  # (B, T + L, d)
        for block in self.blocks:
            x = block(x)
        return self.pred(self.norm(x))[:, prefix:]

    def positions(self, grid: Pair, device: torch.device) -> Float[Tensor, "L d"]:
        """Return fixed sine-cosine positions, cached for each grid."""
        if (grid, device) not in self._positions:
            self._positions[grid, device] = sincos_2d(grid, self.embed.out_features).to(device)
        return self._positions[grid, device]


# --------------------------------------------------------------------------------------------------------------------
# The task


class Mae(Unsupervised):
    """Masked autoencoding of any backbone that computes visible patches only.

    Raises ValueError for a backbone without tokens or without `View.visible`, and for images of one patch.
    """

    def __init__(
        self,
        model: Backbone,
        *,
        preprocessing: Preprocessing,
        cfg: MaeConfig,
        augment: AugmentConfig,
        seed: int,
        known: Split | None = None,
        neighbours: bool = False,
    ) -> None:
        super().__init__(model, preprocessing=preprocessing, augment=augment, seed=seed, known=known, neighbours=neighbours)
        self.cfg = cfg
        width, grid = _check_backbone(model, preprocessing)
        _require_patches(grid[0] * grid[1])
        self.patch = preprocessing.img_size[0] // grid[0], preprocessing.img_size[1] // grid[1]
        pixels = self.patch[0] * self.patch[1] * preprocessing.in_channels
        if cfg.norm_pixels and pixels < 2:
            raise ValueError("mae.norm_pixels true needs patches of at least 2 numbers; use a larger patch, or false")
        self.decoder = Decoder(cfg, width=width, pixels=pixels)

    # ---- training

    def batch(self, raw: RawBatch, *, epoch: int, img_size: Pair, patch_size: int | None = None) -> Batch:
        """Return augmented images and their visible patches. Raises ValueError for a patch size other than the decoder's."""
        if patch_size is not None:
            self.check_patches([patch_size])
        batch = self.augmented(raw, epoch=epoch, img_size=img_size)
        draws = Draws(seed=self.seed, epoch=epoch, indexes=raw.indexes, turns=raw.turns)
        visible = self.draw_visible(draws, grid_of(img_size, self.patch))
        return replace(batch, visible=visible.to(batch.images.device, non_blocking=True))

    def check_patches(self, patch_sizes: Sequence[int]) -> None:
        """Raise ValueError for a patch size other than the decoder's."""
        for patch_size in patch_sizes:
            if pair(patch_size) != self.patch:
                trained = f"{self.patch[0]}x{self.patch[1]}"
                raise ValueError(
                    f"MAE predicts the pixels of patches of {trained}, not of {patch_size}; leave train.patch_sizes out"
                )

    def draw_visible(self, draws: Draws, grid: Pair) -> Visible:
        """Draw the visible patches of each image, sorted: ⌊(1 - mask_ratio) L⌋, with at least one visible and one hidden.

        Raises ValueError for images of one patch.
        """
        patches = grid[0] * grid[1]
        _require_patches(patches)
        kept = min(max(1, int(patches * (1 - self.cfg.mask_ratio))), patches - 1)
        order = draws.uniform("mae_mask", patches).argsort(dim=1, stable=True)  # (B, L)
        return order[:, :kept].sort(dim=1).values

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return "loss": mean squared error of the hidden patches' pixels."""
        assert batch.visible is not None
        patches = to_patches(batch.images, self.patch)
        if self.cfg.norm_pixels:
            mean, std = patch_statistics(patches)
            patches = (patches - mean) / std
        predicted = self.predict(batch.images, batch.visible)
        return {"loss": masked_loss(predicted, patches, hidden_patches(batch.visible, patches.shape[1]))}

    def predict(self, images: Images, visible: Visible) -> Float[Tensor, "B L X"]:
        """Predict the pixels of every patch, normalised per patch with `norm_pixels`, from the visible ones."""
        features = self.model.features(images, View(visible=visible))
        assert features.tokens is not None
        assert features.grid is not None
        return self.decoder(features.tokens, visible, prefix=features.prefix, grid=features.grid)

    def leaves_parameters_out(self) -> bool:
        """See Task.leaves_parameters_out: the loss does not use modules after the tokens, such as attention pooling."""
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        with in_eval_mode(self.model):
            tokens = _one_patch_features(self.model, self.preprocessing).tokens
        assert tokens is not None
        gradients = torch.autograd.grad(tokens.float().sum(), learning, allow_unused=True) if learning else ()
        return any(gradient is None for gradient in gradients)

    def collapse_advice(self, cause: CollapseCause) -> str:
        """See Task.collapse_advice: without a rate that is too high, constant predictions come from constant targets."""
        if cause == "accuracy fell":
            return f"lower optim.lr, or mae.mask_ratio, which is {self.cfg.mask_ratio:g}"
        pixels = "" if self.cfg.norm_pixels else ", or set mae.norm_pixels true"
        return f"lower optim.lr, or lengthen optim.warmup{pixels}"

    # ---- pictures

    def picture(self, split: Split, *, device: torch.device, autocast_dtype: torch.dtype | None = None) -> Image.Image | None:
        """Draw original, visible patches and reconstruction of some images of a split in evaluation view, one row each."""
        chosen = torch.linspace(0, len(split) - 1, min(PICTURED, len(split))).round().long()
        raw, failures = split.read(chosen)
        split.record(failures)
        if not len(raw):
            return None
        images = normalise(raw.images.to(device), self.preprocessing)
        draws = Draws(seed=self.seed, epoch=0, indexes=raw.indexes.to(device))
        visible = self.draw_visible(draws, grid_of(self.preprocessing.img_size, self.patch))
        with autocast(device, autocast_dtype):
            return reconstruct(self, images, visible)


def hidden_patches(visible: Visible, patches: int) -> Bool[Tensor, "B L"]:
    """Mask that is True for the patches that are not visible."""
    return torch.ones(len(visible), patches, dtype=torch.bool, device=visible.device).scatter(1, visible, False)


def _require_patches(patches: int) -> None:
    """Raise ValueError for images of one patch: at least one must be hidden, and one visible."""
    if patches < 2:
        raise ValueError("MAE needs images of at least 2 patches; use a smaller patch or larger images")


def _check_backbone(model: Backbone, preprocessing: Preprocessing) -> tuple[int, Pair]:
    """Return width of the tokens and grid. Raises ValueError for a backbone that can't compute visible patches alone."""
    with in_eval_mode(model), torch.no_grad():
        features = _one_patch_features(model, preprocessing)
    if features.tokens is None or features.grid is None or features.tokens.shape[1] != features.prefix + 1:
        raise ValueError(
            f"MAE needs a backbone that computes visible patches only; {type(model).__name__} does not, a ViT does"
        )
    return features.tokens.shape[2], features.grid


def _one_patch_features(model: Backbone, preprocessing: Preprocessing) -> Features:
    """Compute a backbone's features of one image whose first patch alone is visible."""
    weight = next(model.parameters())
    images = torch.zeros(1, preprocessing.in_channels, *preprocessing.img_size, device=weight.device, dtype=weight.dtype)
    try:
        return model.features(images, View(visible=torch.zeros(1, 1, dtype=torch.long, device=weight.device)))
    except ValueError as error:
        raise ValueError(f"MAE needs a backbone that computes visible patches only: {error}") from error


# --------------------------------------------------------------------------------------------------------------------
# From settings


def mae_task(
    settings: Settings,
    model: Backbone,
    *,
    split: Split,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    device: torch.device,
    autocast_dtype: torch.dtype | None,
) -> Mae:
    """Build the task of a run. Classes, if the images have them, are for the k-NN score only."""
    return Mae(
        model,
        preprocessing=preprocessing,
        cfg=settings.mae,
        augment=settings.augment,
        seed=settings.train.seed,
        neighbours=has_classes(split),
    ).to(device)


def check_mae(settings: Settings, model: Backbone) -> None:
    """Raise ValueError for settings and a model, on the meta device, that masked autoencoding does not support."""
    cfg = settings.model
    zeros, ones = (0.0,) * cfg.in_channels, (1.0,) * cfg.in_channels
    images = Preprocessing(img_size=pair(cfg.img_size), in_channels=cfg.in_channels, mean=zeros, std=ones)
    with torch.device("meta"), torch.no_grad():
        task = Mae(model, preprocessing=images, cfg=settings.mae, augment=settings.augment, seed=0)
        _one_patch_features(model.train(), images)
    task.check_patches(settings.train.patch_sizes)


# --------------------------------------------------------------------------------------------------------------------
# Pictures

_GAP_PX, _SIDE_PX, _HIDDEN = 4, 96, 128


@torch.no_grad()
def reconstruct(task: Mae, images: Images, visible: Visible | None = None) -> Image.Image:
    """Draw original, visible patches and reconstruction of each image, one row each. Images are normalised.

    Without `visible`, the patches are drawn by the task's seed and the image's position. With `norm_pixels`, predictions get
    the mean and standard deviation of the original patch. Images of 1 or 3 channels have their colours; of others, the mean
    of all channels is shown.
    """
    grid = grid_of((images.shape[2], images.shape[3]), task.patch)
    if visible is None:
        visible = task.draw_visible(Draws(seed=task.seed, epoch=0, indexes=torch.arange(len(images))), grid)
    visible = visible.to(images.device)
    with in_eval_mode(task):
        predicted = task.predict(images, visible).float()
    patches = to_patches(images.float(), task.patch)
    if task.cfg.norm_pixels:
        mean, std = patch_statistics(patches)
        predicted = predicted * std + mean
    hidden = hidden_patches(visible, patches.shape[1])[:, :, None]
    whole = _to_bytes(images.float(), task.preprocessing)
    rebuilt = _to_bytes(from_patches(torch.where(hidden, predicted, patches), patch=task.patch, grid=grid), task.preprocessing)
    cover = from_patches(hidden.expand_as(patches).float(), patch=task.patch, grid=grid)[:, :1] > 0
    masked = torch.where(cover, torch.full_like(whole, _HIDDEN), whole)
    return _sheet([whole, masked, rebuilt])


def _to_bytes(images: Images, preprocessing: Preprocessing) -> Tensor:
    """Convert normalised images to pixels 0 … 255 (B, 1 or 3, H, W)."""
    mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    pixels = (images * std + mean).clamp(0, 1) * 255
    return (pixels if pixels.shape[1] in (1, 3) else pixels.mean(dim=1, keepdim=True)).round().byte()


def _sheet(columns: list[Tensor]) -> Image.Image:
    """Arrange columns of images (B, c, H, W) on white; small ones are enlarged by a whole factor."""
    count, channels, height, width = columns[0].shape
    factor = max(1, _SIDE_PX // max(height, width))
    tall, wide = height * factor + _GAP_PX, width * factor + _GAP_PX
    mode = "L" if channels == 1 else "RGB"
    sheet = Image.new(mode, (len(columns) * wide + _GAP_PX, count * tall + _GAP_PX), "white")
    for place, column in enumerate(columns):
        for row, pixels in enumerate(column.cpu().permute(0, 2, 3, 1).numpy()):
            tile = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
            tile = tile.resize((width * factor, height * factor), Image.Resampling.NEAREST)
            sheet.paste(tile, (_GAP_PX + place * wide, _GAP_PX + row * tall))
    return sheet
