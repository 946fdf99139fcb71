"""Settings and data to a run folder."""

from __future__ import annotations

import sys
import types

from vitrail.train.run import Run, pretrain, resume, train

__all__ = ["Run", "pretrain", "resume", "train"]


class _Room(types.ModuleType):
    """Python binds a submodule to its name in the package: `vitrail.train` is this room, and is called as the function."""

    __call__ = staticmethod(train)


sys.modules[__name__].__class__ = _Room
