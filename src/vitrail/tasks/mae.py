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
from vitrail.tasks.masks import draw_mask, mask_at, places_of
from vitrail.tasks.patches import Images, from_patches, patch_statistics, pixels_of, to_patches
from vitrail.tasks.reconstruct import pictured_images, reconstruction_sheet
from vitrail.tasks.task import CollapseCause
from vitrail.tasks.unsupervised import Unsupervised, leaves_out

Visible = Int64[Tensor, "B V"]


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
        hidden = draw_mask(draws, masking=self.cfg.masking, grid=grid, count=patches - kept, stream="mae_mask")
        return places_of(~hidden)

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
        with in_eval_mode(self.model):
            tokens = _one_patch_features(self.model, self.preprocessing).tokens
        assert tokens is not None
        return leaves_out(self.model, tokens)

    def collapse_advice(self, cause: CollapseCause) -> str:
        """See Task.collapse_advice: without a rate that is too high, constant predictions come from constant targets."""
        if cause == "accuracy fell":
            return f"lower optim.lr, or mae.mask_ratio, which is {self.cfg.mask_ratio:g}"
        pixels = "" if self.cfg.norm_pixels else ", or set mae.norm_pixels true"
        return f"lower optim.lr, or lengthen optim.warmup{pixels}"

    # ---- pictures

    def picture(self, split: Split, *, device: torch.device, autocast_dtype: torch.dtype | None = None) -> Image.Image | None:
        """Draw original, visible patches and reconstruction of some images of a split in evaluation view, one row each."""
        chosen = pictured_images(split, self.preprocessing, device)
        if chosen is None:
            return None
        images, indexes = chosen
        draws = Draws(seed=self.seed, epoch=0, indexes=indexes)
        visible = self.draw_visible(draws, grid_of(self.preprocessing.img_size, self.patch))
        with autocast(device, autocast_dtype):
            return reconstruct(self, images, visible)


def hidden_patches(visible: Visible, patches: int) -> Bool[Tensor, "B L"]:
    """Mask that is True for the patches that are not visible."""
    return ~mask_at(visible, patches)


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


@torch.no_grad()
def reconstruct(task: Mae, images: Images, visible: Visible | None = None) -> Image.Image:
    """Draw original, visible patches and reconstruction of each image, one row each. Images are normalised.

    Without `visible`, the patches are drawn by the task's seed and the image's position. With `norm_pixels`, predictions get
    the mean and standard deviation of the original patch.
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
    hidden = pixels_of(hidden_patches(visible, patches.shape[1]), patch=task.patch, grid=grid)
    rebuilt = from_patches(predicted, patch=task.patch, grid=grid)
    return reconstruction_sheet(images, rebuilt, hidden, preprocessing=task.preprocessing)
