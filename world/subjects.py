"""What the world can draw: the table of subjects and their category, read from `subjects.json`."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("subjects.json")


@dataclass(frozen=True)
class Subject:
    """One thing to draw.

    Attributes
    ----------
    name : str
        The word used in prompts.
    slug : str
        Name of the drawing in the icon sets.
    category : str
        The wider class ("animal"), used in prompts of subject LoRAs.
    held_out : bool
        True when the base model must never see it.
    """

    name: str
    slug: str
    category: str
    held_out: bool


@cache
def all_subjects() -> tuple[Subject, ...]:
    """Return every subject, the base's first, in the order of the table."""
    table = json.loads(TABLE.read_text())
    return tuple(
        Subject(name, slug, category, part == "held_out")
        for part in ("base", "held_out")
        for category, names in table[part].items()
        for name, slug in names.items()
    )


def subject_named(name: str) -> Subject:
    """Return the subject called `name`; a KeyError names the ones that exist."""
    for subject in all_subjects():
        if subject.name == name:
            return subject
    raise KeyError(f"no subject {name!r}; known: {', '.join(s.name for s in all_subjects())}")
