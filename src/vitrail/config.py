"""Former place of the settings, which are in `vitrail.settings`."""


def __getattr__(name: str) -> object:
    """Raise ImportError with the new place."""
    if name.startswith("__"):  # what Python itself asks of a module
        raise AttributeError(name)
    raise ImportError(f"vitrail.config is vitrail.settings now; from vitrail.settings import {name}")
