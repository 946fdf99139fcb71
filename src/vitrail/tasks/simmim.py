"""SimMIM (Xie et al. 2022): masked squares become a mask token, and one layer predicts their pixels from the last map."""

# B batch · C channels · H W image · D width · S side of a cell of the last map in pixels · gh gw its grid · M masked patches

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn

from vitrail.data.batch import Batch
from vitrail.data.dataset import Split
from vitrail.data.draws import Draws
from vitrail.evaluate.embedding import has_classes
from vitrail.evaluate.evaluate import in_eval_mode
from vitrail.models.backbone import Backbone
from vitrail.models.dense import patch_map
from vitrail.models.device import autocast
from vitrail.settings import AugmentConfig, Pair, Preprocessing, Settings, SimmimConfig
from vitrail.tasks.masked import MaskedModelling, WithMaskToken, last_tokens, preprocessing_of_model, refuse_patch_sizes
from vitrail.tasks.masks import Mask, Places, draw_squares, mask_at, masked_count, places_of, square_of
from vitrail.tasks.patches import Images, pixels_of, shuffle_pixels
from vitrail.tasks.reconstruct import pictured_images, reconstruction_sheet


def masked_l1(predicted: Images, images: Images, mask: Bool[Tensor, "B 1 H W"]) -> Tensor:
    """Compute the mean absolute error of the masked pixels, over all channels (section 3.4)."""
    errors = (predicted.float() - images).abs() * mask
    return errors.sum() / (mask.sum() * images.shape[1])


class PixelHead(WithMaskToken):
    """Mask token of width `stem`, and a 1x1 convolution from the last map to the pixels of its cells (section 3.3)."""

    def __init__(self, *, stem: int, width: int, stride: Pair, channels: int) -> None:
        super().__init__(stem)
        self.stride = stride
        self.proj = nn.Conv2d(width, channels * stride[0] * stride[1], 1)

    def forward(self, last: Float[Tensor, "B D gh gw"]) -> Images:
        """Predict the pixels of the image."""
        return shuffle_pixels(self.proj(last), self.stride)


class Simmim(MaskedModelling):
    """SimMIM of any backbone whose stem has patches: a ViT, a Swin, a CaiT.

    Predictions are made from the tokens after the last norm. Raises ValueError for a backbone without `stem_tokens`, and for
    images that the cells of its last map do not divide.
    """

    def __init__(
        self,
        model: Backbone,
        *,
        preprocessing: Preprocessing,
        cfg: SimmimConfig,
        augment: AugmentConfig,
        seed: int,
        known: Split | None = None,
        neighbours: bool = False,
    ) -> None:
        super().__init__(model, preprocessing=preprocessing, augment=augment, seed=seed, known=known, neighbours=neighbours)
        self.cfg = cfg
        width, _, stride = last_tokens(model, preprocessing, method="SimMIM")
        require_cells(preprocessing.img_size, stride)
        grid, stem = model.stem_tokens(preprocessing.img_size)
        self.patch = preprocessing.img_size[0] // grid[0], preprocessing.img_size[1] // grid[1]
        self.head = PixelHead(stem=stem, width=width, stride=stride, channels=preprocessing.in_channels)
        masked_count(grid[0] * grid[1], cfg.mask_ratio)  # which requires two patches

    @property
    def mask_token(self) -> Float[Tensor, " D"]:
        """See MaskedModelling.mask_token."""
        return self.head.mask_token

    def draw_mask(self, draws: Draws, img_size: Pair) -> Mask:
        """See MaskedModelling.draw_mask: random squares."""
        require_cells(img_size, self.head.stride)
        grid, _ = self.model.stem_tokens(img_size)
        square = square_of(grid, self.patch, side_px=self.cfg.mask_size)
        return draw_squares(draws, grid=grid, square=square, ratio=self.cfg.mask_ratio, stream="simmim_mask")

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return "loss": mean absolute error of the masked pixels, normalised as the model takes them."""
        assert batch.masked is not None
        predicted = self.predict(batch.images, batch.masked)
        return {"loss": masked_l1(predicted, batch.images, self.masked_pixels(batch.images, batch.masked))}

    def predict(self, images: Images, masked: Places) -> Images:
        """Predict all pixels of images whose masked patches are hidden."""
        features = self.masked_features(images, masked)
        assert features.tokens is not None
        assert features.grid is not None
        predicted: Tensor = self.head(patch_map(features.tokens, prefix=features.prefix, grid=features.grid))
        return predicted

    def masked_pixels(self, images: Images, masked: Places) -> Bool[Tensor, "B 1 H W"]:
        """Return the mask of the pixels of the masked patches."""
        grid = images.shape[2] // self.patch[0], images.shape[3] // self.patch[1]
        return pixels_of(mask_at(masked, grid[0] * grid[1]), patch=self.patch, grid=grid)

    @torch.no_grad()
    def picture(self, split: Split, *, device: torch.device, autocast_dtype: torch.dtype | None = None) -> Image.Image | None:
        """Draw original, unmasked pixels and reconstruction of some images of a split in evaluation view, one row each."""
        chosen = pictured_images(split, self.preprocessing, device)
        if chosen is None:
            return None
        images, indexes = chosen
        masked = places_of(self.draw_mask(Draws(seed=self.seed, epoch=0, indexes=indexes), self.preprocessing.img_size)).to(
            device
        )
        with in_eval_mode(self), autocast(device, autocast_dtype):
            predicted = self.predict(images, masked)
        return reconstruction_sheet(images, predicted, self.masked_pixels(images, masked), preprocessing=self.preprocessing)


def require_cells(img_size: Pair, stride: Pair) -> None:
    """Raise ValueError for images that the cells of the last map do not divide."""
    if any(side % cell for side, cell in zip(img_size, stride, strict=True)):
        height, width = (max(1, round(side / cell)) * cell for side, cell in zip(img_size, stride, strict=True))
        raise ValueError(
            f"SimMIM predicts pixels from the last map, whose cells of {stride[0]}x{stride[1]} px do not divide images of "
            f"{img_size[0]}x{img_size[1]}; use {height}x{width}, or a smaller patch"
        )


def simmim_task(
    settings: Settings,
    model: Backbone,
    *,
    split: Split,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    device: torch.device,
    autocast_dtype: torch.dtype | None,
) -> Simmim:
    """Build the task of a run. Classes, if the images have them, are for the k-NN score only."""
    return Simmim(
        model,
        preprocessing=preprocessing,
        cfg=settings.simmim,
        augment=settings.augment,
        seed=settings.train.seed,
        neighbours=has_classes(split),
    ).to(device)


def check_simmim(settings: Settings, model: Backbone) -> None:
    """Raise ValueError for settings and a model, on the meta device, that SimMIM does not support."""
    if settings.train.patch_sizes:
        refuse_patch_sizes()
    with torch.device("meta"):
        task = Simmim(
            model, preprocessing=preprocessing_of_model(settings), cfg=settings.simmim, augment=settings.augment, seed=0
        )
    cells, units = task.head.stride, model.side_unit
    if settings.train.start_size is not None and any(unit % cell for unit, cell in zip(units, cells, strict=True)):
        raise ValueError(
            f"train.start_size gives sizes in steps of {units[0]} px, and SimMIM needs steps of {cells[0]} with this model; "
            "leave it out"
        )
