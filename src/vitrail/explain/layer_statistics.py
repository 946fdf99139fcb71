"""Statistics of a model, as numbers: by layer and head, and early against late layers."""

# layers, heads of the model · stages = layers + 1: before the first block, and behind each · gh gw grid · k components

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.settings import Pair

OUTLIER = 3.0
"""A patch token is an outlier where its norm is above this many times its layer's median: half-way, by ratio, to the ten times
as large ones of Darcet et al. 2024 (section 1)."""

Verdict = Literal["more", "less", "same", "open"]


# --------------------------------------------------------------------------------------------------------------------
# By layer and head


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenNorms:
    """Euclidean norms of the patch tokens, before the first block and behind each."""

    median: Float[Tensor, " stages"]
    p99: Float[Tensor, " stages"]
    """The 99th percentile."""
    max: Float[Tensor, " stages"]
    outliers: Float[Tensor, " stages"]
    """Share of tokens whose norm is above OUTLIER times the stage's median (the high-norm tokens of Darcet et al. 2024)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerStatistics:
    """Statistics of a model. Tensors are on the CPU, in float32; means are over an image's patches, then over images."""

    distance: Float[Tensor, "layers heads"]
    """Mean attention distance in pixels of the image as the model sees it (Dosovitskiy et al. 2021, figures 7 and 11): between
    the centres of the query patch and of the key patches, weighted by the attention among patches."""
    entropy: Float[Tensor, "layers heads"]
    """Entropy in bits of the attention rows of all patches; a row goes over all tokens, prefix tokens too."""
    cls_to_patch: Float[Tensor, "layers heads"]
    """Attention of the class token on the patches; prefix tokens, itself among them, have the rest. Where the model has no
    class token, it is that of `query_name`."""
    patch_to_prefix: Float[Tensor, "layers heads"]
    """Attention of patches on the prefix tokens."""
    head_similarity: Float[Tensor, "layers heads heads"]
    """Cosine between the square roots of two heads' rows, mean over the rows of all patches. 1 where they attend to the same, 0
    where to nothing in common (Bhattacharyya 1943)."""
    cka: Float[Tensor, "stages stages"]
    """Linear CKA (Kornblith et al. 2019) between the patch tokens of two stages, by the unbiased estimate of HSIC; NaN below
    four tokens. Each token is an example, for images are few."""
    token_norms: TokenNorms
    filters: Float[Tensor, "k C fh fw"]
    """Principal components of the patch filters (figure 7, left), each of norm 1, its largest number positive. With the
    convolutional stem, of its first convolution."""
    filter_shares: Float[Tensor, " k"]
    """Share of the filters' variance that each component explains."""
    positions: Float[Tensor, "gh gw gh gw"] | None
    """Cosine similarity of the position embeddings of two patches (figure 7, centre), on the model's own grid; None without."""
    images: int
    """Number of images."""
    patch: Pair
    """Height and width of a patch, in pixels."""
    grids: tuple[Pair, ...]
    """Patches down and across; more than one where images had several sizes."""
    prefix_tokens: int
    even_distance: float
    """Attention distance, in pixels, of a head that attends to all patches alike."""
    even_entropy: float
    """Entropy, in bits, of a row that gives all tokens the same: the highest possible."""
    query_name: str
    """"class token", or "tokens that the head reads"."""
    notes: tuple[str, ...]
    """Caveats for reading the numbers."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers."""
        return tuple(f"layer {index}" for index in range(len(self.distance)))

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads."""
        return tuple(f"head {index}" for index in range(self.distance.shape[1]))

    @property
    def side(self) -> float:
        """Side in pixels of a square as large as a patch: the unit of distances in patches."""
        return math.sqrt(self.patch[0] * self.patch[1])

    @property
    def redundancy(self) -> Float[Tensor, " layers"]:
        """Mean of `head_similarity` over the pairs of different heads; NaN for a single head."""
        heads = self.distance.shape[1]
        different = ~torch.eye(heads, dtype=torch.bool)
        return self.head_similarity[:, different].mean(dim=1)

    def table(self) -> list[dict[str, int | float | None]]:
        """Return a row of numbers for each layer, None for NaN: mean, least and greatest head."""
        norms, redundancy = self.token_norms, self.redundancy
        rows: list[dict[str, int | float | None]] = []
        for layer in range(len(self.distance)):
            distance = self.distance[layer]
            numbers = {
                "distance_px": distance.mean(),
                "distance_patches": distance.mean() / self.side,
                "distance_px_min": distance.min(),
                "distance_px_max": distance.max(),
                "entropy_bits": self.entropy[layer].mean(),
                "entropy_bits_min": self.entropy[layer].min(),
                "entropy_bits_max": self.entropy[layer].max(),
                "cls_to_patch": self.cls_to_patch[layer].mean(),
                "patch_to_prefix": self.patch_to_prefix[layer].mean(),
                "redundancy": redundancy[layer],
                "cka_with_input": self.cka[layer, layer + 1],
                "norm_median": norms.median[layer + 1],
                "norm_p99": norms.p99[layer + 1],
                "norm_max": norms.max[layer + 1],
                "outlier_share": norms.outliers[layer + 1],
            }
            rows.append({"layer": layer} | {name: _plain(number) for name, number in numbers.items()})
        return rows

    def early_and_late(self) -> EarlyAndLate:
        """Compare the first third of the layers with the last; halves, below six layers.

        Raises ValueError for a single layer.
        """
        depth = len(self.distance)
        if depth < 2:
            raise ValueError("this model has 1 layer; early and late take two")
        part = depth // 3 if depth >= 6 else depth // 2
        first, last = range(part), range(depth - part, depth)
        norms = self.token_norms
        measured = [
            ("distance", self.distance / self.side),
            ("entropy", self.entropy),
            ("cls_to_patch", self.cls_to_patch if self.prefix_tokens else None),  # else it is 1
            ("redundancy", self.redundancy if self.distance.shape[1] > 1 else None),
            ("norm_median", norms.median[1:]),
            ("outlier_share", norms.outliers[1:]),
        ]
        findings = (
            _finding(name, values[list(first)], values[list(last)], first, last, query_name=self.query_name)
            for name, values in measured
            if values is not None
        )
        return EarlyAndLate(first, last, tuple(findings))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One quantity in the early and in the late layers."""

    name: str
    """"distance" (patches), "entropy" (bits), "cls_to_patch", "redundancy", "norm_median" or "outlier_share"."""
    early: float
    """Mean over layers, and over heads where each has its own number."""
    late: float
    spread: float | None
    """Standard deviation within a part, pooled over both; None where each part is a single number."""
    low: float
    high: float
    """The least and the greatest number in either part."""
    verdict: Verdict
    """The late layers against the early: "more" or "less" where the means differ by more than the spread, "same" where they do
    not, "open" where there is no spread to judge by."""
    sentence: str


@dataclass(frozen=True)
class EarlyAndLate:
    """Each quantity in the early and in the late layers."""

    early: range
    late: range
    findings: tuple[Finding, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """The sentence of each finding."""
        return tuple(finding.sentence for finding in self.findings)


class _Wording(NamedTuple):
    """The words of one quantity's sentence."""

    sentence: str  # {early}, {late}: numbers · {first}, {last}: layers
    more: str
    less: str
    form: Literal["number", "share"] = "number"
    of: str = "heads"  # what varies within a part


_WORDINGS = {
    "distance": _Wording("heads look {early} patches far in {first} and {late} in {last}", "look farther", "look nearer"),
    "entropy": _Wording(
        "the attention of patches has {early} bits in {first} and {late} bits in {last}", "spread it wider", "focus it more"
    ),
    "cls_to_patch": _Wording(
        "of the attention of the {query_name}, patches have {early} in {first} and {late} in {last}",
        "give patches more",
        "give patches less",
        "share",
    ),
    "redundancy": _Wording(
        "two heads of a layer are {early} alike in {first} and {late} in {last} (1 is the same, 0 nothing in common)",
        "have heads more alike",
        "have heads less alike",
        of="layers",
    ),
    "norm_median": _Wording(
        "the median patch token has norm {early} behind {first} and {late} behind {last}",
        "make longer tokens",
        "make shorter tokens",
        of="layers",
    ),
    "outlier_share": _Wording(
        "{early} of patch tokens are outliers behind {first} and {late} behind {last} (norm above "
        f"{OUTLIER:g} times the layer's median)",
        "have more",
        "have fewer",
        "share",
        of="layers",
    ),
}


def _finding(name: str, early: Tensor, late: Tensor, first: range, last: range, *, query_name: str) -> Finding:
    """Compare one quantity: means, spread, verdict, and a sentence with them."""
    words, both = _WORDINGS[name], torch.cat([early, late])
    start, end = early.double().mean().item(), late.double().mean().item()
    apart = end - start
    spread = None if early.numel() < 2 else math.sqrt((early.double().var().item() + late.double().var().item()) / 2)
    low, high = both.min().item(), both.max().item()
    verdict: Verdict = "more" if apart > 0 else "less"
    rounding = 1e-6 * max(abs(low), abs(high))
    if abs(apart) <= max(spread or 0, rounding):
        verdict = "same"
    elif spread is None:
        verdict = "open"

    def text(number: float, *, difference: bool = False) -> str:
        if words.form == "share":
            return f"{100 * number:.1f} points" if difference else f"{number:.1%}"
        return f"{number:.3g}" if abs(number) < 1000 else f"{number:,.0f}"

    sentence = words.sentence.format(
        early=text(start), late=text(end), first=_layers(first), last=_layers(last), query_name=query_name
    )
    direction = f"late layers {words.more if apart > 0 else words.less}, by {text(abs(apart), difference=True)}"
    if abs(apart) <= rounding:
        ending = "no difference"
    elif spread is None:
        ending = f"{direction}; one number each, so no spread to judge it by"
    else:
        ranges = f"{words.of} from {text(low)} to {text(high)}"
        within = f"standard deviation within a part {text(spread, difference=True)}, {ranges}"
        beyond = f"{direction}, beyond the spread ({within})"
        level = f"no difference beyond the spread ({text(abs(apart), difference=True)} apart, {within})"
        ending = level if verdict == "same" else beyond
    return Finding(
        name=name,
        early=start,
        late=end,
        spread=spread,
        low=low,
        high=high,
        verdict=verdict,
        sentence=f"{sentence}: {ending}",
    )


def _layers(layers: range) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}-{layers[-1]}"


def _plain(number: Tensor) -> float | None:
    value = number.item()
    return value if math.isfinite(value) else None
