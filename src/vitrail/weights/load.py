"""One call for every origin of weights."""

from __future__ import annotations

from pathlib import Path

from vitrail.config import parse_name
from vitrail.models import ViT, create_model
from vitrail.weights.run_folder import load_run


def load(source: str | Path) -> ViT:
    """A model, ready to use: a run folder's trained one, or a fresh one of a name such as "B/16".

    A run's model is in evaluation mode and knows its `preprocessing` and `classes`. Raises ValueError, in one line, for a
    source that is neither, and for a run whose files are damaged.
    """
    path = Path(source)
    if path.is_dir():
        return load_run(path)
    try:
        parse_name(str(source))
    except ValueError as error:
        raise ValueError(f'"{source}" is neither a run folder nor a name of a model ({error})') from error
    return create_model(str(source))
