"""Suggest a names file for the checkpoint of a home-made ViT."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from vitrail.text import printable_errors
from vitrail.weights.infer import OpenQuestions
from vitrail.weights.load import check_changes, is_homemade, open_weights
from vitrail.weights.names_file import NamesFile, names_of_guess
from vitrail.weights.prove import prove
from vitrail.weights.recognise import bare_shapes, unstack
from vitrail.weights.structure import NoViT, guess
from vitrail.weights.vit import load_vit


@printable_errors()
def suggest_names(
    source: str | os.PathLike[str] | Mapping[str, Any] | nn.Module, *, revision: str | None = None, **answers: Any
) -> NamesFile:
    """Guess which tensor of ours each tensor of a home-made ViT is, as a names file to print, to `save` and to mend.

    Of a live module the guess is proved: both compute the same on random images, also with random weights. Of a file it
    is matched by shape, name and order, and the questions that are left are listed; `answers` leaves them out.
    Raises ValueError for tensors of no plain ViT, and for those of a library, which need no names.
    """
    check_changes(answers)
    weights = open_weights(source, revision=revision)
    checkpoint = weights.checkpoint
    if checkpoint is None or not is_homemade(weights):
        raise ValueError(f"{source if checkpoint is None else checkpoint.file} needs no names file: load reads it as it is")
    if isinstance(source, nn.Module):
        return prove(source, checkpoint, None, answers)
    shapes = bare_shapes(unstack(checkpoint.tensors))
    try:
        names = names_of_guess(guess(shapes), shapes)
    except NoViT as error:
        raise ValueError(f"no plain ViT is in these {len(shapes)} tensors: {error}") from error
    names = dataclasses.replace(names, source="" if isinstance(source, Mapping) else str(source), answers=answers)
    try:
        load_vit(dataclasses.replace(checkpoint, names=names), None, answers, channels="repeat", strict=True)
    except OpenQuestions as error:
        names = dataclasses.replace(names, questions=error.questions)
    return names
