"""Named data sets: locations, checksums and readers of their files.

Layout of `$VITRAIL_DATA`, one folder per set:

    fashion-mnist/, mnist/      {train,t10k}-images-idx3-ubyte[.gz] and {train,t10k}-labels-idx1-ubyte[.gz]
    cifar10/, cifar100/         the published .tar.gz, or the .bin files, with or without the archive's folder
    imagenet/                   train/ and val/, a folder per class in each
"""

# N images · C channels · H W image

from __future__ import annotations

import gzip
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8

from vitrail.data.dataset import Source, Split, SplitName, stable_fraction, whole_images
from vitrail.data.download import DownloadError, fetch, unpack
from vitrail.data.memory import FixedSplit, to_channels
from vitrail.data.subset import fraction_of
from vitrail.settings import AugmentConfig, DataConfig, Pair, Preprocessing


class Published(NamedTuple):
    """A file to download."""

    name: str
    size: int
    """Size in bytes."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """One entry of `NAMED`."""

    classes: tuple[str, ...]
    channels: int
    img_size: Pair
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: dict[SplitName, tuple[str, ...]]
    """Files of each split; for idx the images, then the labels."""
    layout: Literal["idx", "records", "npz"]
    label_bytes: int = 1
    """Number of bytes before the pixels of a record, the last of which is the label; for layout "records"."""
    home: str = ""
    """Base URL of `published`."""
    published: tuple[Published, ...] = ()
    subfolder: str = ""
    """Folder inside the published archive that holds the files."""
    installed: Path | None = None
    """Folder where a system package installs the files."""
    package: str = ""
    """Debian package that installs them."""


_IDX: dict[SplitName, tuple[str, ...]] = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_CIFAR100 = (  # "fine" labels
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish "
    "forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle "
    "mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy "
    "porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider "
    "squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle "
    "wardrobe whale willow_tree wolf woman worm"
)

NAMED: dict[str, NamedSet] = {
    "fashion-sample": NamedSet(
        classes=_CLOTHES,
        channels=1,
        img_size=(28, 28),
        mean=(0.2867,),
        std=(0.3540,),
        files={"train": ("fashion_sample.npz",), "test": ("fashion_sample.npz",)},
        layout="npz",
        installed=Path(__file__).parent,
    ),
    "fashion-mnist": NamedSet(  # Xiao, Rasul and Vollgraf 2017
        classes=_CLOTHES,
        channels=1,
        img_size=(28, 28),
        mean=(0.2860,),
        std=(0.3530,),
        files=_IDX,
        layout="idx",
        home="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        published=(
            Published(
                "train-images-idx3-ubyte.gz", 26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
            ),
            Published("train-labels-idx1-ubyte.gz", 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            Published(
                "t10k-images-idx3-ubyte.gz", 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
            ),
            Published("t10k-labels-idx1-ubyte.gz", 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
        installed=Path("/usr/share/datasets/fashion-mnist"),
        package="dataset-fashion-mnist",
    ),
    "mnist": NamedSet(  # LeCun, Cortes and Burges 1998
        classes=tuple("0123456789"),
        channels=1,
        img_size=(28, 28),
        mean=(0.1307,),
        std=(0.3081,),
        files=_IDX,
        layout="idx",
        home="https://ossci-datasets.s3.amazonaws.com/mnist/",
        published=(
            Published(
                "train-images-idx3-ubyte.gz", 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"
            ),
            Published("train-labels-idx1-ubyte.gz", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            Published(
                "t10k-images-idx3-ubyte.gz", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"
            ),
            Published("t10k-labels-idx1-ubyte.gz", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
    ),
    "cifar10": NamedSet(  # Krizhevsky 2009
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        channels=3,
        img_size=(32, 32),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        files={"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
        layout="records",
        home="https://www.cs.toronto.edu/~kriz/",
        published=(
            Published(
                "cifar-10-binary.tar.gz", 170_052_171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
            ),
        ),
        subfolder="cifar-10-batches-bin",
    ),
    "cifar100": NamedSet(  # Krizhevsky 2009
        classes=tuple(_CIFAR100.split()),
        channels=3,
        img_size=(32, 32),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        files={"train": ("train.bin",), "test": ("test.bin",)},
        layout="records",
        label_bytes=2,
        home="https://www.cs.toronto.edu/~kriz/",
        published=(
            Published(
                "cifar-100-binary.tar.gz", 168_513_733, "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
            ),
        ),
        subfolder="cifar-100-binary",
    ),
}


@dataclass(frozen=True, kw_only=True)
class NamedSource(Source):
    """A named set on disk."""

    folder: Path
    val_fraction: float
    fraction: float = 1.0
    """Share of the training images that are used."""

    def with_fraction(self, fraction: float) -> NamedSource:
        """See Source.with_fraction."""
        return replace(self, fraction=fraction)

    def load(
        self, split: SplitName, *, preprocessing: Preprocessing, cfg: DataConfig, augment: AugmentConfig | None = None
    ) -> Split:
        """See Source.load. Validation images are held out of the training file by a hash of their position."""
        self.check_split(split, channels=preprocessing.in_channels)
        file: SplitName = "test" if split == "test" else "train"
        images, labels = read_arrays(NAMED[self.name], self.folder, file)
        names = [f"{self.name}/{file}/{i}" for i in range(len(labels))]
        if split != "test":
            keep = np.flatnonzero(self.held_out(names) == (split == "val"))
            images, labels, names = images[keep], labels[keep], [names[i] for i in keep]
        if split == "train" and self.fraction < 1:
            keep = fraction_of(torch.from_numpy(labels), names, self.fraction).numpy()
            images, labels, names = images[keep], labels[keep], [names[i] for i in keep]
        view = None if whole_images(augment) else preprocessing
        return FixedSplit(
            to_channels(torch.from_numpy(images), preprocessing.in_channels),
            labels=torch.from_numpy(labels),
            names=names,
            view=view,
        ).cache_views(budget_bytes=cfg.memory_gb * 1e9)

    def held_out(self, names: list[str]) -> Bool[np.ndarray, " N"]:
        """Return a mask of the training images that are held out for validation."""
        return np.array([stable_fraction(name) < self.val_fraction for name in names])


def open_named(name: str, *, val_fraction: float) -> NamedSource:
    """Open a named set; it is downloaded if it is not on disk. Raises ValueError with instructions if that fails."""
    kind = NAMED[name]
    return NamedSource(
        name=name,
        classes=kind.classes,
        channels=kind.channels,
        img_size=kind.img_size,
        mean=kind.mean,
        std=kind.std,
        splits=("train", "val", "test") if val_fraction else ("train", "test"),
        folder=find(name),
        val_fraction=val_fraction,
    )


def data_folder() -> Path | None:
    """Return the folder in $VITRAIL_DATA; None if unset."""
    return Path(os.environ["VITRAIL_DATA"]).expanduser() if os.environ.get("VITRAIL_DATA") else None


def cache_home(kind: str = "data") -> Path:
    """Return the cache folder for a `kind` of file: in $VITRAIL_CACHE, else in vitrail/ of the user's cache folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitrail"
    return Path(os.environ.get("VITRAIL_CACHE") or home).expanduser() / kind


def find(name: str) -> Path:
    """Return the folder with the files of a named set; downloads them if they are not on disk.

    Search order: $VITRAIL_DATA/NAME, the folder of a system package, the download cache, the published archive in
    $VITRAIL_DATA/NAME. Raises ValueError with instructions if the download fails.
    """
    kind, cache = NAMED[name], cache_home() / name
    root = data_folder()
    folders = [root / name] if root else []
    for folder in (*folders, *(folder / kind.subfolder for folder in folders), kind.installed, cache):
        if folder and is_complete(kind, folder):
            return folder
    required = tuple(file for files in kind.files.values() for file in files)
    if kind.subfolder:
        archive = kind.published[0]
        for folder in folders:
            if (folder / archive.name).is_file():
                return unpack(folder / archive.name, cache, subfolder=kind.subfolder, names=required)
    try:
        downloads = cache.with_name(f"{name}-download") if kind.subfolder else cache
        files = [
            fetch(kind.home + file.name, downloads / file.name, size=file.size, sha256=file.sha256) for file in kind.published
        ]
    except DownloadError as error:
        names = ", ".join(file.name for file in kind.published)
        place = f"{folders[0]}" if folders else f"FOLDER/{name} and set VITRAIL_DATA=FOLDER"
        package = f", or install the Debian package {kind.package}" if kind.package else ""
        raise ValueError(f"{name} is not on this machine ({error}); put {names} into {place}{package}") from None
    if kind.subfolder:
        unpack(files[0], cache, subfolder=kind.subfolder, names=required)
        shutil.rmtree(downloads)
    return cache


def is_complete(kind: NamedSet, folder: Path) -> bool:
    """Return True if a folder has all files of a set, gzipped or not."""
    return all(
        (folder / file).is_file() or (folder / f"{file}.gz").is_file() for files in kind.files.values() for file in files
    )


# --------------------------------------------------------------------------------------------------------------------
# Reading


def read_arrays(kind: NamedSet, folder: Path, split: SplitName) -> tuple[UInt8[np.ndarray, "N C H W"], Int64[np.ndarray, " N"]]:
    """Read images and labels of a set's training or test files.

    Raises ValueError, with the file, for corrupt or unexpected contents.
    """
    files = [folder / file if (folder / file).is_file() else folder / f"{file}.gz" for file in kind.files[split]]
    if kind.layout == "npz":
        with np.load(files[0], allow_pickle=False) as arrays:
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    elif kind.layout == "idx":
        images, labels = read_idx(files[0]), read_idx(files[1])
    else:
        parts = [read_records(file, kind) for file in files]
        images, labels = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    images, labels = images.reshape(-1, kind.channels, *kind.img_size), labels.astype(np.int64)
    if len(images) != len(labels) or labels.max(initial=0) >= len(kind.classes):
        raise ValueError(f"{files[0]} has {len(images)} images of other classes than the {len(labels)} labels say; get it anew")
    return images, labels


def read_idx(path: Path) -> UInt8[np.ndarray, "*shape"]:
    """Read an idx file of bytes (LeCun's format: magic, dimensions, data), gzipped or not."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} can't be read ({error}); get it anew") from None
    ranks = data[3] if len(data) > 4 else 0
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", count=ranks, offset=4)) if len(data) >= 4 + 4 * ranks else ()
    if data[:3] != b"\0\0\x08" or len(data) != 4 + 4 * ranks + int(np.prod(shape)):
        raise ValueError(f"{path} is no idx file of bytes, or not a whole one; get it anew")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ranks).reshape(shape).copy()


def read_records(path: Path, kind: NamedSet) -> tuple[UInt8[np.ndarray, "N bytes"], UInt8[np.ndarray, " N"]]:
    """Read images and labels of a CIFAR binary file; a record is the label bytes, then the red, green and blue planes."""
    pixels = kind.channels * kind.img_size[0] * kind.img_size[1]
    data = np.fromfile(path, np.uint8)
    if not len(data) or len(data) % (kind.label_bytes + pixels):
        raise ValueError(f"{path} is no whole number of records of {kind.label_bytes + pixels} bytes; get it anew")
    records = data.reshape(-1, kind.label_bytes + pixels)
    return records[:, kind.label_bytes :], records[:, kind.label_bytes - 1]
