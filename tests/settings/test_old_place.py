from __future__ import annotations

import pytest


def test_the_former_module_names_the_new_one() -> None:
    with pytest.raises(ImportError, match=r"^vitrail.config is vitrail.settings now; from vitrail.settings import DataConfig$"):
        from vitrail.config import DataConfig  # noqa: F401
