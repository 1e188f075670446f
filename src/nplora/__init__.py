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

    from .analysis.comparison import compare
    from .analysis.inspection import describe
    from .analysis.method_table import compare_methods
    from .checking.verify import verify
    from .errors import InputError, NploraError, OutputError, UsageError
    from .fusing import Fusion, convert, fuse
    from .reading.adapter import Adapter
    from .reading.base import BaseModel
    from .reading.expansion import expand
    from .reading.loading import load
    from .recipes import run_recipe

# Loaded on first use, so that `import nplora` costs nothing.
_HOMES = {
    "load": "reading.loading", "Adapter": "reading.adapter", "expand": "reading.expansion", "BaseModel": "reading.base",
    "fuse": "fusing", "convert": "fusing", "Fusion": "fusing", "run_recipe": "recipes", "verify": "checking.verify",
    "describe": "analysis.inspection", "compare": "analysis.comparison", "compare_methods": "analysis.method_table",
    "NploraError": "errors", "InputError": "errors", "OutputError": "errors", "UsageError": "errors",
}  # fmt: skip

__all__ = [
    "Adapter", "BaseModel", "Fusion", "InputError", "NploraError", "OutputError", "UsageError", "__version__",
    "compare", "compare_methods", "convert", "describe", "expand", "fuse", "load", "run_recipe", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
