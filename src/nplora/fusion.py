"""Fuse a subject and a style: pair their modules, say what happens to each key, and write the result."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .adapter import Adapter
from .adapters import Full, LowRank, Opaque
from .errors import InputError, UsageError
from .fused import Fused, FusedModule, Progress
from .leftovers import LeftOut
from .methods import all_methods
from .output import save_fusion
from .pairing import Pair, pair_modules
from .parameters import FUSE, check_all
from .projection import Job
from .report import fusion_report
from .sharing import share_jobs


class Fusion(Fused):
    """The fusion of two adapters: a mapping from canonical module names to `FusedModule`.

    `save` writes it, `report` says what it did.
    """

    def report(self) -> dict[str, Any]:
        """What the fusion did, as plain data: overlap, regime in words, every key's fate."""
        return fusion_report(self)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        format: str | None = None,
        dtype: str | None = None,
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Write the fused adapter, whole or not at all, and return the report.

        Args:
            path: a ``.safetensors`` file, or a folder for the peft format.
            format, dtype: as in `fuse`; the values given there are the default.
            overwrite: replace an existing output.

        Raises:
            OutputError: it cannot be written; nothing is changed then.
        """
        return save_fusion(
            self, path, format or self.parameters["format"], dtype or self.parameters["dtype"], overwrite
        )


def fuse(subject: Adapter, style: Adapter, *, progress: Progress | None = None, **parameters: Any) -> Fusion:
    """Fuse two adapters of one base model so that the style keeps its directions (NP-LoRA, arXiv 2511.11051).

    Per module ``dW = w_s dW_s + w_c dW_c (I - g V V^T)`` with ``g = mu/(1+mu)`` and V the style's right singular
    vectors. Modules that only one adapter has pass through.

    Args:
        subject, style: adapters from `load`.
        progress: called with (projections done, projections in all).
        **parameters: those of `nplora.parameters.FUSE`: mu, directions, side, subject_strength, style_strength,
            components, format, dtype, device, strict, allow_nonfinite.

    Returns:
        The fusion; nothing is computed before it is saved, reported or looked at.

    Raises:
        UsageError: a parameter is out of range.
        InputError: the adapters are for different bases, or both change a module that cannot be fused.

    >>> fused = fuse(load("cat.safetensors"), load("ink.safetensors"), mu=0.5)  # doctest: +SKIP
    >>> fused.save("cat-ink.safetensors", format="kohya")  # doctest: +SKIP
    """
    values = check_all(FUSE, parameters)
    method = all_methods()["np"]
    chosen = {parameter.name: values[parameter.name] for parameter in method.parameters}
    left_out = _unread({"subject": subject, "style": style})
    pairs = pair_modules(subject, style, _component_filter(subject, style, values["components"]), left_out)
    strengths = (float(values["subject_strength"]), float(values["style_strength"]))  # type: ignore[arg-type]
    modules, notes = {}, []
    side = str(values["side"])
    for pair in pairs:
        kept = _without_silent(pair, strengths, left_out)
        if kept is None:
            continue
        _require_fusable(kept, strengths, values, subject, style)
        modules[pair.name] = FusedModule(
            pair.name, kept.subject, kept.style, strengths, _job(kept, strengths, side), method, chosen
        )
    if not modules:
        raise UsageError(
            "nothing is left to write", expected="a module with a strength other than 0",
            hint="Check --components and the two strengths.",
        )  # fmt: skip
    if side == "input" and values["directions"] == "all":
        share_jobs(modules)
    notes += [f"{role}: {note}" for role, adapter in (("subject", subject), ("style", style)) for note in adapter.notes]
    if values["strict"] and left_out:
        key, why = next(iter(left_out.items()))
        raise InputError(
            f"keys would be left out ({len(left_out)} in all; {why})",
            key=key,
            hint="Go on without --strict to allow it.",
        )
    return Fusion(subject, style, values, modules, left_out, tuple(notes), progress)


def _component_filter(subject: Adapter, style: Adapter, asked: object) -> frozenset[str] | None:
    if asked is None:
        return None
    names: frozenset[str] = frozenset(asked)  # type: ignore[call-overload]
    known = {*subject.components, *style.components}
    unknown = names - known
    if unknown:
        raise UsageError(
            f"no component is called {', '.join(sorted(unknown))}",
            expected=" or ".join(sorted(known)),
            hint="Check --components.",
        )
    return names


def _unread(inputs: Mapping[str, Adapter]) -> LeftOut:
    left_out = LeftOut()
    for role, adapter in inputs.items():
        for key, why in adapter.unread.items():
            left_out.add(role, [key], why)
    return left_out


def _without_silent(pair: Pair, strengths: tuple[float, float], left_out: LeftOut) -> Pair | None:
    """The pair without the side whose strength is 0 (no style, rather than a projector that is not seen)."""
    sides = {"subject": pair.subject, "style": pair.style}
    for (role, module), strength in zip(sides.items(), strengths, strict=True):
        if module is not None and strength == 0:
            left_out.add(role, module.keys, f"{role} strength is 0")
            sides[role] = None
    if not any(sides.values()):
        return None
    return Pair(pair.name, sides["subject"], sides["style"])


def _require_fusable(
    pair: Pair, strengths: tuple[float, float], values: Mapping[str, object], subject: Adapter, style: Adapter
) -> None:
    both = pair.subject is not None and pair.style is not None
    for role, module, adapter, strength in (
        ("subject", pair.subject, subject, strengths[0]), ("style", pair.style, style, strengths[1]),
    ):  # fmt: skip
        if module is None or not isinstance(module.update, Opaque):
            continue
        kind = module.update.kind
        names = [name for name, other in adapter.modules.items() if getattr(other.update, "kind", "") == kind]
        shown = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
        if both:
            raise InputError(
                f"{kind} modules cannot be fused yet, and both adapters change {module.name}", file=adapter.path,
                key=module.update.keys[0], got=f"{kind} in {shown}",
                hint="Convert it to a LoRA first, or leave the component out with --components.",
            )  # fmt: skip
        if strength != 1.0:
            raise InputError(
                f"{kind} modules can only be carried along at strength 1", file=adapter.path, key=module.update.keys[0],
                expected=f"--{role}-strength 1", got=strength, hint="Convert it to a LoRA first.",
            )  # fmt: skip
    full = pair.style.update if pair.style is not None and isinstance(pair.style.update, Full) else None
    if both and full is not None and values["directions"] == "all" and values["mu"] != 0:
        raise InputError(
            "the style changes this module by a full matrix, whose directions are all there are",
            file=style.path,
            key=full.keys[0],
            hint="Protect a share of its energy instead: --directions 0.9, or --directions 8.",
        )


def _job(pair: Pair, strengths: tuple[float, float], side: str) -> Job | None:
    """The projection of a pair of low-rank updates; None where there is nothing to project."""
    if pair.subject is None or pair.style is None:
        return None
    subject, style = pair.subject.update, pair.style.update
    if not (isinstance(subject, LowRank) and isinstance(style, LowRank)):
        return None
    factors = (strengths[0] * subject.scale, strengths[1] * style.scale)
    return Job(f"{side}:{pair.name}", pair.name, (subject.up, subject.down), (style.up, style.down), factors, side)


def alone(adapter: Adapter, components: object = None) -> Fusion:
    """One adapter (or some components of it) at strength 1 as a fusion: what it takes to write it in another format."""
    values, method = check_all(FUSE, {"components": components}), all_methods()["np"]
    chosen = {parameter.name: values[parameter.name] for parameter in method.parameters}
    kept = _component_filter(adapter, adapter, values["components"])
    modules: dict[str, FusedModule] = {}
    left_out = _unread({"subject": adapter})
    for name, module in adapter.items():
        if kept is None or module.component in kept:
            modules[name] = FusedModule(name, module, None, (1.0, 1.0), None, method, chosen)
        else:
            left_out.add("subject", module.keys, "not among --components")
    return Fusion(adapter, None, values, modules, left_out, adapter.notes)


def convert(
    adapter: Adapter,
    path: str | os.PathLike[str],
    *,
    format: str = "same",
    dtype: str = "same",
    components: object = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write an adapter in another format; its product B A is the same in every module.

    Args:
        adapter: from `load`.
        path: a ``.safetensors`` file, or a folder for the peft format.
        format, dtype, components: as in `fuse`.
        overwrite: replace an existing output.

    Returns:
        The report, as of `Fusion.save`.

    Raises:
        OutputError: it cannot be written; nothing is changed then.
    """
    return save_fusion(alone(adapter, components), path, format, dtype, overwrite)
