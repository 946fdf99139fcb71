"""BEiT's pre-training (Bao et al. 2022): predict the discrete tokens of masked patches, here those of a k-means codebook."""

# B batch · C channels · H W image · L patches · M masked patches · D width · K tokens

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.data.batch import Batch, RawBatch
from vitrail.data.dataset import Split
from vitrail.data.draws import Draws
from vitrail.evaluate.embedding import has_classes
from vitrail.evaluate.evaluate import ALONE, Among
from vitrail.models.backbone import Backbone
from vitrail.models.device import autocast
from vitrail.settings import AugmentConfig, BeitPretrainConfig, Pair, Preprocessing, Settings
from vitrail.settings.masked import PIXELS
from vitrail.tasks.codebook import Codebook, FeatureVectors, PatchVectors, PixelVectors, Usage, codebook_size, sample_vectors
from vitrail.tasks.masked import MaskedModelling, WithMaskToken, last_tokens, preprocessing_of_model, refuse_patch_sizes
from vitrail.tasks.masks import Mask, Places, draw_mask, masked_count
from vitrail.tasks.teacher import require_preprocessing
from vitrail.weights.load import is_name, load


class TokenHead(WithMaskToken):
    """Mask token of width `stem`, and a linear layer from patch tokens to the discrete tokens (section 2.3)."""

    def __init__(self, *, stem: int, width: int, codes: int) -> None:
        super().__init__(stem)
        self.proj = nn.Linear(width, codes)
        nn.init.trunc_normal_(self.proj.weight, std=0.02)
        nn.init.zeros_(self.proj.bias)

    def forward(self, tokens: Float[Tensor, "B M D"]) -> Float[Tensor, "B M K"]:
        """Return logits of the discrete tokens."""
        logits: Tensor = self.proj(tokens)
        return logits


class BeitPretraining(MaskedModelling):
    """Prediction of the discrete tokens of masked patches, by any backbone with a token for each patch of its stem.

    `vectors` compute what the codebook is fitted to; they are no submodule. The codebook is fitted in `prepare`, and restored
    from the checkpoint of a run that is resumed. Raises ValueError for a backbone whose tokens are not the stem's patches.
    """

    def __init__(
        self,
        model: Backbone,
        *,
        preprocessing: Preprocessing,
        cfg: BeitPretrainConfig,
        codes: int,
        vectors: PatchVectors | None = None,
        augment: AugmentConfig,
        seed: int,
        device: torch.device,
        autocast_dtype: torch.dtype | None = None,
        known: Split | None = None,
        neighbours: bool = False,
    ) -> None:
        """`codes` is the number of discrete tokens; without `vectors`, they are those of the pixels."""
        super().__init__(model, preprocessing=preprocessing, augment=augment, seed=seed, known=known, neighbours=neighbours)
        self.cfg, self.device, self.autocast_dtype = cfg, device, autocast_dtype
        width, grid, _ = last_tokens(model, preprocessing, method="BEiT")
        stem_grid, stem = model.stem_tokens(preprocessing.img_size)
        if grid != stem_grid:
            raise ValueError(
                f"BEiT predicts a token for each of the {stem_grid[0]}x{stem_grid[1]} patches that are masked, and "
                f"{type(model).__name__} ends with {grid[0]}x{grid[1]}; use a ViT, or --method simmim"
            )
        masked_count(grid[0] * grid[1], cfg.mask_ratio)  # which requires two patches
        self.patch = preprocessing.img_size[0] // grid[0], preprocessing.img_size[1] // grid[1]
        if vectors is None:
            vectors = PixelVectors(self.patch, channels=preprocessing.in_channels, normalise=cfg.normalise)
        self._vectors = (vectors,)  # in a tuple it is no submodule
        self.head = TokenHead(stem=stem, width=width, codes=codes)
        self.codebook = Codebook(codes, vectors.width)
        self.usage: Usage | None = None

    @property
    def mask_token(self) -> Float[Tensor, " D"]:
        """See MaskedModelling.mask_token."""
        return self.head.mask_token

    # ---- before training

    def preparation(self, images: int, *, resumed: bool = False) -> str:
        """See Task.preparation: fits the codebook, but not of a run that is resumed."""
        other = super().preparation(images, resumed=resumed)
        if resumed:
            return other
        fitting = f"fitting {len(self.codebook.centers):,} tokens to patches of {min(images, self.cfg.fit_images):,} images"
        return f"{fitting}; {other}" if other else fitting

    def prepare(self, view: Split, *, among: Among = ALONE, resumed: bool = False) -> None:
        """Fit the codebook, the same in every process: the first one's."""
        if self.neighbours:
            super().prepare(view, among=among, resumed=resumed)
        if resumed:
            return
        points = sample_vectors(
            self._vectors[0],
            view,
            codes=len(self.codebook.centers),
            images=self.cfg.fit_images,
            preprocessing=self.preprocessing,
            seed=self.seed,
            device=self.device,
            autocast_dtype=self.autocast_dtype,
            among=among,
        ).to(self.device)
        self.usage = self.codebook.fit(points, seed=self.seed)
        self.codebook.centers.copy_(among.gather(self.codebook.centers.cpu())[0])  # the others' may differ in the last bits

    def prepared(self) -> str:
        """See Task.prepared: how many tokens are in use, and their perplexity."""
        if self.usage is None:
            return ""
        codes, usage = len(self.codebook.centers), self.usage
        return (
            f"{usage.used / codes:.0%} of {codes:,} tokens are in use on {usage.patches:,} patches, "
            f"with a perplexity of {usage.perplexity:,.0f}"
        )

    # ---- training

    def draw_mask(self, draws: Draws, img_size: Pair) -> Mask:
        """See MaskedModelling.draw_mask: random blocks."""
        grid, _ = self.model.stem_tokens(img_size)
        count = masked_count(grid[0] * grid[1], self.cfg.mask_ratio)
        return draw_mask(draws, masking="block", grid=grid, count=count, stream="beit_mask")

    def batch(self, raw: RawBatch, *, epoch: int, img_size: Pair, patch_size: int | None = None) -> Batch:
        """Return augmented images, their masked patches, and the discrete tokens that these have in the unmasked image."""
        batch = super().batch(raw, epoch=epoch, img_size=img_size, patch_size=patch_size)
        assert batch.masked is not None
        with torch.no_grad(), autocast(batch.images.device, self.autocast_dtype):
            vectors = self._vectors[0](batch.images)  # (B, L, X)
        return replace(batch, tokens=self.codebook(at_places(vectors, batch.masked)))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return "loss", the cross-entropy of the masked patches' tokens, and "accuracy", the share that is predicted."""
        assert batch.masked is not None
        assert batch.tokens is not None
        features = self.masked_features(batch.images, batch.masked)
        assert features.tokens is not None
        logits = self.head(at_places(features.tokens[:, features.prefix :], batch.masked)).float()  # (B, M, K)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.tokens.flatten())
        return {"loss": loss, "accuracy": (logits.detach().argmax(dim=2) == batch.tokens).float().mean()}


def at_places(x: Float[Tensor, "B L X"], places: Places) -> Float[Tensor, "B M X"]:
    """Return the rows of some patches."""
    return x.gather(1, places[:, :, None].expand(-1, -1, x.shape[2]))


# --------------------------------------------------------------------------------------------------------------------
# From settings


def beit_task(
    settings: Settings,
    model: Backbone,
    *,
    split: Split,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    device: torch.device,
    autocast_dtype: torch.dtype | None,
) -> BeitPretraining:
    """Build the task of a run. Classes, if the images have them, are for the k-NN score only.

    Raises ValueError for a tokenizer that does not fit the images.
    """
    cfg = settings.beit
    (rows, columns), _ = model.stem_tokens(preprocessing.img_size)
    patch = preprocessing.img_size[0] // rows, preprocessing.img_size[1] // columns
    vectors = None
    if cfg.tokenizer != PIXELS:
        vectors = load_tokenizer(cfg.tokenizer, student=preprocessing, patch=patch, device=device)
    return BeitPretraining(
        model,
        preprocessing=preprocessing,
        cfg=cfg,
        codes=codebook_size(cfg.codebook, images=min(len(split), cfg.fit_images), patches=rows * columns),
        vectors=vectors,
        augment=settings.augment,
        seed=settings.train.seed,
        device=device,
        autocast_dtype=autocast_dtype,
        neighbours=has_classes(split),
    ).to(device)


def load_tokenizer(name: str, *, student: Preprocessing, patch: Pair, device: torch.device) -> FeatureVectors:
    """Load the frozen model whose patch features become tokens. Raises ValueError for one that does not fit the images."""
    refuse_random(name)
    model = load(name)
    way_out = f'give another checkpoint, or "{PIXELS}"'
    sees = require_preprocessing("beit.tokenizer", name, model.preprocessing, student=student, way_out=way_out)
    try:
        return FeatureVectors(model.to(device), preprocessing=sees, student=student, patch=patch)
    except ValueError as error:
        raise ValueError(f'beit.tokenizer "{name}": {error}; {way_out}') from error


def refuse_random(name: str) -> None:
    """Raise ValueError for the name of a model, whose weights are random."""
    if name != PIXELS and is_name(name):
        raise ValueError(f'beit.tokenizer "{name}" has random weights; give a run or a checkpoint, or "{PIXELS}"')


def check_beit(settings: Settings, model: Backbone) -> None:
    """Raise ValueError for settings and a model, on the meta device, that BEiT's pre-training does not support."""
    if settings.train.patch_sizes:
        refuse_patch_sizes()
    refuse_random(settings.beit.tokenizer)
    with torch.device("meta"):
        BeitPretraining(
            model,
            preprocessing=preprocessing_of_model(settings),
            cfg=settings.beit,
            codes=2,
            augment=settings.augment,
            seed=0,
            device=torch.device("meta"),
        )
