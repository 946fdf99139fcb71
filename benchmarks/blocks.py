"""The pictures of docs/models.md: one block of each family, drawn from its row of BLOCKS.

python benchmarks/blocks.py                 writes docs/pictures/block-*.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
COLOURS = {"norm": "#dfe7f2", "attention": "#f6d9c4", "mlp": "#d7ead3", "scale": "#f3ecc9", "convolution": "#e6dcf0"}
GAP, HEIGHT, STEP = 0.35, 0.62, 0.5


@dataclass(frozen=True)
class Part:
    """A box: text, kind (which gives the colour), and what enters it from below."""

    text: str
    kind: str
    enters: str = ""

    @property
    def width(self) -> float:
        """Width of the box."""
        return 0.42 + 0.105 * max(len(line) for line in self.text.split("\n"))


@dataclass(frozen=True)
class Branch:
    """Parts around which the tokens are passed on unchanged, and added; `then` comes after the sum."""

    parts: tuple[Part, ...]
    then: tuple[Part, ...] = ()


NORM, GAMMA, MLP = Part("LayerNorm", "norm"), Part("γ", "scale"), Part("MLP\nGELU", "mlp")


def attention(text: str, enters: str = "") -> Part:
    """A box of attention."""
    return Part(text, "attention", enters)


BLOCKS: dict[str, tuple[Branch, ...]] = {
    "vit": (Branch((NORM, attention("attention"), GAMMA)), Branch((NORM, MLP, GAMMA))),
    "swin": (
        Branch((NORM, attention("attention in\n(shifted) windows", "relative\nposition bias"))),
        Branch((NORM, MLP)),
    ),
    "swin_v2": (
        Branch((attention("cosine attention in\n(shifted) windows", "log-spaced\ncontinuous bias"), NORM)),
        Branch((MLP, NORM)),
    ),
    "swin_v2_cr": (
        Branch((attention("cosine attention in\n(shifted) windows", "log-spaced\ncontinuous bias"), NORM)),
        Branch((MLP, NORM), then=(Part("LayerNorm\nin some blocks", "norm"),)),
    ),
    "cait": (
        Branch((NORM, attention("talking-heads\nattention"), GAMMA)),
        Branch((NORM, MLP, GAMMA)),
    ),
    "cait_class": (
        Branch((NORM, attention("class attention", "patch tokens"), GAMMA)),
        Branch((NORM, MLP, GAMMA)),
    ),
    "cvt": (
        Branch((NORM, Part("depthwise\nconvolutions", "convolution"), attention("attention"))),
        Branch((NORM, MLP)),
    ),
    "beit": (
        Branch((NORM, attention("attention", "relative\nposition bias"), GAMMA)),
        Branch((NORM, MLP, GAMMA)),
    ),
    "vitdet": (
        Branch((NORM, attention("attention in windows\nor over the image", "offsets of\nrows + columns"))),
        Branch((NORM, MLP)),
    ),
    "hybrid": (
        Branch(
            (
                Part("1x1 convolution\nGroupNorm, ReLU", "convolution"),
                Part("3x3 convolution\nGroupNorm, ReLU", "convolution"),
                Part("1x1 convolution\nGroupNorm", "convolution"),
            ),
            then=(Part("ReLU", "mlp"),),
        ),
    ),
    "modern": (
        Branch((Part("LayerNorm\nor RMSNorm", "norm"), attention("attention", "rotary\npositions"), GAMMA)),
        Branch((Part("LayerNorm\nor RMSNorm", "norm"), Part("MLP, GELU\nor SwiGLU", "mlp"), GAMMA)),
    ),
}


def draw(axes: Axes, branches: tuple[Branch, ...]) -> float:
    """Draw a block from left to right. Return its width."""
    x = 0.0

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        axes.add_patch(
            FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, lw=1.1, color="#444", shrinkA=0, shrinkB=0)
        )

    def box(part: Part) -> None:
        nonlocal x
        arrow((x, 0), (x + GAP, 0))
        x += GAP
        shape = FancyBboxPatch((x, -HEIGHT / 2), part.width, HEIGHT, boxstyle="round,pad=0,rounding_size=0.08")
        shape.set(facecolor=COLOURS[part.kind], edgecolor="#444", linewidth=1.1)
        axes.add_patch(shape)
        axes.text(x + part.width / 2, 0, part.text, ha="center", va="center", fontsize=10)
        if part.enters:
            below = (x + part.width / 2, -HEIGHT / 2 - 0.3)
            axes.text(below[0], below[1] - 0.05, part.enters, ha="center", va="top", fontsize=9, color="#555")
            arrow(below, (below[0], -HEIGHT / 2))
        x += part.width

    for branch in branches:
        start = x + 0.16
        axes.plot([x, start], [0, 0], color="#444", lw=1.1)
        x = start
        for part in branch.parts:
            box(part)
        arrow((x, 0), (x + GAP, 0))
        x += GAP + 0.13
        top = HEIGHT / 2 + STEP / 2
        axes.plot([start, start, x, x], [0, top, top, 0.13], color="#444", lw=1.1)
        axes.add_patch(Circle((x, 0), 0.13, facecolor="white", edgecolor="#444", linewidth=1.1))
        axes.text(x, -0.005, "+", ha="center", va="center", fontsize=11)
        x += 0.13
        for part in branch.then:
            box(part)
    arrow((x, 0), (x + GAP, 0))
    return x + GAP


def main() -> None:
    """Draw all blocks."""
    mpl.rcParams["font.family"] = "DejaVu Sans"
    for name, branches in BLOCKS.items():
        figure = Figure(dpi=110)
        axes = figure.add_axes((0, 0, 1, 1))
        width = draw(axes, branches)
        below = 1.05 if any(part.enters for branch in branches for part in branch.parts) else 0.45
        axes.set(xlim=(-0.1, width + 0.1), ylim=(-below, 0.75), aspect="equal")
        axes.axis("off")
        figure.set_size_inches((width + 0.2) * 0.95, (below + 0.75) * 0.95)
        figure.savefig(PICTURES / f"block-{name.replace('_', '-')}.png", facecolor="white", metadata={"Software": None})
        print(f"block-{name.replace('_', '-')}.png")


if __name__ == "__main__":
    main()
