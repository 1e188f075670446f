"""One base model's layout, and where layouts are read from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import UsageError
from .tables import Part, Piece, Spelling, Table

_FOLDER = Path(__file__).parent
MARK = 12  # characters at a name's beginning that are compared before a table is expanded


@dataclass(frozen=True, eq=False)
class Layout:
    """The modules of one base model; immutable.

    Args:
        name: "sdxl".
        title: "Stable Diffusion XL".
        modelspec: architecture id of the modelspec standard without "/lora": "stable-diffusion-xl-v1-base".
        slots: where the prefixes of a file point: "denoiser", "te", "te1", "te2", "te3" -> component.
        components: "unet" or "transformer", "text_encoder", ...; some may have no known modules.
        kohya: per component, which names kohya files use: "canonical" or "native".
        tables: per component, where its modules are looked up.
        marks: how a module's name can begin; names that begin otherwise are no modules of the model.
        sizes: all (out, flattened in) that its weights have, fused ones too.
        order: place among the base models by how common they are, from 1.
    """

    name: str
    title: str
    modelspec: str | None
    slots: Mapping[str, str]
    components: tuple[str, ...]
    kohya: Mapping[str, str]
    tables: Mapping[str, tuple[Table, ...]] = field(repr=False)
    marks: tuple[str, ...] = field(repr=False)
    sizes: frozenset[tuple[int, int]] = field(repr=False)
    order: int = field(repr=False)

    def find(self, component: str, body: str) -> tuple[Part, ...] | None:
        """Find what a module of a file stands for; None if the component has no such module.

        Args:
            component: "transformer".
            body: dotted or flattened with "_", canonical or native; CLIP's with or without "text_model.".

        >>> load("sdxl").find("unet", "input_blocks_4_1_proj_in")
        (Part(name='down_blocks.1.attentions.0.proj_in', rows=None, swap=False),)
        """
        spelling, step = self.look_up(component, body.replace(".", "_")) or (None, 0)
        return spelling.parts(step) if spelling else None

    def shape(self, component: str, name: str) -> tuple[int, ...] | None:
        """Return the shape of a canonical module's weight.

        (out, in[, kh, kw]); (dim,) of a norm; (n, dim) of an embedding.

        >>> load("sd15").shape("unet", "conv_in")
        (320, 4, 3, 3)
        """
        found = self._canonical(component, name)
        return found[1].shape if found else None

    def native(self, component: str, name: str) -> tuple[str, tuple[Part, ...]]:
        """Return the native module that holds a canonical one, dotted, and all its parts from top to bottom.

        One part with rows None where it is not fused; the name itself where no other is known.

        >>> load("wan-14b").native("transformer", "blocks.2.ffn.net.2")
        ('blocks.2.ffn.2', (Part(name='blocks.2.ffn.net.2', rows=None, swap=False),))
        """
        found = self._canonical(component, name)
        if found is None:
            return name, (Part(name),)
        spelling, _, step = found
        return spelling.native.at(step), spelling.whole(step)

    def modules(self, component: str) -> Iterator[str]:
        """Yield the canonical names of all modules of a component that have a weight."""
        for table in self.tables.get(component, ()):
            yield from table.names()

    def _canonical(self, component: str, name: str) -> tuple[Spelling, Piece, int] | None:
        spelling, step = self.look_up(component, name.replace(".", "_")) or (None, 0)
        if spelling is None or spelling.piece is None or spelling.piece.name.at(step) != name:
            return None
        return spelling, spelling.piece, step

    def look_up(self, component: str, flat: str) -> tuple[Spelling, int] | None:
        """Find what a flattened name stands for in a component, and its place in a run of numbered modules."""
        for table in self.tables.get(component, ()):
            found = table.look_up(flat)
            if found:
                return found
        return None


@cache
def names() -> tuple[str, ...]:
    """Return the names of all base models that have a table."""
    return tuple(sorted(file.stem for file in _FOLDER.iterdir() if file.suffix == ".json"))


@cache
def load(name: str) -> Layout:
    """Read the layout of a base model.

    Raises:
        UsageError: when no table has this name.
    """
    if name not in names():
        raise UsageError("no base model of this name is known", got=name, expected=f"one of {', '.join(names())}")
    content = _read(f"{name}.json")
    components: dict[str, Any] = content["components"]
    tables: dict[str, tuple[Table, ...]] = {}
    for component, table in components.items():
        own = tables[table["as"]] if "as" in table else (Table(table),)
        tables[component] = (*own, _text(table["table"])) if "table" in table else own
    return Layout(
        name=name,
        title=content["title"],
        modelspec=content["modelspec"],
        slots=MappingProxyType(content["slots"]),
        components=tuple(components),
        kohya=MappingProxyType({component: table["kohya"] for component, table in components.items()}),
        tables=MappingProxyType(tables),
        marks=tuple(mark[:MARK] for mark in content["marks"]),
        sizes=frozenset((out, inputs) for out, inputs in content["sizes"]),
        order=content["order"],
    )


@cache
def _text(name: str) -> Table:
    return Table(_read(f"text/{name}.json"))


def _read(file: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((_FOLDER / file).read_bytes())
    return content
