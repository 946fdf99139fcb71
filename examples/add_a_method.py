"""Adds an explanation method in one file: occlusion (Zeiler & Fergus 2014), beside the others in sheets and comparisons.

    python examples/add_a_method.py MODEL IMAGE                MODEL is a run, a checkpoint or a Hub id
    python examples/add_a_method.py runs/first photo.png --out compared.png

A method is a function and a row of METHODS. Scores, sheets and the command line's table read the row.
"""

# B batch · C channels · H W image · K classes · gh gw grid

from __future__ import annotations

import argparse

import torch
from jaxtyping import Int64
from torch import Tensor, nn

import vitrail
from vitrail.explain import METHODS, Maps, Method, compare
from vitrail.explain.inputs import Images, Target, open_scene
from vitrail.explain.maps import maps_of
from vitrail.settings import Pair


@torch.no_grad()
def occlusion(
    model: nn.Module,
    images: Images,
    *,
    target: Target = None,
    pad: bool = False,
    sizes: Int64[Tensor, "B 2"] | None = None,
    patch_size: int | Pair | None = None,
    img_size: int | Pair | None = None,
) -> Maps:
    """Return by how much the class's logit falls where a patch has the mean colour: one pass for each patch; signed."""
    with open_scene(model, images, method="occlusion", pad=pad, sizes=sizes, patch_size=patch_size, img_size=img_size) as scene:
        logits = scene.logits(scene.images, scene.sizes).float()  # (B, K)
        targets = scene.targets(target, logits)[:, None]
        whole = logits.gather(1, targets)[:, 0]
        falls = torch.zeros(len(scene.images), *scene.grid)
        for row in range(scene.grid[0]):
            for column in range(scene.grid[1]):
                top, left = row * scene.patch[0], column * scene.patch[1]
                covered = scene.images.clone()
                covered[:, :, top : top + scene.patch[0], left : left + scene.patch[1]] = 0  # normalised, the mean colour
                falls[:, row, column] = (whole - scene.logits(covered, scene.sizes).float().gather(1, targets)[:, 0]).cpu()
        names = scene.model.classes or tuple(map(str, range(logits.shape[1])))
        labels = tuple(f"class {names[int(index)]}" for index in targets[:, 0])
        return maps_of(scene, falls * scene.present(), method="occlusion", labels=labels, signed=True)


METHODS["occlusion"] = Method(
    function=occlusion,
    shows="by how much a class's logit falls where a patch is covered",
    options=frozenset({"target"}),
    needs=frozenset({"grid", "head"}),
    evidence=True,
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares occlusion with the other methods on one image.")
    parser.add_argument("model")
    parser.add_argument("image")
    parser.add_argument("--out", default="compared.png")
    args = parser.parse_args()

    comparison = compare(vitrail.load(args.model), args.image, methods=["occlusion", "gradcam", "integrated_gradients"])
    for row in comparison.table():
        print(f"{row['method']}: insertion {row['insertion']:.3f}, deletion {row['deletion']:.3f}")
    print(f"-> {comparison.save(args.out)}")


if __name__ == "__main__":
    main()
