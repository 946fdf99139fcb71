"""Settings of a run: all sections."""

from __future__ import annotations

from dataclasses import dataclass, field

from vitrail.settings.augment import AugmentConfig
from vitrail.settings.data import DataConfig
from vitrail.settings.dino import DinoConfig
from vitrail.settings.distill import DistillConfig
from vitrail.settings.guard import GuardConfig
from vitrail.settings.lejepa import LejepaConfig
from vitrail.settings.mae import MaeConfig
from vitrail.settings.masked import BeitPretrainConfig, SimmimConfig
from vitrail.settings.model import ModelSection
from vitrail.settings.optim import OptimConfig
from vitrail.settings.train import TrainConfig
from vitrail.settings.views import ViewsConfig
from vitrail.settings.vit import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a run, one field for each section."""

    model: ModelSection = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    mae: MaeConfig = field(default_factory=MaeConfig)
    simmim: SimmimConfig = field(default_factory=SimmimConfig)
    beit: BeitPretrainConfig = field(default_factory=BeitPretrainConfig)
    dino: DinoConfig = field(default_factory=DinoConfig)
    lejepa: LejepaConfig = field(default_factory=LejepaConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
