"""The type checker of the tests: beartype, with int where float is asked for, as mypy has it."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
