"""Suppress messages of the image decoders; Vitrail reports a corrupt file in one line, with its name."""

from __future__ import annotations

import ctypes
import functools
import logging
import sys
import warnings
from pathlib import Path

_HANDLERS = ("TIFFSetErrorHandler", "TIFFSetWarningHandler", "TIFFSetErrorHandlerExt", "TIFFSetWarningHandlerExt")


def ignore_pillow_warnings() -> None:
    """Ignore Pillow's warnings in this process and its threads; errors are still raised."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


@functools.cache
def silence_decoders() -> None:
    """Silence the logs of Pillow and tifffile, and libtiff's direct output to stderr; once per process."""
    for logger in ("PIL", "tifffile"):
        logging.getLogger(logger).addHandler(logging.NullHandler())  # without a handler, warnings go to stderr
    for path in _loaded_libtiff():
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        for name in _HANDLERS:
            set_handler = getattr(library, name, None)
            if set_handler is not None:
                set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
                set_handler(None)


def _loaded_libtiff() -> set[Path]:
    """Find the copies of libtiff in this process: Pillow's or the system's."""
    import PIL._imaging

    if sys.platform == "linux":
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            mapped = (line.split(maxsplit=5) for line in maps)
            return {Path(fields[5].rstrip("\n")) for fields in mapped if len(fields) == 6 and "/libtiff" in fields[5]}
    return set((Path(PIL._imaging.__file__).parent / ".dylibs").glob("libtiff*.dylib"))
