"""What a module's factors are multiplied by, and how that is known.

A scale stands in a tensor (alpha), in the config of a PEFT or MLX folder, in the header's
``lora_adapter_metadata``, or nowhere; then it is 1, as kohya, ComfyUI, InvokeAI and diffusers' older files mean it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping

from ..adapters import Group, kind_of, read_scalar
from ..errors import InputError


class Scales:
    """The scale of each module of one file."""

    def __init__(self, config: Mapping[str, object] | None, metadata: Mapping[str, str], file: str) -> None:
        self.file = file
        self.config = config if config and ("r" in config or "lora_alpha" in config) else None
        self.mlx = (config or {}).get("lora_parameters")
        self.metadata = _adapter_metadata(metadata, file)
        self._counts: Counter[str] = Counter()
        self._notes: list[str] = []

    def of(self, group: Group, component: str, path: str) -> tuple[float, str]:
        """The scale of a module and where it comes from.

        Raises:
            InputError: alpha is 0 (programs disagree on what that means) or not finite.
        """
        kind = kind_of(group)
        rank = kind.alpha_rank(group) if kind is not None else None
        scale, source = self._find(group, component, path, rank)
        self._counts[source] += 1
        if not math.isfinite(scale):
            raise group.error(
                "the scale is not finite", "alpha" if "alpha" in group.tensors else None, got=scale,
                hint="The file is damaged: get the original.",
            )  # fmt: skip
        return scale, source

    def _find(self, group: Group, component: str, path: str, rank: int | None) -> tuple[float, str]:
        if rank is None and self.config is not None and self.config.get("peft_type") == "LOKR" and _is_lokr(group):
            rank = int(_pattern(self.config.get("rank_pattern"), path, self.config["r"]))  # type: ignore[call-overload]
        if rank is None:
            return 1.0, "none needed"
        if "scale" in group.tensors:
            return read_scalar(group, "scale"), "scale key"
        if self.config is not None:
            return _peft_scale(self.config, path, rank), "config"
        if isinstance(self.mlx, Mapping):
            return float(self.mlx.get("scale", 1.0)), "config"
        if "alpha" in group.tensors:
            return self._from_alpha(group, rank), "alpha"
        config = self.metadata.get(component) or self.metadata.get("")
        if config:
            return _peft_scale(config, path, rank), "metadata"
        return 1.0, "assumed 1"

    def _from_alpha(self, group: Group, rank: int) -> float:
        alpha = read_scalar(group, "alpha")
        if alpha == 0:
            raise group.error(
                "alpha is 0, which programs read in two ways (off in ComfyUI and A1111, full strength in kohya)",
                "alpha",
                expected="a positive number",
                hint=f"Set it to {rank} for full strength, or remove the module to leave it out.",
            )  # fmt: skip
        return alpha / rank

    def note(self, text: str) -> None:
        """Remember something that the user should know."""
        self._notes.append(text)

    def notes(self) -> tuple[str, ...]:
        """What a user should know about the scales of this file."""
        notes = list(self._notes)
        if self._counts["alpha"] and self._counts["assumed 1"]:
            notes.append(
                f"{self._counts['assumed 1']} modules have no alpha while others do: scale 1 is assumed for them, as "
                "kohya and ComfyUI do (diffusers would take the most common alpha)"
            )
        return tuple(notes)


def _is_lokr(group: Group) -> bool:
    """PEFT multiplies a LoKr of two full sides by alpha / r, as no other program does."""
    return {"lokr_w1", "lokr_w2"} <= group.tensors.keys()


def _adapter_metadata(metadata: Mapping[str, str], file: str) -> dict[str, dict[str, object]]:
    """diffusers' ``lora_adapter_metadata``: flat ``<component>.<field>`` keys -> component -> fields."""
    text = metadata.get("lora_adapter_metadata")
    if text is None:
        return {}
    try:
        flat = json.loads(text)
        pairs = [(*key.rpartition(".")[::2], value) for key, value in flat.items()]
    except (ValueError, AttributeError, RecursionError):
        raise InputError(
            "the adapter metadata is not valid JSON", file=file, key="lora_adapter_metadata",
            hint="Remove that metadata entry; then alpha keys or scale 1 apply.",
        ) from None  # fmt: skip
    table: dict[str, dict[str, object]] = {}
    for component, name, value in pairs:
        table.setdefault(component, {})[name] = value
    return table


def _peft_scale(config: Mapping[str, object], path: str, rank: int) -> float:
    # LoHa's and LoKr's configs call it alpha.
    alpha = _pattern(config.get("alpha_pattern"), path, config.get("lora_alpha", config.get("alpha", 8)))
    try:
        number = float(alpha)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InputError(
            "lora_alpha is not a number", key=path, got=repr(alpha), hint="Mend adapter_config.json."
        ) from None
    return number / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pattern(patterns: object, path: str, default: object) -> object:
    """PEFT's pattern rule: the first key that matches the end of the path, as a regular expression."""
    if isinstance(patterns, Mapping):
        for key, value in patterns.items():
            try:
                if re.match(rf"(.*\.)?({key})$", path):
                    return value
            except re.error:
                continue
    return default
