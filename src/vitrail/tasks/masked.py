"""Base of the tasks with a mask token: some patches of the stem are replaced by it, and predicted."""

# B batch · C channels · H W image · L patches · M masked patches · D width of the stem

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.data.batch import Batch, RawBatch
from vitrail.data.draws import Draws
from vitrail.evaluate.evaluate import in_eval_mode
from vitrail.models.backbone import Backbone, Features, MaskedPatches, View
from vitrail.settings import Pair, Preprocessing, Settings, pair
from vitrail.tasks.masks import Mask, Places, mask_at, places_of
from vitrail.tasks.patches import Images
from vitrail.tasks.unsupervised import Unsupervised, leaves_out


class WithMaskToken(nn.Module):
    """Module beside a backbone that holds the mask token, drawn from N(0, 0.02) as in the papers' code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)


class MaskedModelling(Unsupervised):
    """Task that masks patches of a backbone's stem. Sub-classes draw the masks, and predict what was there."""

    @property
    @abstractmethod
    def mask_token(self) -> Float[Tensor, " D"]:
        """Mask token."""

    @abstractmethod
    def draw_mask(self, draws: Draws, img_size: Pair) -> Mask:
        """Draw the masked patches of images of this size, as many of each. Raises ValueError for an invalid size."""

    def batch(self, raw: RawBatch, *, epoch: int, img_size: Pair, patch_size: int | None = None) -> Batch:
        """Return augmented images and their masked patches. Raises ValueError for a patch size other than the model's."""
        if patch_size is not None:
            refuse_patch_sizes()
        batch = self.augmented(raw, epoch=epoch, img_size=img_size)
        draws = Draws(seed=self.seed, epoch=epoch, indexes=raw.indexes, turns=raw.turns)
        masked = places_of(self.draw_mask(draws, img_size))
        return replace(batch, masked=masked.to(batch.images.device, non_blocking=True))

    def masked_features(self, images: Images, masked: Places) -> Features:
        """Compute the backbone's features with the mask token in the place of the masked patches."""
        grid, _ = self.model.stem_tokens((images.shape[2], images.shape[3]))
        return self.model.features(images, View(masked=MaskedPatches(mask_at(masked, grid[0] * grid[1]), self.mask_token)))

    def leaves_parameters_out(self) -> bool:
        """See Task.leaves_parameters_out: the loss does not use modules after the tokens, such as attention pooling."""
        with in_eval_mode(self.model):
            features = blank_features(self.model, self.preprocessing)
        assert features.tokens is not None
        return leaves_out(self.model, features.tokens[:, features.prefix :])


def refuse_patch_sizes() -> None:
    """Raise ValueError: masks and predictions are those of the model's own patches."""
    raise ValueError("masked patches are the model's own, of one size; leave train.patch_sizes out")


def blank_features(model: Backbone, preprocessing: Preprocessing) -> Features:
    """Compute a backbone's features of one image of zeros."""
    weight = next(model.parameters())
    images = torch.zeros(1, preprocessing.in_channels, *preprocessing.img_size, device=weight.device, dtype=weight.dtype)
    return model.features(images)


def last_tokens(model: Backbone, preprocessing: Preprocessing, *, method: str) -> tuple[int, Pair, Pair]:
    """Return the width of the patch tokens behind the last block, their grid, and the pixels from one to the next.

    Raises ValueError for a backbone without a stem that a mask token can stand in, or without such tokens.
    """
    try:
        model.stem_tokens(preprocessing.img_size)
    except ValueError as error:
        raise ValueError(f"{method} needs a backbone that takes a mask token: {error}") from error
    with in_eval_mode(model), torch.no_grad():
        features = blank_features(model, preprocessing)
    tokens, grid, (height, width) = features.tokens, features.grid, preprocessing.img_size
    if tokens is None or grid is None or tokens.shape[1] != features.prefix + grid[0] * grid[1]:
        raise ValueError(f"{method} needs a backbone with a token for each patch; {type(model).__name__} has none, a ViT has")
    return tokens.shape[2], grid, features.stride or (-(-height // grid[0]), -(-width // grid[1]))


def preprocessing_of_model(settings: Settings) -> Preprocessing:
    """Return a preprocessing of the model's image size and channels, to check settings before data are read."""
    cfg = settings.model
    zeros, ones = (0.0,) * cfg.in_channels, (1.0,) * cfg.in_channels
    return Preprocessing(img_size=pair(cfg.img_size), in_channels=cfg.in_channels, mean=zeros, std=ones)
