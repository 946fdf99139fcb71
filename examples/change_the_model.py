"""Changes the model: patches see their neighbours inside the MLP of every block. The training loop is in plain sight.

    python examples/change_the_model.py                    some minutes on the sample that comes with the package
    python examples/change_the_model.py --steps 20

A depth-wise convolution in the MLP (Li et al. 2021, LocalViT). It starts at zero, so the changed model starts as the plain one.
"""

# B batch · gh gw grid · L patches = gh gw · N tokens = prefix + L · D width · M hidden width of the MLP

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

import vitrail
from vitrail.data.augment import augment
from vitrail.data.batches import train_batches
from vitrail.data.sources import open_source
from vitrail.evaluate import evaluate
from vitrail.models.vit import Block, Mlp, ViT
from vitrail.settings import AugmentConfig, DataConfig, Pair, Preprocessing, ViTConfig


class LocalMlp(Mlp):
    """fc2(GELU(h + conv(h))) with h = fc1(x): the convolution runs over the patches, prefix tokens pass it by."""

    def __init__(self, cfg: ViTConfig, *, grid: Pair, prefix: int) -> None:
        super().__init__(cfg)
        hidden = self.fc1.out_features
        self.grid, self.prefix = grid, prefix
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        nn.init.zeros_(self.conv.weight)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        h: Tensor = self.fc1(x)  # (B, N, M)
        image = h[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)  # (B, M, gh, gw)
        around = self.conv(image).flatten(2).transpose(1, 2)  # (B, L, M)
        h = h + F.pad(around, (0, 0, self.prefix, 0))
        return self.drop(self.fc2(F.gelu(h)))


def localise(model: ViT) -> ViT:
    """The model with a LocalMlp in the place of every block's MLP, whose weights stay."""
    for block in model.blocks:
        assert isinstance(block, Block)
        changed = LocalMlp(model.config, grid=model.grid, prefix=model.prefix_tokens)
        changed.load_state_dict(block.mlp.state_dict(), strict=False)  # all but the convolution, which is new
        block.mlp = changed
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains a changed model on the embedded sample.")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=128)
    args = parser.parse_args()

    torch.manual_seed(0)
    source = open_source("fashion-sample")
    assert source.img_size is not None
    view = Preprocessing(img_size=source.img_size, in_channels=source.channels, mean=source.mean, std=source.std)
    crops = AugmentConfig(crop="pad", crop_pad=2)
    train = source.load("train", preprocessing=view, cfg=DataConfig(), augment=crops)
    test = source.load("test", preprocessing=view, cfg=DataConfig())

    classes = len(source.classes)
    shape = {"img_size": view.img_size, "in_channels": view.in_channels, "num_classes": classes}
    plain = vitrail.create_model("Ti/4", **shape, depth=3, embed_dim=96)
    assert isinstance(plain, ViT)
    model = localise(plain)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=args.steps + 1)
    batches = train_batches(train, batch_size=args.batch_size, seed=0, augment=crops)
    for step, (epoch, raw) in zip(range(args.steps), batches, strict=False):
        batch = augment(raw, cfg=crops, preprocessing=view, num_classes=classes, seed=0, epoch=epoch)
        loss = F.cross_entropy(model(batch.images), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss:.3f}", flush=True)

    result = evaluate(model, test, preprocessing=view, classes=source.classes, device=torch.device("cpu"))
    low, high = result.top1_interval
    print(f"accuracy {result.top1:.1%} (95 % interval {low:.1%} to {high:.1%}) on {result.count} test images")


if __name__ == "__main__":
    main()
