"""Libraries whose checkpoints are read and written, one file each."""

from __future__ import annotations

from vitrail.weights.libraries.clip import OPEN_CLIP
from vitrail.weights.libraries.google import GOOGLE
from vitrail.weights.libraries.homemade import HOMEMADE
from vitrail.weights.libraries.meta import META
from vitrail.weights.libraries.microsoft import MICROSOFT
from vitrail.weights.libraries.timm import TIMM
from vitrail.weights.libraries.torchvision import TORCHVISION
from vitrail.weights.libraries.transformers import TRANSFORMERS
from vitrail.weights.libraries.vit_pytorch import VIT_PYTORCH
from vitrail.weights.libraries.vitrail import VITRAIL
from vitrail.weights.library import Library

LIBRARIES: dict[str, Library] = {  # of two whose tables explain a checkpoint equally well, the first is taken
    "microsoft": MICROSOFT,
    "timm": TIMM,
    "vitrail": VITRAIL,
    "facebookresearch": META,
    "transformers": TRANSFORMERS,
    "torchvision": TORCHVISION,
    "google": GOOGLE,
    "open_clip": OPEN_CLIP,
    "vit-pytorch": VIT_PYTORCH,
    "homemade": HOMEMADE,
}
