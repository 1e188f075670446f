"""nplora: fuse LoRA files exactly, protecting one adapter's directions from the other's.

>>> import nplora
>>> sorted(name for name in dir(nplora) if not name.startswith("_"))[:3]
['Adapter', 'BaseModel', 'Fusion']
"""

from __future__ import annotations

from .version import __version__

TYPE_CHECKING = False  # as typing's, whose import would double the time of `nplora --help`
if TYPE_CHECKING:
    from typing import Any

    from .adapter import Adapter
    from .base import BaseModel
    from .errors import InputError, NploraError, OutputError, UsageError
    from .expansion import expand
    from .fusion import Fusion, convert, fuse
    from .loading import load

# Loaded on first use, so that `import nplora` costs nothing.
_HOMES = {
    "Adapter": "adapter", "load": "loading", "Fusion": "fusion", "convert": "fusion", "fuse": "fusion",
    "BaseModel": "base", "expand": "expansion",
    "NploraError": "errors", "InputError": "errors", "OutputError": "errors", "UsageError": "errors",
}  # fmt: skip

__all__ = [
    "Adapter", "BaseModel", "Fusion", "InputError", "NploraError", "OutputError", "UsageError", "__version__",
    "convert", "expand", "fuse", "load",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
