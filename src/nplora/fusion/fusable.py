"""What cannot be fused, and why: said before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping

from ..adapters import Full, Opaque
from ..errors import InputError, UsageError
from ..methods import Merge, Method
from ..reading.adapter import Adapter
from .fused import Member
from .protection import gives_way


def require_count(method: Method | Merge, count: int) -> None:
    if count == 0:
        raise UsageError("there is nothing to fuse", expected="one adapter or more")
    if count < method.least:
        raise UsageError(
            f"the method {method.name} takes two adapters or more", expected="a subject and a style", got=count,
            hint="Name the style after the subject; nplora convert writes one adapter alone.",
        )  # fmt: skip


def require_fusable(
    members: tuple[Member, ...],
    method: Method | Merge,
    values: Mapping[str, object],
    inputs: Mapping[str, Adapter],
    levels: Mapping[str, int],
) -> None:
    for member in members:
        if isinstance(member.update, Opaque):
            _require_carried(member, len(members) > 1, inputs[member.role], values["base"])
    if len(members) < 2:
        return
    for member in members:
        if isinstance(member.update, Full) and not _takes_full(method):
            raise InputError(
                f"the method {method.name} works on low-rank factors, and this module is stored as a full matrix",
                file=inputs[member.role].path, key=member.update.keys[0],
                hint="Use --method linear or np, or make it a LoRA first: nplora convert with --rank or --error.",
            )  # fmt: skip
    if not values.get("mu", 0) or values.get("directions") != "all":
        return
    protecting = {role for above in gives_way(members, levels).values() for role in above}
    for member in members:
        update = member.update
        if member.role in protecting and isinstance(update, Full) and update.around is None:
            who = f"the {member.role}" if member.role in ("subject", "style") else member.role
            raise InputError(
                f"{who} changes this module by a full matrix, whose directions are all there are",
                file=inputs[member.role].path,
                key=update.keys[0],
                hint="Protect a share of its energy instead: --directions 0.9, or --directions 8.",
            )


def _takes_full(method: Method | Merge) -> bool:
    return method.name in ("np", "linear")  # see dense.py


def _require_carried(member: Member, shared: bool, adapter: Adapter, base: object) -> None:
    """A kind whose update is not known may only pass through.

    Raises:
        InputError: another adapter changes the module too, or its strength is not 1.
    """
    kind, name = member.update.kind, member.module.name
    assert isinstance(member.update, Opaque)
    if (shared or member.strength != 1.0) and member.update.on_base is not None:
        ignoring = ", or use the direction alone with --dora ignore" if kind == "DoRA" else ""
        if base is not None:
            raise InputError(
                f"the base model has no weight for the {kind} module {name}", file=str(base), key=member.update.keys[0],
                hint=f"Name the base model that the adapter was trained on{ignoring}.",
            )  # fmt: skip
        why = "both adapters change it" if shared else f"its strength is {member.strength:g}"
        raise InputError(
            f"what the {kind} module {name} adds depends on the base model's weight, and {why}", file=adapter.path,
            key=member.update.keys[0], hint=f"Add --base MODEL.safetensors{ignoring}.",
        )  # fmt: skip
    if shared:
        names = [name for name, other in adapter.modules.items() if getattr(other.update, "kind", "") == kind]
        shown = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
        raise InputError(
            f"{kind} modules cannot be fused yet, and both adapters change {name}", file=adapter.path,
            key=member.update.keys[0], got=f"{kind} in {shown}",
            hint="Convert it to a LoRA first, or leave the component out with --components.",
        )  # fmt: skip
    if member.strength != 1.0:
        raise InputError(
            f"{kind} modules can only be carried along at strength 1", file=adapter.path, key=member.update.keys[0],
            expected=f"--{member.role}-strength 1", got=member.strength, hint="Convert it to a LoRA first.",
        )  # fmt: skip
