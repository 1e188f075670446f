#!/usr/bin/env python3
"""Derive src/nplora/layouts/*.json from diffusers' and transformers' model classes plus written rules for native names.

    python tools/derive_layouts.py            write the files
    python tools/derive_layouts.py --check    compare the files with a fresh derivation, and the native names with
                                              what diffusers' own checkpoint converters make of them

Needs torch, diffusers and transformers (made with torch 2.13, diffusers 0.42.1, transformers 5.24); no weights and
no network: every model is built on the meta device from its configuration in base_models.py; native_names.py has the
rules for the original checkpoints' names.

A layout file is {"title", "modelspec", "order", "slots", "marks", "components": {component: {"kohya", "rows", ...}}}.
- A row is [native, [canonical, *shape], ...]: a native module and the canonical ones whose weights it stacks, top to
  bottom; native is null where both are called the same. Each name may hold one range {a..b}; the ranges of a row run
  side by side. ["norm_out.linear", 6144, 3072, "swap"] has its halves in the opposite order in the native file.
- "also" holds rows of the same form for spellings that are read but never written.
- "table" names a file of text/ whose rows belong to the component too; "as" names a component with the same modules.
- "marks" are the first parts that a module's name can have, "sizes" the (out, flattened in) of all weights; "order"
  decides ties (1: the most common base model).
- In text/: "optional" is a beginning of the canonical names that files may leave out or add.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from base_models import BASES, T5_XXL, TEXT_TITLES, Base, Denoiser, Shapes, clip

if TYPE_CHECKING:
    from nplora.layouts import Layout

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "src" / "nplora" / "layouts"


def weights(model: torch.nn.Module) -> Shapes:
    """Every module that has a weight -> its shape, in the model's order."""
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.nn.Parameter):
            found[name] = tuple(weight.shape)
    return found


@dataclass(frozen=True)
class Module:
    """One native module and the canonical ones that it stacks, top to bottom."""

    native: str
    parts: tuple[tuple[str, tuple[int, ...], bool], ...]  # canonical name, shape, swapped halves


def native_modules(shapes: Shapes, denoiser: Denoiser) -> list[Module]:
    """Group a model's modules by the native module that holds them."""
    native_of = denoiser.native_of or (lambda name: (name, 0))
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in shapes:
        native, place = native_of(name)
        groups.setdefault(native, []).append((place, name))
    return [
        Module(native, tuple((name, shapes[name], name in denoiser.swap) for _, name in sorted(parts)))
        for native, parts in groups.items()
    ]


def other_spellings(modules: list[Module], denoiser: Denoiser) -> list[Module]:
    """List the spellings that are read but not written."""
    found = []
    for pattern, replacement in denoiser.also:
        for module in modules:
            spelling = re.sub(pattern + "$", replacement, module.native)
            if spelling != module.native:
                found.append(Module(spelling, module.parts))
    shapes = {name: shape for module in modules for name, shape, _ in module.parts}
    for spelling, parts in denoiser.read_as:
        for number in itertools.count():
            names = [part.replace("#", str(number)) for part in parts]
            if names[0] not in shapes:
                break
            found.append(Module(spelling.replace("#", str(number)), tuple((n, shapes[n], False) for n in names)))
    return found


NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
Row = list[Any]  # as in the file


Run = list[tuple[int, tuple[int, int]]]  # (index of a module, (which number counts in the native, the canonical name))


def runs(modules: list[Module]) -> Iterator[Run]:
    """Yield the longest runs of modules that differ in one number only, for every choice of that number."""
    buckets: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    for index, module in enumerate(modules):
        natives = [int(number) for number in NUMBER.findall(module.native)]
        canonicals = [[int(number) for number in NUMBER.findall(name)] for name, _, _ in module.parts]
        for a, native in enumerate(natives):
            for b, canonical in enumerate(canonicals[0]):
                if any(numbers[b : b + 1] != [canonical] for numbers in canonicals):
                    continue
                parts = tuple((mark(name, b), shape, swap) for name, shape, swap in module.parts)
                key = (mark(module.native, a), parts, native - canonical, a, b)
                buckets.setdefault(key, []).append((native, index))
    for (*_, a, b), members in buckets.items():
        run: Run = []
        last = -1
        for number, index in sorted(members):
            if run and number != last + 1:
                yield run
                run = []
            run.append((index, (a, b)))
            last = number
        yield run


def mark(name: str, which: int, text: str = "#") -> str:
    """Replace one number of a name.

    >>> mark("blocks.3.ff.2", 0)
    'blocks.#.ff.2'
    """
    spot = list(NUMBER.finditer(name))[which]
    return name[: spot.start()] + text + name[spot.end() :]


def squeeze(modules: list[Module]) -> list[Row]:
    """Write the modules as few rows: the longest runs first, what is left over one by one."""
    heap = [(-len(run), run[0][0], run) for run in runs(modules) if len(run) > 1]
    heapq.heapify(heap)
    taken: set[int] = set()
    chosen: list[tuple[int, Row]] = []
    while heap:
        _, _, run = heapq.heappop(heap)
        pieces = free_pieces(run, taken)
        if pieces == [run]:
            taken.update(index for index, _ in run)
            chosen.append((min(index for index, _ in run), run_row(modules, run)))
        else:
            for piece in pieces:
                if len(piece) > 1:
                    heapq.heappush(heap, (-len(piece), piece[0][0], piece))
    for index, module in enumerate(modules):
        if index not in taken:
            chosen.append((index, row(module, module.native, [name for name, _, _ in module.parts])))
    return [line for _, line in sorted(chosen, key=lambda item: item[0])]


def free_pieces(run: Run, taken: set[int]) -> list[Run]:
    """The stretches of a run that no other row has taken."""
    pieces: list[Run] = [[]]
    for member in run:
        if member[0] in taken:
            pieces.append([])
        else:
            pieces[-1].append(member)
    return [piece for piece in pieces if piece]


def run_row(modules: list[Module], run: Run) -> Row:
    first, last = modules[run[0][0]], modules[run[-1][0]]
    a, b = run[0][1]

    def ranged(one: str, other: str, which: int) -> str:
        return mark(one, which, f"{{{NUMBER.findall(one)[which]}..{NUMBER.findall(other)[which]}}}")

    names = [ranged(p[0], q[0], b) for p, q in zip(first.parts, last.parts, strict=True)]
    return row(first, ranged(first.native, last.native, a), names)


def row(module: Module, native: str, names: list[str]) -> Row:
    parts = [
        [name, *shape, "swap"] if swap else [name, *shape]
        for name, (_, shape, swap) in zip(names, module.parts, strict=True)
    ]
    return [None if [native] == names else native, *parts]


# ---------------------------------------------------------------------------------------------- files


def build(cls: Callable[..., torch.nn.Module], *args: object, **config: object) -> Shapes:
    """Build a model on the meta device and list its weights."""
    with torch.device("meta"):
        return weights(cls(*args, **config))


def text_shapes() -> dict[str, Shapes]:
    """Return the modules of the shared text encoders."""
    import transformers as t

    def named(shapes: Shapes) -> Shapes:  # transformers 5 dropped the text_model. level that every file has
        kept = ("text_model.", "text_projection")
        return {n if n.startswith(kept) else f"text_model.{n}": shape for n, shape in shapes.items()}

    return {
        "clip-l": named(build(t.CLIPTextModel, t.CLIPTextConfig.from_dict(clip(768, 12)))),
        "clip-h": named(build(t.CLIPTextModel, t.CLIPTextConfig.from_dict(clip(1024, 23)))),
        "clip-g": named(build(t.CLIPTextModelWithProjection, t.CLIPTextConfig.from_dict(clip(1280, 32)))),
        "t5-xxl": build(t.T5EncoderModel, t.T5Config.from_dict(T5_XXL)),
    }


def plain(shapes: Shapes) -> list[Row]:
    """Write modules whose native names are the canonical ones."""
    return squeeze([Module(name, ((name, shape, False),)) for name, shape in shapes.items()])


def first_parts(rows: Iterable[Row], optional: str = "") -> set[str]:
    """How the names of these rows begin: the part before the first dot, with and without an optional beginning."""
    names = {name for line in rows for name in (line[0], *(part[0] for part in line[1:])) if name}
    return {name.split(".")[0] for name in names | {name.removeprefix(optional) for name in names}}


def sizes(rows: Iterable[Row]) -> set[tuple[int, int]]:
    """All (out, flattened in) of native and canonical weights."""
    found = set()
    for _, *parts in rows:
        shapes = [tuple(size for size in part[1:] if size != "swap") for part in parts]
        outs = [shape[0] for shape in shapes]
        found |= {(out, math.prod(shapes[0][1:])) for out in (*outs, sum(outs))}
    return found


def derive() -> dict[str, str]:
    """Return file (relative to the layouts' folder) -> its text."""
    import diffusers

    files: dict[str, dict[str, Any]] = {}
    for table, shapes in text_shapes().items():
        optional = {} if table == "t5-xxl" else {"optional": "text_model."}
        files[f"text/{table}.json"] = {"title": TEXT_TITLES[table], **optional, "rows": plain(shapes)}
    for order, (name, base) in enumerate(BASES.items(), 1):
        shapes = build(getattr(diffusers, base.denoiser.cls), **base.denoiser.config)
        files[f"{name}.json"] = layout(order, base, shapes, files)
    return {file: dump(content) + "\n" for file, content in files.items()}


def layout(order: int, base: Base, shapes: Shapes, files: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Put a layout file together."""
    modules = native_modules(shapes, base.denoiser)
    rows, also = squeeze(modules), squeeze(other_spellings(modules, base.denoiser))
    kohya = base.denoiser.kohya
    own = {"kohya": kohya, "rows": rows, "also": also} if also else {"kohya": kohya, "rows": rows}
    components: dict[str, dict[str, Any]] = {base.slots["denoiser"]: own}
    for component, other in base.same_as.items():
        components[component] = {"kohya": kohya, "as": other}
    tables: list[dict[str, Any]] = [{"rows": [*rows, *also]}]
    for component, table in base.text.items():
        content: dict[str, Any] = {"kohya": "canonical"}
        if component in base.extra:
            content["rows"] = plain(base.extra[component])
            tables.append(content)
        if table:
            content["table"] = table
            tables.append(files[f"text/{table}.json"])
        components[component] = content
    return {
        "title": base.title, "modelspec": base.modelspec, "order": order, "slots": base.slots,
        "marks": sorted(set().union(*(first_parts(table["rows"], table.get("optional", "")) for table in tables))),
        "sizes": sorted(set().union(*(sizes(table["rows"]) for table in tables))),
        "components": components,
    }  # fmt: skip


def dump(value: object) -> str:
    """Write JSON with one row a line."""
    if isinstance(value, dict) and any(isinstance(inner, dict | list) for inner in value.values()):
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {dump(inner)}" for key, inner in value.items()) + "\n}"
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[\n" + ",\n".join(json.dumps(line, separators=(",", ":")) for line in value) + "\n]"
    return json.dumps(value)


# ---------------------------------------------------------------------------------------------- check


def expected_rows(known: Layout, component: str) -> Iterator[tuple[str, torch.Tensor, dict[str, torch.Tensor]]]:
    """Yield native module, a weight for it that says whose row each row is, and what its canonical parts become.

    The weight of the n-th native module is [1000000 n, 1000000 n + 1, ...], one number a row.
    """
    natives = dict(known.native(component, name) for name in known.modules(component))
    for count, (native, parts) in enumerate(natives.items()):
        out = sum((known.shape(component, part.name) or (0,))[0] for part in parts)
        weight = torch.arange(out) + 1_000_000 * count
        pieces = {}
        for part in parts:
            rows = weight[slice(*part.rows)] if part.rows else weight
            pieces[part.name] = torch.cat(rows.chunk(2)[::-1]) if part.swap else rows
        yield native, weight, pieces


def against_converter(name: str, base: Base) -> list[str]:
    """Run diffusers' own checkpoint converter over a native checkpoint and list where it differs from our table."""
    from diffusers.loaders import single_file_utils

    from nplora.layouts import load

    component = base.slots["denoiser"]
    checkpoint = {"pos_embed": torch.zeros(1)}  # SD3's, which has no weight
    wanted: dict[str, torch.Tensor] = {}
    for native, weight, pieces in expected_rows(load(name), component):
        scale = native.endswith(("query_norm", "key_norm")) or ".norms." in native  # BFL's norms call their weight so
        checkpoint[f"{native}.{'scale' if scale else 'weight'}"] = weight
        checkpoint[f"{native}.bias"] = weight
        wanted |= pieces
    if base.denoiser.converter == "convert_ldm_unet_checkpoint":
        checkpoint = {f"model.diffusion_model.{key}": value for key, value in checkpoint.items()}
    convert = getattr(single_file_utils, base.denoiser.converter or "")
    result = convert(checkpoint, config=dict(base.denoiser.config))
    wrong = [n for n, rows in wanted.items() if not torch.equal(result.get(f"{n}.weight", torch.zeros(0)), rows)]
    return (
        [f"{name}: diffusers' converter gives other rows for {len(wrong)} modules such as {wrong[0]}"] if wrong else []
    )


def check(files: Mapping[str, str]) -> list[str]:
    """List the files that differ from a fresh derivation, and the names that differ from diffusers' converters."""
    present = {str(path.relative_to(FOLDER)): path.read_text() for path in FOLDER.rglob("*.json")}
    faults = [f"{name}: differs from what is derived" for name in files.keys() | present.keys()
              if files.get(name) != present.get(name)]  # fmt: skip
    for name, base in BASES.items():
        if base.denoiser.converter:
            faults += against_converter(name, base)
    return sorted(faults)


def main() -> None:
    parser = argparse.ArgumentParser(description="Derive the layout tables from diffusers' model classes.")
    parser.add_argument("--check", action="store_true", help="write nothing; compare, and fail where something differs")
    files = derive()
    if parser.parse_args().check:
        faults = check(files)
        sys.exit("\n".join(faults) if faults else 0)
    for name, text in files.items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "src"))
    main()
