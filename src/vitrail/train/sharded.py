"""Sharded checkpoints: every process writes its shards, by torch's DCP, and any number of processes reads them."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

METADATA = ".metadata"


def write(draft: Path, tensors: dict[str, Tensor]) -> None:
    """Write and sync this process's shards. Raises CheckpointException in all processes where one of them fails."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="torch.distributed is", category=UserWarning
        )  # raised without a process group
        save(dict(tensors), storage_writer=FileSystemWriter(draft))


class ShardReader(FileSystemReader):
    """DCP's reader, with an unpickler for its .metadata that allows DCP's records and no other class."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the list of tensors and the file of each shard. Raises pickle.UnpicklingError for any other content."""
        with Path(self.path, METADATA).open("rb") as file:
            metadata = RecordsUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"{METADATA} holds a {type(metadata).__name__}")
        return metadata


class RecordsUnpickler(pickle.Unpickler):
    """Unpickler of DCP's records, sizes and dtypes."""

    KNOWN = frozenset(
        {
            *(
                ("torch.distributed.checkpoint.metadata", name)
                for name in (
                    "ChunkStorageMetadata",
                    "Metadata",
                    "MetadataIndex",
                    "StorageMeta",
                    "TensorProperties",
                    "TensorStorageMetadata",
                    "_MEM_FORMAT_ENCODING",
                )
            ),
            ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
            ("torch.serialization", "_get_layout"),
            ("torch", "Size"),
            *(("torch", name) for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
            *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Return the class of a record. Raises pickle.UnpicklingError for any other name."""
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"{METADATA} asks for {module}.{name}, which is no part of a checkpoint")
        return super().find_class(module, name)


def read_shapes(path: Path) -> dict[str, Tensor]:
    """Read shape and dtype of all tensors of a sharded checkpoint, as meta tensors."""
    tensors: dict[str, Tensor] = {}
    for name, entry in ShardReader(path).read_metadata().state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)
        tensors[name] = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
    return tensors


def read(path: Path, targets: dict[str, Tensor]) -> None:
    """Fill tensors, full or sharded, from a sharded checkpoint."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is", category=UserWarning)  # each process reads alone
        load(dict(targets), storage_reader=ShardReader(path), no_dist=True)


def require_all_shards(draft: Path) -> None:
    """Raise OSError where a process's shards are missing: machines that do not share a file system."""
    for entry in (ShardReader(draft).read_metadata().storage_data or {}).values():
        if not (draft / entry.relative_path).exists():
            raise OSError(f"{entry.relative_path} is missing: the run folder has to be on a disk that all processes share")


def shard_like(like: Tensor, value: Tensor) -> Tensor:
    """Shard a full tensor like another one, without communication."""
    assert isinstance(like, DTensor)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
