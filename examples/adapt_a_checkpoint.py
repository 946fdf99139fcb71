"""Takes an RGB checkpoint of 224 px to other images: 5 channels, 96x160 px, 7 classes. Ten steps, saved, and opened in timm.

    python examples/adapt_a_checkpoint.py timm/vit_tiny_patch16_224.augreg_in21k     a Hub id, a file or a folder
    python examples/adapt_a_checkpoint.py WEIGHTS.safetensors --steps 100 --out adapted

The images are the sample's first seven classes, resized, in five channels: the grey picture and its gradients, as a stand-in
for what cameras with more than three channels give. timm is needed for the last line only.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

import vitrail
from vitrail.data.sources import open_source
from vitrail.settings import DataConfig, Preprocessing
from vitrail.weights import save_model

SIZE, CHANNELS, CLASSES = (96, 160), 5, 7


def pictures(*, batch_size: int) -> Iterator[tuple[Float[Tensor, "B C H W"], Int64[Tensor, " B"]]]:
    """Endless batches of the sample's first classes in five channels."""
    source = open_source("fashion-sample", val_fraction=0.1)
    grey = Preprocessing(img_size=(28, 28), in_channels=1, mean=source.mean, std=source.std)
    split = source.load("train", preprocessing=grey, cfg=DataConfig())
    chosen = torch.nonzero(split.labels < CLASSES)[:, 0]
    while True:
        for indexes in chosen[torch.randperm(len(chosen))].split(batch_size):
            raw, _ = split.read(indexes)
            x = F.interpolate(raw.images / 255, size=SIZE, mode="bilinear")  # (B, 1, H, W)
            shifted = [x - x.roll(step, dims) for step, dims in ((1, 2), (1, 3), (-1, 2), (-1, 3))]
            yield (torch.cat([x, *shifted], dim=1) - 0.3) / 0.35, raw.labels


def main() -> None:
    """Loads, trains, saves and opens the result in timm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a Hub id, a file or a folder")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("adapted"), help="a folder that does not exist yet")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = vitrail.load(args.weights, img_size=SIZE, in_channels=CHANNELS, num_classes=CLASSES).train()
    print(model.receipt)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    for step, (images, labels) in zip(range(args.steps), pictures(batch_size=16), strict=False):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}: loss {loss.item():.3f}")

    args.out.mkdir()
    save_model(model.eval(), args.out, data="fashion-sample")
    import timm

    theirs = timm.create_model(f"local-dir:{args.out}", pretrained=True).eval()
    with torch.no_grad():
        difference = (theirs(images) - vitrail.load(args.out)(images)).abs().max().item()
    print(f"opened in timm as {type(theirs).__name__}: its logits differ by {difference:.1e} at most")


if __name__ == "__main__":
    main()
