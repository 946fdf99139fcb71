"""DINO (Caron et al. 2021): a student learns its running mean's view of other crops; iBOT's masked patches as an option."""

# B images · G global views · V views · n any views · E embedding · D width of the tokens · K prototypes · L patches
# M masked patches at most · N images of the split · F features

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from vitrail.data.batch import Batch, RawBatch
from vitrail.data.block_masks import draw_block_masks
from vitrail.data.dataset import Split
from vitrail.data.views import draws_of_views
from vitrail.evaluate.embedding import has_classes
from vitrail.evaluate.evaluate import in_eval_mode
from vitrail.models.backbone import Backbone, MaskedPatches, View
from vitrail.settings import DinoConfig, Pair, Preprocessing, Settings, ViewsConfig, pair
from vitrail.tasks.prototypes import Center, DinoHead, InUse
from vitrail.tasks.task import CollapseCause
from vitrail.tasks.views import MultiView, check_views, embed_views, embedding_width

MASKED_VIEWS = 0.5
"""Probability that a global view has masked patches (Zhou et al. 2022, section 4.1)."""


# --------------------------------------------------------------------------------------------------------------------
# Schedules over the progress of a run, from 0 to 1


def teacher_temperature(cfg: DinoConfig, progress: float) -> float:
    """Temperature of the teacher's softmax: linear from the first to the last value over `warmup_share`, then constant."""
    share = min(1.0, progress / cfg.warmup_share) if cfg.warmup_share else 1.0
    return cfg.warmup_temperature + (cfg.teacher_temperature - cfg.warmup_temperature) * share


def teacher_momentum(cfg: DinoConfig, progress: float) -> float:
    """Momentum of the teacher's weights: half a cosine from `teacher_momentum` to 1."""
    return 1 - (1 - cfg.teacher_momentum) * 0.5 * (1 + math.cos(math.pi * progress))


# --------------------------------------------------------------------------------------------------------------------
# Losses


def view_loss(student: Float[Tensor, "B V K"], targets: Float[Tensor, "B G K"], *, temperature: float) -> Float[Tensor, ""]:
    """Cross-entropy -Σ_k p_k log softmax(z / τ)_k of all pairs of a teacher's and another student's view, averaged.

    The student's first G views are those of the teacher; a view is not compared with itself.
    """
    logs = F.log_softmax(student.float() / temperature, dim=-1)
    images, shown = targets.shape[:2]
    same = (targets * logs[:, :shown]).sum()
    every = (targets.sum(1) * logs.sum(1)).sum()  # no matrix product, which autocast would round
    return (same - every) / (images * shown * (logs.shape[1] - 1))


def patch_loss(
    student: Float[Tensor, "n M K"], targets: Float[Tensor, "n M K"], masked: Bool[Tensor, "n M"], *, temperature: float
) -> Float[Tensor, ""]:
    """Cross-entropy of the masked patches, averaged over those of a view, then over all views; one without masks counts 0."""
    entropy = -(targets * F.log_softmax(student.float() / temperature, dim=-1)).sum(-1)  # (n, M)
    return ((entropy * masked).sum(1) / masked.sum(1).clamp(min=1)).mean()


# --------------------------------------------------------------------------------------------------------------------
# The task


class MaskedPart(nn.Module):
    """Mask token, and centre of the teacher's patch outputs, of iBOT's masked loss."""

    def __init__(self, width: int, cfg: DinoConfig) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.center = Center(cfg.prototypes, cfg.center_momentum)


class Dino(MultiView):
    """Self-distillation without labels, of any backbone; with `ibot_weight`, of one whose tokens are its patches.

    The student, `model` with its head, sees all views. The teacher, a running mean of the student, sees the global ones, and
    is what is scored and saved. It is in evaluation mode, so that nothing is dropped; its buffers are the student's.
    """

    def __init__(
        self,
        model: Backbone,
        *,
        preprocessing: Preprocessing,
        cfg: DinoConfig,
        views: ViewsConfig,
        sizes: Int64[Tensor, "N 2"],
        seed: int,
        known: Split | None = None,
        neighbours: bool = False,
    ) -> None:
        super().__init__(
            model, preprocessing=preprocessing, views=views, sizes=sizes, seed=seed, known=known, neighbours=neighbours
        )
        self.cfg = cfg
        self.head = DinoHead(embedding_width(model, preprocessing), cfg)
        self.center = Center(cfg.prototypes, cfg.center_momentum)
        self.in_use = InUse(cfg.prototypes)
        self.teacher = copy.deepcopy(model).requires_grad_(False).eval()
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False).eval()
        self.masked: MaskedPart | None = None
        if cfg.ibot_weight:
            weight = next(model.parameters())
            images = torch.zeros(
                1, preprocessing.in_channels, *preprocessing.img_size, device=weight.device, dtype=weight.dtype
            )
            with in_eval_mode(model), torch.no_grad():
                check_patches(model, images)
            self.masked = MaskedPart(model.stem_tokens(preprocessing.img_size)[1], cfg)
        self.register_buffer("temperature", torch.zeros(()), persistent=False)
        self.temperature: Tensor
        self.momentum = cfg.teacher_momentum
        self.before_step(step=0, epoch=0, progress=0.0)

    # ---- batches

    def batch(self, raw: RawBatch, *, epoch: int, img_size: Pair, patch_size: int | None = None) -> Batch:
        """Return the views of each image, and with iBOT the masked patches of the global ones."""
        batch = super().batch(raw, epoch=epoch, img_size=img_size, patch_size=patch_size)
        if self.masked is None:
            return batch
        masks = self.draw_masks(raw, epoch=epoch, grid=self.model.stem_tokens(img_size)[0])
        return replace(batch, view_masks=masks.to(batch.images.device, non_blocking=True))

    def draw_masks(self, raw: RawBatch, *, epoch: int, grid: Pair) -> Bool[Tensor, "B G L"]:
        """Draw the masked patches of the global views: half of these have none, the others a share in `ibot_mask_ratio`."""
        shown, patches, (low, high) = self.views.global_crops, grid[0] * grid[1], self.cfg.ibot_mask_ratio
        draws = draws_of_views(
            raw,
            views=torch.arange(shown).repeat(len(raw)),
            rows=torch.arange(len(raw)).repeat_interleave(shown),
            cfg=self.views,
            seed=self.seed,
            epoch=epoch,
        )
        share, chosen = draws.uniform("ibot_masks", 2).unbind(1)
        counts = ((low + (high - low) * share) * patches).round().long().clamp(1, most_masked(patches, self.cfg))
        masks = draw_block_masks(draws, counts * (chosen < MASKED_VIEWS), grid=grid)  # (B G, L)
        return masks.unflatten(0, (len(raw), shown))

    # ---- losses

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return "loss", and the entropy of the teacher's targets: at 0 or ln K they have collapsed. With iBOT, both losses."""
        assert batch.views is not None
        shown, *smaller = batch.views
        images, tau, counted = shown.flatten(0, 1), self.cfg.student_temperature, not batch.stands_in
        pooled, patches = self.encode(self.model, images, batch.view_masks)
        embeddings = pooled.unflatten(0, shown.shape[:2])  # (B, G, E)
        if smaller:
            embeddings = torch.cat([embeddings, embed_views(self.model, tuple(smaller))], dim=1)  # (B, V, E)
        with torch.no_grad():
            seen, seen_patches = self.encode(self.teacher, images)
            outputs = self.teacher_head(seen.unflatten(0, shown.shape[:2]))  # (B, G, K)
            targets = self.center.targets(outputs, self.temperature)
            self.center.add(outputs, counted=counted)
            self.in_use.add(targets, counted=counted)
        loss = view_loss(self.head(embeddings), targets, temperature=tau)
        losses = {"loss": loss, "teacher_entropy": torch.special.entr(targets).sum(-1).mean()}
        if self.masked is None:
            return losses
        assert batch.view_masks is not None
        assert patches is not None
        assert seen_patches is not None
        masks = batch.view_masks.flatten(0, 1)  # (B G, L)
        places = masks.byte().argsort(dim=1, descending=True, stable=True)[:, : most_masked(masks.shape[1], self.cfg)]
        with torch.no_grad():
            outputs = self.teacher_head(seen_patches)  # (B G, L, K)
            self.masked.center.add(outputs, counted=counted)
            targets = self.masked.center.targets(rows_at(outputs, places), self.temperature)
        ibot = patch_loss(self.head(rows_at(patches, places)), targets, masks.gather(1, places), temperature=tau)
        return losses | {"loss": loss + self.cfg.ibot_weight * ibot, "dino": loss, "ibot": ibot}

    def encode(
        self, model: Backbone, images: Float[Tensor, "n C h w"], masks: Bool[Tensor, "B G L"] | None = None
    ) -> tuple[Float[Tensor, "n E"], Float[Tensor, "n L D"] | None]:
        """Return the pooled embedding and, with iBOT, the patches' tokens; those of `masks` are hidden from the model."""
        if self.masked is None:
            return model.embedding(images), None
        masked = None if masks is None else MaskedPatches(masks.flatten(0, 1), self.masked.mask_token)
        features = model.features(images, View(masked=masked))
        assert features.tokens is not None
        return features.pooled, features.tokens[:, features.prefix :]

    # ---- schedules and the teacher

    def before_step(self, *, step: int, epoch: int, progress: float) -> None:
        """Set temperature and momentum of the teacher, and freeze the prototypes in the first epochs."""
        self.temperature.fill_(teacher_temperature(self.cfg, progress))
        self.head.rate.fill_(float(epoch >= self.cfg.freeze_last_epochs))
        self.momentum = teacher_momentum(self.cfg, progress)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Average the student into the teacher, θ' ← m θ' + (1 - m) θ, and the step's outputs into the centres."""
        for mean, now in ((self.teacher, self.model), (self.teacher_head, self.head)):
            torch._foreach_lerp_(list(mean.parameters()), list(now.parameters()), 1 - self.momentum)
            for old, new in zip(mean.buffers(), now.buffers(), strict=True):
                old.copy_(new)
        self.center.update()
        self.in_use.update()
        if self.masked is not None:
            self.masked.center.update()

    def train(self, mode: bool = True) -> Dino:
        """Set the mode of all but the teacher, which stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        self.teacher_head.eval()
        return self

    def collapse_advice(self, cause: CollapseCause) -> str:
        """See Task.collapse_advice: centring works against one prototype for all, a low temperature against all alike."""
        cfg = self.cfg
        if cause == "accuracy fell":
            return f"lower optim.lr, or raise dino.teacher_momentum, which starts at {cfg.teacher_momentum:g}"
        centre = f"set dino.center_momentum below 1; it is {cfg.center_momentum:g}"
        if cfg.center_momentum < 1:
            centre = f"lower dino.center_momentum, which is {cfg.center_momentum:g}, or dino.teacher_temperature"
        return f"{centre}; else lower optim.lr, or raise dino.freeze_last_epochs"

    def prototypes_in_use(self) -> float | None:
        """See Task.prototypes_in_use: those of the teacher, on the global views."""
        return self.in_use.take()

    def product(self) -> Backbone:
        """Return the teacher's backbone, which is better than the student's all along (section 5.2)."""
        return self.teacher


def most_masked(patches: int, cfg: DinoConfig) -> int:
    """Return the greatest number of masked patches of a view."""
    return max(1, round(cfg.ibot_mask_ratio[1] * patches))


def rows_at(x: Float[Tensor, "n L F"], places: Int64[Tensor, "n M"]) -> Float[Tensor, "n M F"]:
    """Return some rows of each item."""
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))


def check_patches(model: Backbone, images: Float[Tensor, "B C H W"]) -> None:
    """Raise ValueError for a backbone whose tokens do not stand for the patches that iBOT masks, in the model's own mode."""
    grid, _ = model.stem_tokens((images.shape[2], images.shape[3]))
    features = model.features(images)
    patches = 0 if features.tokens is None else features.tokens.shape[1] - features.prefix
    if features.tokens is None or features.grid != grid or patches != grid[0] * grid[1]:
        raise ValueError(
            f"dino.ibot_weight needs a token for each of the {grid[0]}x{grid[1]} patches, and {type(model).__name__} has "
            f"{patches}; use a ViT without patch_drop_rate, or dino.ibot_weight 0"
        )
    if features.tokens.shape[2] != features.pooled.shape[1]:
        raise ValueError(
            f"dino.ibot_weight needs one head for tokens of width {features.tokens.shape[2]} and an embedding of width "
            f"{features.pooled.shape[1]}; use another pooling, or dino.ibot_weight 0"
        )


def dino_task(
    settings: Settings,
    model: Backbone,
    *,
    split: Split,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    device: torch.device,
    autocast_dtype: torch.dtype | None,
) -> Dino:
    """Build the task of a run. Classes, if the images have them, are for the k-NN score only."""
    return Dino(
        model,
        preprocessing=preprocessing,
        cfg=settings.dino,
        views=settings.views,
        sizes=split.sizes,
        seed=settings.train.seed,
        neighbours=has_classes(split),
    ).to(device)


def check_dino(settings: Settings, model: Backbone) -> None:
    """Raise ValueError for settings and a model, on the meta device, that DINO does not support."""
    check_views(settings, model)
    if settings.train.ema_decay:
        raise ValueError(
            f"train.ema_decay {settings.train.ema_decay} is of the student, and DINO saves its teacher, a running mean by "
            "dino.teacher_momentum; use train.ema_decay 0"
        )
    if settings.dino.ibot_weight:
        cfg = settings.model
        with torch.device("meta"), torch.no_grad():
            check_patches(model.train(), torch.zeros(2, cfg.in_channels, *pair(cfg.img_size)))
