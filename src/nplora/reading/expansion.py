"""Adapters beside their base model: kinds that change a weight by what it is become exact updates of it."""

from __future__ import annotations

from dataclasses import replace

from ..adapters import Full, LowRank, Opaque, rows_of
from ..errors import InputError
from ..layouts import Part
from .adapter import Adapter, Module, with_kernel
from .base import BaseModel


def expand(adapter: Adapter, base: BaseModel | None, dora: str = "exact", *, keep: bool = True) -> Adapter:
    """The adapter with exact updates for the kinds whose update depends on the base weight.

    Args:
        adapter: from `load`.
        base: the base model; without it only what needs none is expanded (a GLoRA whose base half is zero).
        dora: "ignore" takes the direction of a DoRA module without its magnitude, whether or not the base is there.
        keep: remember the stored tensors, which are copied where nothing changes the module.

    Returns:
        A new adapter. Kinds that have no rule, and modules whose weight is not in `base`, stay as they are.

    Raises:
        InputError: a weight's shape is not the module's: the base is of another model.
    """
    modules: dict[str, Module] = {}
    ignored: dict[str, str] = {}
    for name, module in adapter.modules.items():
        update = module.update
        modules[name] = module
        if not isinstance(update, Opaque):
            continue
        told = _told(adapter, module, update, base, dora, ignored)
        if told is not None:
            whole = len(module.origin.parts) == 1 and not any(part.key in ignored for part in update.parts.values())
            stored = update.parts if keep and whole else {}
            shape = adapter.layout.shape(module.component, name.partition(".")[2]) if adapter.layout else None
            modules[name] = replace(module, update=with_kernel(told, shape), stored=stored)
    if modules == adapter.modules:
        return adapter
    return replace(
        adapter, modules=modules, unread={**adapter.unread, **ignored}, notes=(*adapter.notes, *_notes(ignored))
    )


def _told(
    adapter: Adapter, module: Module, update: Opaque, base: BaseModel | None, dora: str, ignored: dict[str, str]
) -> LowRank | Full | None:
    if update.kind == "DoRA" and dora == "ignore" and update.rest is not None:
        for suffix, tensor in update.parts.items():
            if tensor.key not in update.rest.keys and suffix not in (".alpha", ".scale"):
                ignored[tensor.key] = "the magnitude is ignored (--dora ignore)"
        return rows_of(update.rest, update.rows, update.swap)
    told: LowRank | Full | None = update.alone()
    if told is None and base is not None and update.on_base is not None:
        told = _on_base(adapter, module, update, base)
    return None if told is None else rows_of(told, update.rows, update.swap)


def _on_base(adapter: Adapter, module: Module, update: Opaque, base: BaseModel) -> LowRank | Full | None:
    transposed = bool((adapter.config or {}).get("fan_in_fan_out"))
    parts = module.origin.parts
    weight = base.fused(module.component, parts, adapter.layout, transposed)
    if weight is None:
        return None
    size = _whole_size(update, parts)
    if size is not None and weight.matrix.shape != size:
        raise InputError(
            f"the base model's weight has another shape than the adapter's {update.kind} module {module.name}",
            file=base.path, key=weight.matrix.keys[0], expected=f"{size[0]}x{size[1]}",
            got="x".join(map(str, weight.matrix.shape)),
            hint="Use the base model that the adapter was trained on.",
        )  # fmt: skip
    assert update.on_base is not None
    return update.on_base(weight.matrix, weight.kernel)


def _whole_size(update: Opaque, parts: tuple[Part, ...]) -> tuple[int, int] | None:
    """The size of the module as the file names it."""
    last = parts[-1].rows
    if update.size is None or last is None:
        return update.size
    return last[1], update.size[1]


def _notes(ignored: dict[str, str]) -> tuple[str, ...]:
    count = len(ignored)
    if not count:
        return ()
    modules = f"{count} module{'' if count == 1 else 's'}"
    text = (
        f"the magnitudes of {modules} are ignored: only the direction part of DoRA is used, and how its rows or "
        "channels were rescaled is lost; --base MODEL.safetensors keeps it exactly"
    )
    return (text,)
