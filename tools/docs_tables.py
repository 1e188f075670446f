"""Write the tables of docs/formats.md and docs/methods/ from the code: `.venv/bin/python tools/docs_tables.py`.

A table stands between `<!-- NAME -->` and `<!-- end of NAME -->`. `tests/test_docs.py` fails where the page says
something else than the code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from nplora.adapters import all_kinds
from nplora.formats import Format, all_formats, unspelled
from nplora.formats.keys import SUFFIXES
from nplora.layouts import load, names
from nplora.methods import all_methods, known_methods
from nplora.parameters import FORMAT

PAGE = Path(__file__).resolve().parents[1] / "docs" / "formats.md"
SCALE = {"alpha": "an alpha tensor for each module", "folded": "folded into the factors", "config": "in the config"}


def formats() -> str:
    """One row for each file in `formats/`."""
    rows = [
        (f"`{format.name}`", format.title, f"`{format.example}`", _written(format), SCALE[format.scale])
        for format in all_formats().values()
    ]
    return _table(("name", "whose", "a key of it", "written", "scale when written"), rows)


def _written(format: Format) -> str:
    if format.name in FORMAT.choices:
        return f"from any format: `--format {format.name}`" + (" (a folder)" if format.folder else "")
    if format.spell is unspelled:
        return "as `same`, under the names that were read"
    return "as `same`" + (" (a folder)" if format.folder else "")


def kinds() -> str:
    """One row for each kind in `adapters/`."""
    ordered = sorted(all_kinds(), key=lambda kind: (len(kind.fate), kind.fate, kind.name.lower()))
    rows = [(kind.name, ", ".join(sorted(map(_mark, kind.marks))), kind.fate) for kind in ordered]
    return _table(("kind", "recognised by", "what happens"), rows)


def _mark(role: str) -> str:
    """The first suffix that plays a role in a file."""
    if role.startswith("other:"):
        return f"`.{role.removeprefix('other:')}_*`"
    return f"`{next(suffix for suffix, played in SUFFIXES.items() if played == role)}`"


def bases() -> str:
    """One row for each table in `layouts/`."""
    rows = []
    for layout in sorted(map(load, names()), key=lambda layout: layout.order):
        counts = {component: sum(1 for _ in layout.modules(component)) for component in layout.components}
        parts = ", ".join(
            f"`{name}` ({count})" if count else f"`{name}` (names kept)" for name, count in counts.items()
        )
        denoiser = layout.components[0]
        rows.append((layout.title, f"`{layout.name}`", parts, "yes" if _is_fused(layout.name, denoiser) else "no"))
    return _table(
        ("base model", "table", "components (modules with a weight)", "fused projections in the original"), rows
    )


def _is_fused(name: str, component: str) -> bool:
    layout = load(name)
    return any(len(layout.native(component, module)[1]) > 1 for module in layout.modules(component))


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, tuple("---" for _ in head), *rows)]
    return "\n".join(lines)


TABLES = {"formats": formats, "kinds": kinds, "bases": bases}


def methods() -> str:
    """One row for each file in `methods/`."""
    rows = [
        (f"[`{name}`]({name}.md)", method.title, _escaped(_sentence(method.guarantee)))
        for name, method in sorted(known_methods().items(), key=lambda item: (item[0] not in all_methods(), item[0]))
    ]
    return _table(("name", "what", "what holds"), rows)


def facts(name: str) -> str:
    """Formula, guarantee, reference and options of one method."""
    method = known_methods()[name]
    lines = [f"    {method.formula}", ""]
    lines += [f"**Holds:** {_sentence(method.guarantee)}", "", f"**Source:** {_sentence(method.reference)}", ""]
    rows = [
        (f"`{p.option}`", _escaped(p.range), "" if p.default is None else str(p.default), _escaped(p.sentence))
        for p in method.options
    ]
    return "\n".join([*lines, _table(("option", "values", "default", "what it does"), rows)])


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text else ""


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def filled(page: str, tables: Mapping[str, Callable[[], str]] = TABLES) -> str:
    """The page with its tables as the code has them now."""
    for name, make in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise SystemExit(f"there is no table {begin} ... {end}")
        page = f"{before}{begin}\n\n{make()}\n\n{end}{after}"
    return page


def pages() -> dict[Path, Mapping[str, Callable[[], str]]]:
    """Every page with tables, and how each of them is made."""
    found: dict[Path, Mapping[str, Callable[[], str]]] = {PAGE: TABLES}
    folder = PAGE.parent / "methods"
    found[folder / "README.md"] = {"methods": methods}
    found |= {folder / f"{name}.md": {name: partial(facts, name)} for name in known_methods()}
    return found


if __name__ == "__main__":
    for path, tables in pages().items():
        path.write_text(filled(path.read_text(encoding="utf-8"), tables), encoding="utf-8")
