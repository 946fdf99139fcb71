"""A checkpoint of a model in parts: every process writes its own, by torch's DCP, and any number of processes reads them."""

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
    """Writes and syncs this process's parts. Raises CheckpointException in all processes where one of them fails."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is", category=UserWarning)  # that there is one process
        save(dict(tensors), storage_writer=FileSystemWriter(draft))


class PartsReader(FileSystemReader):
    """DCP's reader, with an unpickler for its .metadata that looks up no name but those of DCP's own records."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What tensors there are, and in which file each part stands. Raises pickle.UnpicklingError for any other content."""
        with Path(self.path, METADATA).open("rb") as file:
            metadata = RecordsUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"{METADATA} holds a {type(metadata).__name__}")
        return metadata


class RecordsUnpickler(pickle.Unpickler):
    """Builds DCP's records, sizes and dtypes."""

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
        """The class of a record. Raises pickle.UnpicklingError for anything else."""
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"{METADATA} asks for {module}.{name}, which is no part of a checkpoint")
        return super().find_class(module, name)


def sizes(path: Path) -> dict[str, Tensor]:
    """Shape and dtype of all tensors of a checkpoint in parts, as tensors without content."""
    found: dict[str, Tensor] = {}
    for name, entry in PartsReader(path).read_metadata().state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)
        found[name] = torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
    return found


def read(path: Path, targets: dict[str, Tensor]) -> None:
    """Fills tensors, whole ones or this process's parts, from a checkpoint in parts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is", category=UserWarning)  # each process reads alone
        load(dict(targets), storage_reader=PartsReader(path), no_dist=True)


def require_all(draft: Path) -> None:
    """Raises OSError where a process's parts are not beside the others': machines that do not share a file system."""
    for place in (PartsReader(draft).read_metadata().storage_data or {}).values():
        if not (draft / place.relative_path).exists():
            raise OSError(f"{place.relative_path} is not there: the run folder has to be on a disk that all processes share")


def own(like: Tensor, value: Tensor) -> Tensor:
    """A whole tensor as one in parts, split as another is: this process's part of it."""
    assert isinstance(like, DTensor)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
