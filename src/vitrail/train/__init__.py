"""Training: from settings and data to a run folder."""

from __future__ import annotations

import sys
import types

from vitrail.train.run import Run, pretrain, resume, train

__all__ = ["Run", "pretrain", "resume", "train"]


class _Room(types.ModuleType):
    """Callable package: importing a submodule binds `vitrail.train` to this module, which has to stay the function as well."""

    __call__ = staticmethod(train)


sys.modules[__name__].__class__ = _Room
