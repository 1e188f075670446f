"""The configs that stand beside or inside a file: PEFT's adapter_config.json, diffusers' metadata, MLX's config.

Patterns are anchored (``^path``): PEFT matches them at the end of a path, and ``proj_out`` would also hit
``single_transformer_blocks.0.proj_out``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import UsageError
from .plan import Plan


def _ranks_and_alphas(plan: Plan, component: str) -> dict[str, Any]:
    """r, lora_alpha, rank_pattern and alpha_pattern of one component."""
    ranks = {name.partition(".")[2]: rank for name, rank in plan.ranks.items() if name.partition(".")[0] == component}
    alphas = {name.partition(".")[2]: plan.scales[name] * rank for name, rank in plan.ranks.items()}
    alphas = {path: _plain(alphas[path]) for path in ranks}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {"^" + re.escape(path): value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {"^" + re.escape(path): value for path, value in alphas.items() if value != alpha},
        "target_modules": _targets(list(ranks)),
    }


def _plain(alpha: float) -> int | float:
    return int(alpha) if float(alpha).is_integer() else alpha


def _targets(paths: list[str]) -> list[str] | str:
    """Full paths; as one expression where a short path would also match the end of a longer one."""
    short = {path for path in paths if path.count(".") == 0 or any(other.endswith("." + path) for other in paths)}
    return "|".join(f"(?:{re.escape(path)})" for path in paths) if short else paths


def peft_config(plan: Plan, configs: Sequence[Mapping[str, object] | None]) -> str:
    """The text of adapter_config.json for a folder that holds one component.

    Raises:
        UsageError: the adapter changes several components, which one PEFT folder cannot hold.
    """
    components = list(dict.fromkeys(name.partition(".")[0] for name in plan.ranks))
    if len(components) > 1:
        raise UsageError(
            "a PEFT folder holds one component", expected="one", got=", ".join(components),
            hint=f"Write one folder for each: --components {components[0]}.",
        )  # fmt: skip
    earlier = next((config for config in configs if config), {})
    kept = {
        name: earlier[name]
        for name in ("base_model_name_or_path", "task_type", "fan_in_fan_out", "bias", "revision")
        if name in earlier
    }
    config = {
        "peft_type": "LORA", "base_model_name_or_path": None, "task_type": None, "fan_in_fan_out": False, "bias": "none",
        "inference_mode": True, "init_lora_weights": True, "lora_dropout": 0.0, "use_dora": False, "use_rslora": False,
        "modules_to_save": None, **kept, **(_ranks_and_alphas(plan, components[0]) if components else {}),
    }  # fmt: skip
    if any(key.endswith(".lora_B.bias") for key, _, _ in plan.specs):
        config["lora_bias"] = True
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def adapter_metadata(plan: Plan) -> dict[str, str]:
    """diffusers' ``lora_adapter_metadata``, where ranks differ: older readers would apply the first rank to all."""
    table: dict[str, object] = {}
    for component in dict.fromkeys(name.partition(".")[0] for name in plan.ranks):
        config = _ranks_and_alphas(plan, component)
        if not config["rank_pattern"]:
            continue
        table.update({f"{component}.{name}": value for name, value in config.items()})
    return {"lora_adapter_metadata": json.dumps(table, sort_keys=True)} if table else {}


def mlx_config(plan: Plan, configs: Sequence[Mapping[str, object] | None]) -> str:
    """MLX's config with the scale 1 that the factors carry, and one rank for all modules."""
    earlier = dict(next((config for config in configs if config), {}))
    rank = max(plan.ranks.values(), default=0)
    earlier["lora_parameters"] = {"rank": rank, "alpha": rank, "dropout": 0.0, "scale": 1.0}
    return json.dumps(earlier, indent=2, sort_keys=True) + "\n"
