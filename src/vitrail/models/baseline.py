"""Baselines: torchvision and timm models, CNNs above all, trained with the same recipe as a ViT.

Both libraries are optional (`pip install 'vitrail[baselines]'`) and are imported when such a name is used, never before.
Regularisation follows the settings, as for a ViT: `drop_rate` and `drop_path_rate` are 0 by default, where torchvision's
defaults go up to 0.5.
"""

# B batch · C channels · H W image · E width of the embedding · K classes

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.models.backbone import Backbone, Features, Images, Logits, Stage, View, on_meta
from vitrail.models.library_maps import timm_features, torchvision_features
from vitrail.settings import Pair, Preprocessing, pair
from vitrail.settings.baseline import BaselineConfig, is_baseline

__all__ = [
    "Baseline",
    "BaselineConfig",
    "build_baseline",
    "check_baseline",
    "create_baseline",
    "is_baseline",
    "published_classes",
]

_NO_MATRICES = ("token", "pos_embed", "latent")
"""Suffixes of token and position parameters, which have no weight decay."""
_TRIED_SIDES = (32, 48, 64, 75, 96, 128, 160, 192, 224, 256, 288, 384, 512)


class Baseline(Backbone):
    """Model of another library behind the `Backbone` interface: images to logits. Create it with `create_baseline`."""

    def __init__(self, config: BaselineConfig, net: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.net = net
        """The library's own model, with the library's state-dict names."""
        if config.library == "timm":
            theirs: dict[str, Any] = net.pretrained_cfg  # type: ignore[assignment]
            stems, heads = _names(theirs.get("first_conv")), _names(theirs.get("classifier"))
        else:
            paths = [name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
            stems, heads = paths[:1], paths[-1:]  # registered in the order of the way through, in all of them
        self.stems, self.heads = tuple(f"net.{path}" for path in stems), tuple(f"net.{path}" for path in heads)
        self.no_decay = frozenset(name for name, _ in self.named_parameters() if name.endswith(_NO_MATRICES))

    def forward(self, images: Images) -> Float[Tensor, "B K"]:
        """Return logits (B, K), or the embedding without a head. Raises ValueError for a wrong number of channels."""
        self.check_channels(images)
        logits: Tensor = self.net(images)
        return logits

    def embedding(self, images: Images) -> Float[Tensor, "B E"]:
        """Return the input of the head."""
        if self.config.library == "timm":
            embedding: Tensor = self.net.forward_head(self.net.forward_features(images), pre_logits=True)  # type: ignore[operator]
            return embedding
        if not self.config.num_classes:
            return self(images)
        head = self.get_submodule(self.heads[0])
        self.set_submodule(self.heads[0], nn.Identity())
        try:
            return self(images)
        finally:
            self.set_submodule(self.heads[0], head)

    def features(self, images: Images, view: View = View()) -> Features:
        """Return embedding and feature maps. Raises ValueError for masks, hidden patches, another patch size or `blocks`."""
        if not view.whole:
            raise ValueError(f"{self.config.name} looks at whole images only; use a ViT")
        if self.config.library == "timm":
            pooled, maps = timm_features(self.net, images, self.embedding)
        else:
            pooled, maps = torchvision_features(self.net, images, self.embedding, head=self.heads[0].removeprefix("net."))
        return Features(pooled=pooled, pyramid=maps)

    def head_logits(self, images: Images, *, patch_size: int | Pair | None = None) -> tuple[Logits, ...]:
        """Return the logits in a tuple of one."""
        if patch_size is not None:
            raise ValueError(f"{self.config.name} has no patches to be {patch_size}; use a ViT")
        return (self(images),)

    def stages(self) -> list[Stage]:
        """Return the whole net as one stage: the libraries define no common order of its parts."""
        return [Stage("net", ("net",))]

    @property
    def side_unit(self) -> Pair:
        """Always (1, 1): the library checks the image size itself."""
        return 1, 1

    def reset_head(self, num_classes: int) -> None:
        """Replace the head with a new one of `num_classes` outputs; 0 removes it, and the logits are the embedding."""
        if num_classes < 0:
            raise ValueError(f"num_classes {num_classes} must not be negative; 0 leaves the head out")
        weight = next(self.net.parameters())
        if self.config.library == "timm":
            self.net.reset_classifier(num_classes)  # type: ignore[operator]
        else:
            old = self.get_submodule(self.heads[0])
            head: nn.Module = nn.Identity()
            if num_classes and isinstance(old, nn.Linear):
                head = nn.Linear(old.in_features, num_classes)
            elif num_classes and isinstance(old, nn.Conv2d):  # SqueezeNet's
                head = nn.Conv2d(old.in_channels, num_classes, old.kernel_size)  # type: ignore[arg-type]
            elif num_classes:
                raise ValueError(f"{self.config.name} was made without a head; create it anew with num_classes {num_classes}")
            self.set_submodule(self.heads[0], head)
        self.net.to(weight.device, weight.dtype)
        self.config = dataclasses.replace(self.config, num_classes=num_classes)

    def check_patch(self, patch: Pair) -> None:
        """See Backbone.check_patch."""
        raise ValueError(f'train.patch_sizes are for a ViT, and "{self.config.name}" cuts no patches; leave them out')

    def stored(self) -> nn.Module:
        """Return the library's own model, whose names a checkpoint has."""
        return self.net

    @property
    def checkpointing(self) -> bool:
        """Always False: recomputation would update batch norms twice, and the models share no block structure."""
        return False

    @checkpointing.setter
    def checkpointing(self, enabled: bool) -> None:
        if enabled:
            raise ValueError(f"train.checkpointing recomputes a ViT's blocks, and {self.config.name} has none; leave it out")

    def attention_maps(self, *args: Any, **options: Any) -> NoReturn:
        """Raise ValueError: a baseline has no attention maps."""
        raise ValueError(f"{self.config.name} has no attention maps as a ViT has; use a ViT, or a method that takes any model")

    @property
    def num_classes(self) -> int:
        """Number of classes K, under timm's name."""
        return self.config.num_classes

    def __getattr__(self, name: str) -> Any:
        """Raise AttributeError with the model's name, for instance for an attribute that only a ViT has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            config = self.__dict__.get("config")
            whose = "Baseline" if config is None else f"{config.name}, a model of {config.library} and no ViT,"
            raise AttributeError(f"{whose} has no attribute '{name}'") from None


def _names(entry: Any) -> list[str]:
    """Return the layer names in an entry of timm's config: one, several or none."""
    return [entry] if isinstance(entry, str) else list(entry or ())


# --------------------------------------------------------------------------------------------------------------------
# Creation


def create_baseline(
    name: str,
    *,
    num_classes: int | None = None,
    img_size: int | Pair | None = None,
    in_channels: int = 3,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
) -> Baseline:
    """Create a torchvision or timm model: `create_baseline("torchvision:resnet18", num_classes=10)`.

    `name` is any that `torchvision.models.list_models` or `timm.list_models` lists; size and classes default to those of its
    published weights. `pretrained` fetches the library's default weights (timm's tags choose others:
    "timm:resnet50.a1_in1k"), for other channels and classes too; preprocessing and class names then come with them. Raises
    ValueError, in one line, for a library that is not installed, a name that it does not have, a rate that the model has no
    place for, and weights that can't be fetched.
    """
    config = BaselineConfig(name=name, in_channels=in_channels, drop_rate=drop_rate, drop_path_rate=drop_path_rate)
    theirs = _library_of(config)
    own_size, own_classes = theirs.published()
    config = dataclasses.replace(config, img_size=own_size if img_size is None else img_size)
    config = dataclasses.replace(config, num_classes=own_classes if num_classes is None else num_classes)
    model = theirs.make(config, pretrained)
    model.net.to(memory_format=torch.channels_last)  # a step of ResNet-18 takes 0.85 of the time on a CPU
    return model


def build_baseline(config: BaselineConfig) -> Baseline:
    """Build the model of a config with random weights."""
    return create_baseline(**dataclasses.asdict(config))


def published_classes(name: str) -> int:
    """Return the number of classes of the library's default weights. Raises ValueError as `create_baseline` does."""
    return _library_of(BaselineConfig(name=name)).published()[1]


class _Torchvision:
    """Classification models of torchvision."""

    def __init__(self, config: BaselineConfig) -> None:
        self.models = _library("torchvision.models", config)
        known = self.models.list_models(module=self.models)  # detection's and video's are in modules of their own
        if config.theirs not in known:
            raise ValueError(_unknown(config, known))
        self.weights = self.models.get_model_weights(config.theirs).DEFAULT

    def published(self) -> tuple[int, int]:
        """Return image side and number of classes of the default weights."""
        return self.weights.transforms().crop_size[0], len(self.weights.meta["categories"])

    def make(self, config: BaselineConfig, pretrained: bool) -> Baseline:
        options: dict[str, Any] = {}
        if config.theirs in ("googlenet", "inception_v3"):
            options = {"transform_input": False, **({} if pretrained else {"aux_logits": False, "init_weights": True})}
        if config.theirs.startswith("vit_"):
            options = {"image_size": _square(config)}
        elif config.theirs.startswith("maxvit_"):
            options = {"input_size": pair(config.img_size)}
        classes = self.published()[1] if pretrained else config.num_classes or 1
        if pretrained:
            with _fetching(config):
                net = self.models.get_model(config.theirs, weights=self.weights, progress=False, **options)
            if config.theirs == "inception_v3":  # GoogLeNet's builder does it: published weights come with a second head
                net.aux_logits, net.AuxLogits = False, None
        else:
            net = self.models.get_model(config.theirs, weights=None, num_classes=classes, **options)
        _regularise(net, config)
        model = Baseline(dataclasses.replace(config, num_classes=classes), net)
        if config.num_classes != classes:
            model.reset_head(config.num_classes)
        if config.in_channels != 3:
            path = model.stems[0]
            model.set_submodule(path, _for_channels(model.get_submodule(path), config.in_channels))
        if pretrained:
            shown, names = self.weights.transforms(), tuple(self.weights.meta["categories"])
            # those two would go on to make ImageNet's mean and deviation 0.5: they get such images at once
            mean, std = ([0.5] * 3, [0.5] * 3) if "transform_input" in options else (shown.mean, shown.std)
            share = min(1.0, shown.crop_size[0] / shown.resize_size[0])
            model.preprocessing = _images(config, mean, std, crop_pct=share, interpolation=shown.interpolation.value)
            model.classes = names if len(names) == config.num_classes else ()
        return model


class _Timm:
    """Models of timm."""

    def __init__(self, config: BaselineConfig) -> None:
        self.timm = _library("timm", config)
        if not self.timm.is_model(config.theirs):
            raise ValueError(_unknown(config, self.timm.list_models()))
        self.cfg = self.timm.get_pretrained_cfg(config.theirs)

    def published(self) -> tuple[Pair, int]:
        """Return (height, width) of the images and number of classes of the default weights."""
        height, width = self.cfg.input_size[1:]
        return (height, width), self.cfg.num_classes

    def make(self, config: BaselineConfig, pretrained: bool) -> Baseline:
        rates = {"drop_rate": config.drop_rate, "drop_path_rate": config.drop_path_rate}
        options: dict[str, Any] = {name: rate for name, rate in rates.items() if rate}
        if self.cfg.fixed_input_size:
            options["img_size"] = pair(config.img_size)
        options |= {"num_classes": config.num_classes, "in_chans": config.in_channels}
        try:
            with _fetching(config) if pretrained else contextlib.nullcontext():
                net = self.timm.create_model(config.theirs, pretrained=pretrained, **options)
        except TypeError as error:  # "VGG.__init__() got an unexpected keyword argument 'drop_path_rate'"
            lacking = next((name for name in rates if name in options and f"'{name}'" in str(error)), None)
            if lacking is None:
                raise
            raise ValueError(_no_place(config, lacking)) from error
        model = Baseline(config, net)
        if pretrained:
            published, names = net.pretrained_cfg, tuple(net.pretrained_cfg.get("label_names") or ())
            model.preprocessing = _images(
                config,
                published["mean"],
                published["std"],
                crop_pct=published["crop_pct"],
                interpolation=published["interpolation"],
            )
            model.classes = names if len(names) == config.num_classes else ()
        return model


def _library_of(config: BaselineConfig) -> _Torchvision | _Timm:
    return _Timm(config) if config.library == "timm" else _Torchvision(config)


def _library(module: str, config: BaselineConfig) -> Any:
    """Import the library. Raises ValueError if that fails."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{config.name} needs {config.library} ({error}); install it: pip install 'vitrail[baselines]'"
        ) from error
    except RuntimeError as error:  # torchvision's wheel beside a torch of another build
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{config.name} needs {config.library}, which does not fit this torch {torch.__version__} ({reason}); "
            "install both from the same index: pip install 'vitrail[baselines]'"
        ) from error


def _unknown(config: BaselineConfig, known: list[str]) -> str:
    close = difflib.get_close_matches(config.theirs.partition(".")[0], known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else f"{config.library}'s list_models() has {len(known):,} names"
    return f'model "{config.name}": {config.library} has no "{config.theirs}"; {hint}'


def _no_place(config: BaselineConfig, field: str) -> str:
    what = {"drop_rate": "dropout before its head", "drop_path_rate": "stochastic depth"}[field]
    return f"model.{field} {getattr(config, field)}: {config.name} has no {what}; leave the setting out"


def _square(config: BaselineConfig) -> int:
    height, width = pair(config.img_size)
    if height != width:
        raise ValueError(f"{config.name} takes square images, not {height}x{width}; use model.img_size {min(height, width)}")
    return height


@contextlib.contextmanager
def _fetching(config: BaselineConfig) -> Iterator[None]:
    """Raise ValueError for every failed download: the libraries raise many different errors."""
    try:
        yield
    except TypeError:  # an argument that the model does not have
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{config.library}'s default weights of {config.theirs} can't be fetched or don't fit ({reason}); "
            f"for random ones: --model {config.name} without --weights"
        ) from error


def _images(
    config: BaselineConfig, mean: Sequence[float], std: Sequence[float], *, crop_pct: float, interpolation: str
) -> Preprocessing:
    """Adapt published preprocessing of three channels to the model's channels."""
    channels = config.in_channels
    one = channels == 1
    return Preprocessing(
        img_size=pair(config.img_size),
        in_channels=channels,
        mean=(sum(mean) / 3,) if one else tuple(mean[i % 3] for i in range(channels)),
        std=(sum(std) / 3,) if one else tuple(std[i % 3] for i in range(channels)),
        crop_pct=crop_pct,
        interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
    )


def _for_channels(conv: nn.Module, channels: int) -> nn.Conv2d:
    """Adapt torchvision's first convolution to other channels: repeat its filters, scaled by 3 / channels.

    That is `weights.adapt.adapt_channels`, for random weights as for learned ones: activations stay as large as they were.
    """
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(conv.padding, tuple)
    new = nn.Conv2d(
        channels,
        conv.out_channels,
        kernel_size=conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )
    with torch.no_grad():
        old = conv.weight
        new.weight.copy_(old.sum(1, keepdim=True) if channels == 1 else old[:, torch.arange(channels) % 3] * (3 / channels))
        if conv.bias is not None and new.bias is not None:
            new.bias.copy_(conv.bias)
    return new


def _regularise(net: nn.Module, config: BaselineConfig) -> None:
    """Set dropout before the head and stochastic depth to the settings' rates, in place of torchvision's defaults."""
    head = [name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)][-1].partition(".")[0]
    dropouts = [
        layer
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Dropout) and name.partition(".")[0] in (head, "dropout")
    ]
    for dropout in dropouts:
        dropout.p = config.drop_rate
    depths: list[Any] = [layer for layer in net.modules() if type(layer).__name__ == "StochasticDepth"]
    last = max((layer.p for layer in depths), default=0.0)
    for layer in depths:  # they ramp up: the ramp stays, and its end is what the settings say
        layer.p = layer.p / last * config.drop_path_rate
    for field, place in (("drop_rate", dropouts), ("drop_path_rate", depths)):
        if getattr(config, field) and not place:
            raise ValueError(_no_place(config, field))


# --------------------------------------------------------------------------------------------------------------------
# Before images are read


def check_baseline(config: BaselineConfig) -> None:
    """Raise ValueError for a config that can't be built, or for an invalid image size, with a valid one."""
    if (reason := _refusal(config)) is None:
        return
    works = next((n for n in _TRIED_SIDES if _refusal(dataclasses.replace(config, img_size=n)) is None), None)
    way = f"use model.img_size {works}" if works else "choose another model"
    height, width = pair(config.img_size)
    raise ValueError(f"{config.name} does not work on images of {height}x{width} px ({reason}); {way}")


def _refusal(config: BaselineConfig) -> str | None:
    """Return the reason why a model does not return logits (B, K); None if it does."""
    try:
        model = on_meta(lambda: build_baseline(config)).eval()
        with torch.no_grad():
            logits = model.net(torch.empty(2, config.in_channels, *pair(config.img_size), device="meta"))
    except Exception as error:
        if isinstance(error, ValueError) and config.name in str(error):  # our own words: another size would not help
            raise
        return str(error).partition("\n")[0] or type(error).__name__  # of a library's inside: its shapes do not fit
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        return "it does not give one row of logits an image"
    return None
