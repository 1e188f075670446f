"""`python -m world.card`: put the measured figures and pictures into the model card, so that none is typed by hand.

Reads `gates.json` of the runs folder, keeps a rounded copy as `world/measured.json`, rewrites what stands between the
two marks in `world/README.md`, and copies the sheets to `world/pictures`.
"""

import json
import shutil
from collections.abc import Iterable
from statistics import mean

from world.gates import UNTRAINED_STYLES
from world.places import REPOSITORY, runs

README, MEASURED = REPOSITORY / "world" / "README.md", REPOSITORY / "world" / "measured.json"
BEGIN, END = "<!-- figures: written by world.card -->\n", "<!-- end of the figures -->\n"
SUBJECT_GATE, STYLE_GATE, KEPT_GATE = 0.9, 0.7, 0.9


def rounded(value: object) -> object:
    """Return a copy with every float at three decimals."""
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return round(value, 3) if isinstance(value, float) else value


def markdown(head: list[str], rows: Iterable[list[str]]) -> str:
    """Return a table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def by_judges(scores: dict, *keys: str) -> str:
    """Return the figures of one set of pictures, judge by judge."""
    return "; ".join(" / ".join(f"{verdict[key]:.2f}" for key in keys) for verdict in scores.values())


def passes_subject(scores: dict, style: str) -> bool:
    """True when every judge gives the subject's gate in a style."""
    return all(verdict["subject_p"] >= SUBJECT_GATE for verdict in scores[style].values())


def _sees_style(verdict: dict) -> bool:
    return verdict["style_p"] >= STYLE_GATE and verdict["subject_top1"] >= KEPT_GATE


def passes_style(scores: dict) -> bool:
    """True when every judge sees the style and still knows the subjects."""
    return all(_sees_style(verdict) for verdict in scores["unseen"].values())


def gate_table(figures: dict) -> str:
    """The gates: what was asked, what each judge says."""
    judges, base = figures["judges"], figures["base"]
    subjects, styles = _own(figures.get("loras", {}), "subject"), _own(figures.get("loras", {}), "style")
    before = _own(figures.get("earlier", {}), "style")
    names = list(judges)
    rows = [
        ["the judge itself, true pictures: subject / style top-1", ""]
        + [f"{judges[n]['subject, true']:.3f} / {judges[n]['style, true']:.3f}" for n in names],
        ["the judge itself, after the VAE: subject / style top-1", ""]
        + [f"{judges[n]['subject, codec']:.3f} / {judges[n]['style, codec']:.3f}" for n in names],
        ["the judge itself, after the VAE: mean p of the true subject / style", ""]
        + [f"{judges[n]['subject, mean p']:.3f} / {judges[n]['style, mean p']:.3f}" for n in names],
        [f"base, subject top-1 ({base['pictures']} pictures)", "0.97"]
        + [f"**{base['all'][n]['subject_top1']:.3f}**" for n in names],
        ["base, style top-1 (the same pictures)", "0.90"] + [f"**{base['all'][n]['style_top1']:.3f}**" for n in names],
        ["base, mean p of the subject / style asked for", ""]
        + [f"{base['all'][n]['subject_p']:.2f} / {base['all'][n]['style_p']:.2f}" for n in names],
    ]
    for wording, scores in figures["wordings"].items():
        rows.append(
            [f'base, asked as "{wording}": subject / style top-1', ""]
            + [f"{scores[n]['subject_top1']:.2f} / {scores[n]['style_top1']:.2f}" for n in names]
        )
    for style in ("flat", *UNTRAINED_STYLES):
        kind = "its pictures show it" if style == "flat" else "its pictures never show it"
        count = [sum(s[style][n]["subject_p"] >= SUBJECT_GATE for s in subjects) for n in names]
        average = [mean(s[style][n]["subject_p"] for s in subjects) for n in names] if subjects else []
        rows.append(
            [f"subject LoRAs with content p of 0.9 in {style} ({kind})", "all"]
            + [f"{c} of {len(subjects)} (mean p {a:.2f})" for c, a in zip(count, average, strict=True)]
        )
    wanted = f"style p of {STYLE_GATE} and content top-1 of {KEPT_GATE} on unseen subjects"
    for what, some in ((f"style LoRAs with {wanted}", styles), ("those measured before and not again", before)):
        if some:
            count = [sum(_sees_style(s["unseen"][n]) for s in some) for n in names]
            rows.append([what, "15 in all"] + [f"{c} of {len(some)}" for c in count])
    return markdown(["what", "gate", *names], rows)


def _own(table: dict, kind: str) -> list[dict]:
    """Return the scores of the rank-4 LoRAs with a seed of their own."""
    return [s for name, s in table.items() if name.startswith(kind) and name.endswith("-r4-own")]


def lora_tables(figures: dict, which: str) -> str:
    """One row a LoRA: what both judges say of it."""
    table, text = figures.get(which, {}), ""
    shown = ("flat", *UNTRAINED_STYLES)
    subjects = {name: s for name, s in table.items() if name.startswith("subject")}
    styles = {name: s for name, s in table.items() if name.startswith("style")}
    spread = figures["spread"]
    text += (
        "Subjects, content p / style p, judge 1; judge 2 (8 pictures a cell). Spread is how much pictures of one prompt "
        f"differ (deviation between them, of 255, in flat); for true pictures at their placements it is "
        f"{spread['true']:.0f}, for the base's own subjects {spread['base']:.0f}.\n\n"
    )
    text += markdown(
        ["LoRA", *shown, "spread", f"p of 0.9 in flat, {', '.join(UNTRAINED_STYLES)}"],
        (
            [
                name.removeprefix("subject-"),
                *(by_judges(s[style], "subject_p", "style_p") for style in shown),
                f"{s['spread']:.0f}",
                ", ".join("yes" if passes_subject(s, style) else "no" for style in shown),
            ]
            for name, s in sorted(subjects.items())
        ),
    )
    text += "Styles on 8 subjects their pictures never showed, 2 pictures each, judge 1; judge 2:\n\n"
    text += markdown(
        ["LoRA", "style p", "content top-1", "content p", "gate"],
        (
            [
                name.removeprefix("style-"),
                *(by_judges(s["unseen"], key) for key in ("style_p", "subject_top1", "subject_p")),
                "yes" if passes_style(s) else "no",
            ]
            for name, s in sorted(styles.items())
        ),
    )
    return text


def tables(figures: dict) -> str:
    """Everything that stands between the marks."""
    text = "\n" + gate_table(figures) + lora_tables(figures, "loras")
    if figures.get("earlier"):
        text += (
            "### Measured before\n\nOf an earlier version of this card and its second judge, styles after 8 pictures at rate "
            "2e-3; not trained or measured again since.\n\n" + lora_tables(figures, "earlier")
        )
    return text


def with_earlier(figures: dict, before: dict) -> dict:
    """Return the figures with what an earlier card measured and this one did not: LoRAs apart, under "earlier".

    Nothing is kept once the base has been measured anew, for then it is another base or there are other judges.
    """
    base = before.get("base", {})
    if figures.get("base", base) != base:
        return figures
    measured = before.get("earlier", {}) | before.get("loras", {})
    kept = {name: scores for name, scores in measured.items() if name not in figures.get("loras", {})}
    return {key: before[key] for key in ("base", "wordings", "spread") if key in before} | figures | {"earlier": kept}


def main() -> None:
    """Write `measured.json` and the card's figures."""
    figures = rounded(json.loads((runs() / "gates" / "gates.json").read_text()))
    figures = with_earlier(figures, json.loads(MEASURED.read_text()) if MEASURED.exists() else {})
    MEASURED.write_text(json.dumps(figures, indent=1) + "\n")
    card = README.read_text()
    before, rest = card.split(BEGIN)
    after = rest.split(END)[1]
    README.write_text(before + BEGIN + tables(figures) + END + after)
    for sheet in ("gates/base.png", "gates/loras.png", "curves.png"):
        if (runs() / sheet).exists():
            shutil.copy(runs() / sheet, README.parent / "pictures")


if __name__ == "__main__":
    main()
