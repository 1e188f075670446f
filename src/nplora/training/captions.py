"""Training pictures with their captions, and the seed that follows from them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError, UsageError

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
KINDS = ("subject", "style")
# Words that trainings use because base models mean nothing by them.
RARE = ("sks", "stl", "zwx", "ohwx", "qvl", "vrk", "jpk", "xth")

Captioned = list[tuple[Path, str]]


def captioned(images: Path, prompt: str) -> Captioned:
    """Every picture of a folder with its caption.

    ``metadata.jsonl`` (diffusers' custom: ``file_name``, ``text``) wins; else ``{name}`` in the prompt stands for the
    file's name without a trailing number: ``cat-2.png`` under "a {name} in stl style" reads "a cat in stl style".

    Raises:
        InputError: there is no such folder, no picture in it, or a table that cannot be read.
    """
    if not images.is_dir():
        raise InputError("no such folder", file=images, hint="--images takes a folder of pictures.")
    table = images / "metadata.jsonl"
    if table.exists():
        return _from_table(table)
    files = sorted(file for file in images.iterdir() if file.suffix.lower() in PICTURES)
    if not files:
        raise InputError("no pictures", file=images, expected=", ".join(PICTURES))
    return [(file, prompt.replace("{name}", re.sub(r"[-_ ]?\d+$", "", file.stem))) for file in files]


def _from_table(table: Path) -> Captioned:
    try:
        rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
        found = [(table.parent / str(row["file_name"]), str(row["text"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"cannot be read ({type(error).__name__}: {error})", file=table,
            expected='lines like {"file_name": "cat.png", "text": "a cat"}',
        ) from None  # fmt: skip
    for file, _ in found:
        if not file.is_file():
            raise InputError("no such picture", file=table, key=file.name, hint="Check file_name in the table.")
    if not found:
        raise InputError("names no picture", file=table)
    return found


def content_seed(pairs: Sequence[tuple[Path, str]], kind: str) -> int:
    """A seed that follows from the pictures' bytes and captions: different content, different seed.

    A constant would give every LoRA the same random down factors. They hardly move in training, so a subject and a
    style trained from one seed lie in each other's directions, and a projection that protects one deletes the other.
    """
    digest = hashlib.sha256(kind.encode())
    for file, text in pairs:
        digest.update(file.read_bytes() + text.encode())
    return int.from_bytes(digest.digest()[:4], "big")


def trigger_of(prompt: str) -> str:
    """The words that call the adapter up: the rare words of the prompt, else the whole of it.

    >>> trigger_of("a sks in {name} style"), trigger_of("a drawing by hand of a {name}")
    ('sks', 'a drawing by hand of a')
    """
    words = [word for word in prompt.replace(",", " ").split() if word in RARE]
    return ", ".join(words) or " ".join(prompt.replace("{name}", "").split())


def check_kind(kind: str) -> None:
    """Make sure that the kind is known.

    Raises:
        UsageError: it is not.
    """
    if kind not in KINDS:
        raise UsageError(f"unknown kind {kind!r}", expected=" or ".join(KINDS))
