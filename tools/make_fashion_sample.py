"""Makes src/vitrail/data/fashion_sample.npz from the original files of Fashion-MNIST, byte for byte the same each time.

    python tools/make_fashion_sample.py FOLDER [OUT]

FOLDER holds the four idx files as published (or as Debian's `dataset-fashion-mnist` installs them).
The rule: of each class the first 1,000 images of the training file and the first 200 of the test file, kept in the
order of their file. Time stamps, permissions and the level of compression are fixed; zlib 1.2 and 1.3 give the same
bytes. zlib-ng packs the same arrays differently, so `contents_sha256` says whether two files hold the same.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

from vitrail.data.dataset import SplitName
from vitrail.data.named import NAMED, read_arrays

EACH: tuple[tuple[SplitName, int], ...] = (("train", 1000), ("test", 200))
OUT = Path(__file__).parents[1] / "src/vitrail/data/fashion_sample.npz"


def first_of_each(labels: np.ndarray, *, count: int) -> np.ndarray:
    """Positions of the first `count` images of each class, ascending."""
    return np.sort(np.concatenate([np.flatnonzero(labels == k)[:count] for k in range(10)]))


def contents_sha256(arrays: dict[str, np.ndarray]) -> str:
    """sha256 over the names and bytes of the arrays, whatever compressed them."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def npz_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """An .npz that depends on nothing but the arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type = zipfile.ZIP_DEFLATED
            member.create_system, member.external_attr = 3, 0o644 << 16  # as on Unix, wherever this runs
            body = io.BytesIO()
            np.lib.format.write_array(body, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            archive.writestr(member, body.getvalue(), compresslevel=9)
    return buffer.getvalue()


def make(folder: Path) -> dict[str, np.ndarray]:
    """The sample's four arrays: images (N, 28, 28) and labels (N,), uint8."""
    arrays = {}
    for split, count in EACH:
        images, labels = read_arrays(NAMED["fashion-mnist"], folder, split)
        keep = first_of_each(labels, count=count)
        arrays[f"{split}_images"] = images[keep, 0]
        arrays[f"{split}_labels"] = labels[keep].astype(np.uint8)
    return arrays


def main() -> int:
    """Writes the sample and prints what it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=OUT)
    args = parser.parse_args()
    arrays = make(args.folder)
    packed = npz_bytes(arrays)
    args.out.write_bytes(packed)
    print(f"{args.out}: {len(packed):,} bytes, sha256 {hashlib.sha256(packed).hexdigest()}")
    print(f"contents sha256 {contents_sha256(arrays)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
