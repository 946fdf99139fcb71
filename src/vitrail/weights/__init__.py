"""Load checkpoints as our models, and write our models to files."""

from __future__ import annotations

from vitrail.models.receipt import Receipt
from vitrail.weights.convert import convert
from vitrail.weights.hub import push_to_hub
from vitrail.weights.load import load
from vitrail.weights.run_folder import RunInfo, read_run, save_model
from vitrail.weights.suggest import suggest_names

__all__ = ["Receipt", "RunInfo", "convert", "load", "push_to_hub", "read_run", "save_model", "suggest_names"]
