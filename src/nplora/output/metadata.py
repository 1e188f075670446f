"""The header of a fused file: both inputs' words, the modelspec entries, and a recipe that a rerun needs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..layouts import Layout
from ..version import __version__

RECIPE = "nplora.recipe"

# True of one training run or one file only: never copied into another file.
STALE = {
    "sshs_model_hash", "sshs_legacy_hash", "ss_network_dim", "ss_network_alpha", "ss_network_module", "ss_network_args",
    "lora_adapter_metadata", "modelspec.hash_sha256", "modelspec.date", "modelspec.thumbnail", "ss_output_name",
    "ss_new_sd_model_hash", RECIPE, "nplora.sentence",
}  # fmt: skip


def trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """The words that call an adapter up, from modelspec, from kohya's folder names, from cloneofsimo's tokens.

    >>> trigger_words({"ss_tag_frequency": '{"10_sks cat": {"sks": 10}}'})
    ['sks cat']
    """
    words = [word.strip() for word in metadata.get("modelspec.trigger_phrase", "").split(",")]
    for folder in _tags(metadata):
        repeats, _, name = folder.partition("_")
        words.append(name if repeats.isdigit() else folder)
    words += [key for key, value in metadata.items() if value == "<embed>"]
    return [word for word in dict.fromkeys(words) if word]


def _tags(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        tags = json.loads(metadata.get("ss_tag_frequency", "{}"))
    except (ValueError, RecursionError):
        return {}
    return tags if isinstance(tags, dict) else {}


def merged(inputs: Mapping[str, Mapping[str, str]]) -> tuple[dict[str, str], list[str]]:
    """Both inputs' metadata in one table, and the entries that were dropped.

    Args:
        inputs: role ("subject", "style") -> metadata.

    Returns:
        Entries on which all inputs agree, under their own names; others under ``nplora.<role>.<name>``; tag
        counts are united. Entries that are true of one file only are dropped and returned by name.
    """
    table: dict[str, str] = {}
    dropped = []
    names = dict.fromkeys(name for metadata in inputs.values() for name in metadata)
    for name in names:
        values = {role: metadata[name] for role, metadata in inputs.items() if name in metadata}
        if name in STALE:
            dropped += [f"{role}: {name}" for role in values]
        elif len(set(values.values())) == 1 and (
            len(values) == len(inputs) or not name.startswith(("ss_", "modelspec."))
        ):
            table[name] = next(iter(values.values()))
        elif name not in ("ss_tag_frequency", "modelspec.trigger_phrase", "modelspec.tags", "format"):
            table.update({f"nplora.{role}.{name}": value for role, value in values.items()})
    tags: dict[str, Any] = {}
    for role, metadata in inputs.items():
        for folder, counts in _tags(metadata).items():
            tags[folder if folder not in tags or tags[folder] == counts else f"{folder} ({role})"] = counts
    if tags:
        table["ss_tag_frequency"] = json.dumps(tags, ensure_ascii=False)
    return table, dropped


def modelspec(
    layout: Layout | None, title: str, inputs: Iterable[Mapping[str, str]], names: Iterable[str]
) -> dict[str, str]:
    """Entries of the modelspec standard (1.0.1) for a LoRA: all it demands, and what can be known of the rest."""
    inputs = list(inputs)
    words = list(dict.fromkeys(word for metadata in inputs for word in trigger_words(metadata)))
    labels = (metadata.get("modelspec.tags", "") for metadata in inputs)
    tags = dict.fromkeys(tag.strip() for text in labels for tag in text.split(",") if tag.strip())
    table = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{(layout and layout.modelspec) or 'unknown'}/lora",
        "modelspec.implementation": "diffusers" if layout is None or not layout.modelspec else _implementation(layout),
        "modelspec.title": title,
        "modelspec.resolution": next(
            (m["modelspec.resolution"] for m in inputs if "modelspec.resolution" in m), "unknown"
        ),
        "modelspec.merged_from": ", ".join(names),
    }
    if words:
        table["modelspec.trigger_phrase"] = ", ".join(words)
    if tags:
        table["modelspec.tags"] = ", ".join(tags)
    return table


def _implementation(layout: Layout) -> str:
    # The standard names the code that reads the architecture.
    for mark, url in (
        ("stable-diffusion", "https://github.com/Stability-AI/generative-models"),
        ("flux", "https://github.com/black-forest-labs/flux"),
    ):
        if (layout.modelspec or "").startswith(mark):
            return url
    return "diffusers"


def recipe_text(
    inputs: Mapping[str, Mapping[str, str | None]],
    method: str,
    values: Mapping[str, object],
    results: Mapping[str, object],
) -> str:
    """The recipe as JSON: inputs with hashes, method, every parameter, version, and what came out."""
    return json.dumps(
        {
            "nplora": __version__,
            "inputs": inputs,
            "method": method,
            "parameters": {name: jsonable(value) for name, value in values.items()},
            "results": results,
        },
        ensure_ascii=False,
    )


def jsonable(value: object) -> object:
    """The value as JSON can say it: infinity as "inf", tuples as lists."""
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return list(value) if isinstance(value, tuple) else value
