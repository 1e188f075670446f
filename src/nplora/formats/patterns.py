"""LoraConfig's ranks and alphas of a written adapter, as PEFT and diffusers read them.

Patterns are anchored (``^path``): PEFT matches them at the end of a path, and ``proj_out`` would also hit
``single_transformer_blocks.0.proj_out``. CLIP's ``text_model.`` is optional in them: transformers 5 dropped it from
``CLIPTextModel`` (not from ``CLIPTextModelWithProjection``), older releases have it.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from . import Written

_OPTIONAL = "text_model."


def ranks_and_alphas(written: Written, component: str) -> dict[str, Any]:
    """r, lora_alpha, rank_pattern, alpha_pattern and target_modules of one component."""
    names = [name for name in written.ranks if name.partition(".")[0] == component]
    ranks = {name.partition(".")[2]: written.ranks[name] for name in names}
    alphas = {name.partition(".")[2]: _plain(written.scales[name] * written.ranks[name]) for name in names}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {"^" + _expression(path): value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {"^" + _expression(path): value for path, value in alphas.items() if value != alpha},
        "target_modules": _targets(list(ranks)),
    }


def _plain(alpha: float) -> int | float:
    return int(alpha) if float(alpha).is_integer() else alpha


def _expression(path: str) -> str:
    bare = path.removeprefix(_OPTIONAL)
    return re.escape(bare) if bare == path else f"(?:{re.escape(_OPTIONAL)})?{re.escape(bare)}"


def _targets(paths: list[str]) -> list[str] | str:
    """Full paths; as one expression where a short path would also match the end of a longer one."""
    short = {path for path in paths if path.count(".") == 0 or any(other.endswith("." + path) for other in paths)}
    if short:
        return "|".join(f"(?:{_expression(path)})" for path in paths)
    return [path.removeprefix(_OPTIONAL) for path in paths]  # PEFT compares the ends of names
