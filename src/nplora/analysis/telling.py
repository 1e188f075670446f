"""What a description says, as labelled facts: a terminal and a page tell the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..wording import count, some

Facts = list[tuple[str, str]]

LABELS = {
    "ss_output_name": "saved as", "ss_sd_model_name": "trained on", "ss_base_model_version": "base by trainer",
    "ss_network_module": "trainer module", "ss_num_train_images": "images", "ss_num_epochs": "epochs",
    "ss_text_encoder_lr": "text encoder lr", "ss_training_comment": "comment", "modelspec.merged_from": "merged from",
}  # fmt: skip
PRODUCTS = {"LoHa", "LoKr"}
LONGEST = 160  # characters of a text from the header


def facts(description: Mapping[str, Any]) -> Facts:
    """What is known of an adapter, and what is odd about it.

    Args:
        description: from `describe`.
    """
    base, form = description["base"], description["format"]
    rows = [("base", f"{base['title']}: {base['evidence']}"), ("format", f"{form['title']}: {form['evidence']}")]
    rows += [("", f"{count(number, 'module')} in the naming of {title}") for title, number in form["also"].items()]
    rows.append(
        ("numbers", ", ".join(f"{name} ({count(number, 'tensor')})" for name, number in description["dtypes"].items()))
    )
    if description["trigger_words"]:
        rows.append(("trigger words", ", ".join(description["trigger_words"])))
    if description["modules_in_file"] != description["modules"]:
        rows.append(
            ("in the file", f"{count(description['modules_in_file'], 'module')}, some of them fused projections")
        )
    products = PRODUCTS.intersection(name.partition(" (")[0] for name in description["kinds"])
    if products:
        rows.append(
            (
                "rank",
                f"of {' and '.join(sorted(products))} that of the product: larger than the dimension of the training",
            )
        )
    if description["biases_and_norms"]:
        rows.append(("biases, norms", f"{count(description['biases_and_norms'], 'delta')} besides"))
    return rows + _odd(description) + [("note", note) for note in description["notes"]]


def _odd(description: Mapping[str, Any]) -> Facts:
    """Zero modules, dead ranks, numbers that are none, keys that belong nowhere."""
    rows, zero, foreign = [], description["zero_modules"], description["foreign_keys"]
    if zero:
        rows.append(("zero", f"{count(len(zero), 'module')} that change nothing: {some(zero)}"))
    dead = [detail for detail in description["details"] if detail["dead_ranks"] and detail["norm"]]
    if dead:
        ranks = sum(detail["dead_ranks"] for detail in dead)
        where = f"{count(len(dead), 'module')} are stored and do nothing: {some([each['module'] for each in dead])}"
        rows.append(("dead ranks", f"{ranks} in {where}"))
    rows += [
        ("not finite", f"{count(broken['values'], 'value')} in {broken['key']} (NaN or infinite)")
        for broken in description["not_finite"][:3]
    ]
    if len(description["not_finite"]) > 3:
        rows.append(("", f"and {len(description['not_finite']) - 3} more tensors"))
    if foreign:
        rows.append(("other keys", f"{count(len(foreign), 'key')} in no module: {some(foreign)}"))
    return rows


def settings(entries: Mapping[str, str], longest: int = LONGEST) -> Facts:
    """What the header says of the training, under names that people know.

    Args:
        entries: ``metadata`` of `describe`.
        longest: characters that are told of each.

    >>> settings({"ss_output_name": "cat", "ss_unet_lr": "1e-4"})
    [('saved as', 'cat'), ('unet lr', '1e-4')]
    """
    rows: dict[str, str] = {}
    for name, value in entries.items():
        label = name.removeprefix("ss_").removeprefix("modelspec.").replace("_", " ")
        text = " ".join(value.split())
        rows.setdefault(LABELS.get(name, label), text if len(text) <= longest else text[: longest - 1] + "…")
    return list(rows.items())


def fates(forecasts: Sequence[Mapping[str, Any]]) -> Facts:
    """What programs do with a file: a sentence for each, and a line for each reason.

    Args:
        forecasts: from `nplora.consumers.forecast`, as data.
    """
    rows = []
    for found in forecasts:
        rows.append((f"for {found['program']}", found["sentence"]))
        rows += [
            (what, f"{count(len(keys), 'key')}, because {why}: {some(keys)}") for what, why, keys in reasons(found)
        ]
        rows.append(("", f"known from: {found['checked']}"))
    return rows


def reasons(found: Mapping[str, Any]) -> list[tuple[str, str, Sequence[str]]]:
    """Why keys are "dropped" or "changed", and which: nothing more where the whole file is refused.

    Args:
        found: a forecast as data.
    """
    if found["refused"]:
        return []
    return [(what, why, keys) for what in ("dropped", "changed") for why, keys in found[what].items()]


def because(found: Mapping[str, Any]) -> str:
    """All reasons in a line, for a table of many files; "-" where there is none."""
    return "; ".join(f"{count(len(keys), 'key')} {what}: {why}" for what, why, keys in reasons(found)) or "-"


def intruders(found: Mapping[str, Any]) -> Facts:
    """How many directions are new, and where the most are.

    Args:
        found: from `nplora.analysis.intruders.find_intruders`.
    """
    rows = [("intruders", found["sentence"])]
    worst = sorted((row for row in found["modules"] if row["intruders"]), key=lambda row: -row["intruders"])
    if worst:
        rows.append(("", "most in " + ", ".join(f"{row['module']} ({row['intruders']})" for row in worst[:3])))
    rows.append(("", thresholds(found)))
    if found["missing"]:
        missing = found["missing"]
        rows.append(("not compared", f"{count(len(missing), 'module')} that the base does not hold: {some(missing)}"))
    return rows


def thresholds(found: Mapping[str, Any]) -> str:
    """The counts at other thresholds, in a line."""
    counted = ", ".join(f"{number} below {threshold}" for threshold, number in found["at"].items())
    return f"by the largest cosine with the base: {counted}, of {found['of']}"
