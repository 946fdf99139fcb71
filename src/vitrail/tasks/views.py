"""Base of the tasks that compare views of an image: global and local crops, drawn on the device."""

# B batch · C channels · N images of the split · v views of a group · h w view · E embedding

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vitrail.data.batch import Batch, RawBatch
from vitrail.data.dataset import Split
from vitrail.data.views import draw_views
from vitrail.evaluate.evaluate import in_eval_mode
from vitrail.models.backbone import Backbone
from vitrail.settings import AugmentConfig, Pair, Preprocessing, Settings, ViewsConfig, pair
from vitrail.tasks.unsupervised import Unsupervised


class MultiView(Unsupervised):
    """Task on views of each image. `sizes` are the sizes of all training images, in pixels, which crops are drawn for.

    Raises ValueError for local views that the model can't take.
    """

    def __init__(
        self,
        model: Backbone,
        *,
        preprocessing: Preprocessing,
        views: ViewsConfig,
        sizes: Int64[Tensor, "N 2"],
        seed: int,
        known: Split | None = None,
        neighbours: bool = False,
    ) -> None:
        super().__init__(
            model, preprocessing=preprocessing, augment=AugmentConfig(), seed=seed, known=known, neighbours=neighbours
        )
        self.views, self.sizes = views, sizes

    def batch(self, raw: RawBatch, *, epoch: int, img_size: Pair, patch_size: int | None = None) -> Batch:
        """Return the views of each image. Raises ValueError for another patch size than the model's."""
        if patch_size is not None:
            raise ValueError("views of several sizes have the model's own patches; leave train.patch_sizes out")
        views = draw_views(
            raw,
            cfg=self.views,
            preprocessing=replace(self.preprocessing, img_size=img_size),
            sizes=self.sizes,
            local_size=local_size(img_size, self.views, unit=self.model.side_unit),
            seed=self.seed,
            epoch=epoch,
            apply=self.apply_colors,
        )
        device = views[0].device
        return Batch(
            images=views[0][:, 0],
            targets=torch.zeros(len(raw), 0, device=device),
            labels=raw.labels.to(device, non_blocking=True),
            indexes=raw.indexes,
            views=views,
        )


def embed_views(model: Backbone, views: tuple[Float[Tensor, "B _v C _h _w"], ...]) -> Float[Tensor, "B V E"]:
    """Compute the pooled embedding of every view, one pass for each size; the views stand in their order."""
    parts = [model.embedding(group.flatten(0, 1)).unflatten(0, group.shape[:2]) for group in views]
    return torch.cat(parts, dim=1)


def embedding_width(model: Backbone, preprocessing: Preprocessing) -> int:
    """Return the width E of the pooled embedding."""
    weight = next(model.parameters())
    images = torch.zeros(1, preprocessing.in_channels, *preprocessing.img_size, device=weight.device, dtype=weight.dtype)
    with in_eval_mode(model), torch.no_grad():
        return model.embedding(images).shape[1]


def local_size(img_size: Pair, cfg: ViewsConfig, *, unit: Pair) -> Pair:
    """Return the size of local views: a share of the image's sides, in whole units, and one unit at least."""
    height, width = (max(1, round(side * cfg.local_size / step)) * step for side, step in zip(img_size, unit, strict=True))
    return height, width


def check_views(settings: Settings, model: Backbone) -> None:
    """Raise ValueError for settings and a model, on the meta device, that can't learn from views of two sizes."""
    if settings.train.patch_sizes:
        raise ValueError("views of several sizes have the model's own patches; leave train.patch_sizes out")
    cfg, views = settings.model, settings.views
    sizes = [pair(cfg.img_size)]
    if views.local_crops:
        sizes.append(local_size(sizes[0], views, unit=model.side_unit))
    with torch.device("meta"), torch.no_grad():
        for size in sizes:
            model.embedding(torch.zeros(2, cfg.in_channels, *size))
