"""The type checker of the tests: beartype, with int where float is asked for, as mypy has it; and torch.export's integers."""

from __future__ import annotations

import torch
from beartype import BeartypeConf, BeartypeHintOverrides, beartype

SIZES = BeartypeHintOverrides({int: int | torch.SymInt})  # a size that a traced graph leaves open stands for a number
checked = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=SIZES))
