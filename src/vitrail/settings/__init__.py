"""Settings: frozen dataclasses, one for each section, the table of sizes, and model names such as "B/16". No torch.

Each part of the code receives its own section and nothing else. A default stands in its dataclass and nowhere else.
"""

from vitrail.settings.augment import AugmentConfig, RandAugment
from vitrail.settings.data import DataConfig, Preprocessing
from vitrail.settings.dino import DinoConfig
from vitrail.settings.distill import DistillConfig
from vitrail.settings.guard import GuardConfig
from vitrail.settings.lejepa import LejepaConfig
from vitrail.settings.mae import MaeConfig
from vitrail.settings.masked import BeitPretrainConfig, SimmimConfig
from vitrail.settings.model import SCRATCH, ModelSection
from vitrail.settings.optim import OptimConfig
from vitrail.settings.run import Settings
from vitrail.settings.train import TrainConfig
from vitrail.settings.values import OTHER_SPELLINGS, Config, Pair, check_names, configured, nearest, pair, tupled
from vitrail.settings.views import ViewsConfig
from vitrail.settings.vit import (
    CUSTOM,
    PATCHES,
    SIZES,
    ModelConfig,
    Size,
    ViTConfig,
    choices_of_a_model,
    parse_vit_name,
    vit_name,
)

__all__ = [
    "CUSTOM",
    "OTHER_SPELLINGS",
    "PATCHES",
    "SCRATCH",
    "SIZES",
    "AugmentConfig",
    "BeitPretrainConfig",
    "Config",
    "DataConfig",
    "DinoConfig",
    "DistillConfig",
    "GuardConfig",
    "LejepaConfig",
    "MaeConfig",
    "ModelConfig",
    "ModelSection",
    "OptimConfig",
    "Pair",
    "Preprocessing",
    "RandAugment",
    "Settings",
    "SimmimConfig",
    "Size",
    "TrainConfig",
    "ViTConfig",
    "ViewsConfig",
    "check_names",
    "choices_of_a_model",
    "configured",
    "nearest",
    "pair",
    "parse_vit_name",
    "tupled",
    "vit_name",
]
