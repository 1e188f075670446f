"""Many adapters at once: which share a seed, a trainer, a subject. From a few modules, thin algebra, one pass."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..adapters import LowRank
from ..extras import lacking
from ..fusion.jobs import read_stack
from ..output.metadata import RECIPE
from ..reading.adapter import Adapter
from ..threads import run_threads
from .blocks import model_order
from .spectra import FLOAT64, Array, form

SAMPLED = 16  # modules looked at; a seed shows in every one of them
ONE_RUN = 0.5  # down factors at this cosine started from the same numbers: training moves them, chance is 1/sqrt(r n)
ALIKE = 0.2  # column spaces this much alike beyond chance: two trainings of one thing; unrelated ones lie near 0.02

Found = dict[tuple[int, int], tuple[float, ...]]


def relate(adapters: Sequence[Adapter], progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """How each of several adapters stands to each other, as plain data ready for JSON.

    Args:
        adapters: three or more make sense; they may be for different bases.
        progress: called with (modules done, modules in all).

    Returns:
        ``files`` with base and trainer; symmetric matrices in their order, None where two adapters have no module in
        common: ``down_cosine`` (near 1: one seed), ``row_alike`` and ``column_alike`` (mean squared cosine of
        the principal angles beyond chance: 0 unrelated, 1 one space); ``cosine`` of the updates; ``order``, in which
        relatives stand together; ``groups`` of one seed, one subject and one trainer; ``sentences``; and ``modules``,
        the names that were looked at.
    """
    names = sample(adapters)
    pairs: dict[tuple[int, int], list[tuple[float, ...]]] = {}
    work = run_threads(lambda name: _module(adapters, name), names, os.cpu_count() or 1)
    for done, (_, found) in enumerate(work, 1):
        for pair, numbers in found.items():
            pairs.setdefault(pair, []).append(numbers)
        if progress:
            progress(done, len(names))
    count = len(adapters)
    kinds = ("down_cosine", "row_alike", "column_alike", "cosine")
    matrices = {kind: np.full((count, count), np.nan) for kind in kinds}
    for (i, j), rows in pairs.items():
        start, row, column, inner, one, two = np.array(rows).T
        known = start[np.isfinite(start)]
        size = float(np.sqrt(np.sum(one) * np.sum(two)))
        values = (
            median(known) if len(known) else np.nan,
            np.mean(row),
            np.mean(column),
            np.sum(inner) / size if size else 0,
        )
        for name, value in zip(matrices, values, strict=True):
            matrices[name][i, j] = matrices[name][j, i] = value
    files = [_file(adapter) for adapter in adapters]
    _name_apart(files)
    seeds = groups(matrices["down_cosine"], ONE_RUN)
    subjects = groups(matrices["column_alike"], ALIKE)
    return {
        "files": files,
        "modules": names,
        **{name: _plain(matrix) for name, matrix in matrices.items()},
        "order": _order(matrices),
        "groups": {"seed": seeds, "subject": subjects, "trainer": _same(files, "trainer")},
        "sentences": _sentences(files, seeds, subjects),
    }


def sample(adapters: Sequence[Adapter], most: int = SAMPLED) -> list[str]:
    """Low-rank modules that most adapters have, evenly spaced through the model."""
    counts = Counter(
        name for adapter in adapters for name, module in adapter.items() if isinstance(module.update, LowRank)
    )
    chosen: dict[str, None] = {}
    for adapter in adapters:  # each adapter sees its share, whatever the others have
        own = [name for name, module in adapter.items() if isinstance(module.update, LowRank) and counts[name] > 1]
        if not own or sum(name in chosen for name in own) >= most // 2:
            continue
        best = max(counts[name] for name in own)
        shared = sorted((name for name in own if counts[name] == best), key=model_order)
        step = max(1, len(shared) // most)
        chosen.update(dict.fromkeys(shared[step // 2 :: step][:most]))
    return list(chosen)


def _module(adapters: Sequence[Adapter], name: str) -> Found:
    """One module of all adapters that have it: (i, j) -> down cosine, row and column likeness, inner, both energies."""
    having = [(i, adapter[name].update) for i, adapter in enumerate(adapters) if name in adapter.modules]
    updates = [(i, update) for i, update in having if isinstance(update, LowRank)]
    found: Found = {}
    for size in {update.size for _, update in updates}:
        found |= _one_size([(i, update) for i, update in updates if update.size == size])
    return found


def _one_size(updates: Sequence[tuple[int, LowRank]]) -> Found:
    ups = [read_stack([update.up], FLOAT64)[0] for _, update in updates]
    downs = [read_stack([update.down], FLOAT64)[0] for _, update in updates]
    with np.errstate(all="ignore"):
        B, A = np.concatenate(ups, axis=1), np.concatenate(downs)
        G, H = B.T @ B, A @ A.T
    ends = np.cumsum([update.rank for _, update in updates])
    parts = [slice(end - update.rank, end) for end, (_, update) in zip(ends, updates, strict=True)]
    forms = [form(G[None, p, p], H[None, p, p]) for p in parts]
    found: Found = {}
    for a, (i, one) in enumerate(updates):
        for b, (j, two) in enumerate(updates[:a]):
            K, M = H[parts[a], parts[b]], G[parts[a], parts[b]]
            if not (np.isfinite(K).all() and np.isfinite(M).all()):
                continue
            r = min(one.rank, two.rank)
            sizes = (np.trace(H[p, p][:r, :r]) for p in (parts[a], parts[b]))
            length = float(np.sqrt(np.prod(list(sizes))))
            start = float(np.trace(K[:r, :r])) / length if length > 0 else np.nan
            least = min(int(np.sum(np.any(f.right[0] != 0, axis=0))) for f in (forms[a], forms[b]))
            most = max(int(np.sum(np.any(f.right[0] != 0, axis=0))) for f in (forms[a], forms[b]))
            rows = np.sum((forms[a].right[0].T @ K @ forms[b].right[0]) ** 2) / max(least, 1)
            columns = np.sum((forms[a].left[0].T @ M @ forms[b].left[0]) ** 2) / max(least, 1)
            rows, columns = (
                beyond_chance(float(x), most / n) for x, n in zip((rows, columns), one.size[::-1], strict=True)
            )
            scale = one.scale * two.scale
            energies = (u.scale**2 * np.sum(G[p, p] * H[p, p]) for u, p in ((one, parts[a]), (two, parts[b])))
            found[j, i] = (start, rows, columns, scale * float(np.sum(M * K)), *map(float, energies))
    return found


def beyond_chance(alike: float, chance: float) -> float:
    """0 where two spaces are as much alike as unrelated ones of their dimensions, 1 where one holds the other.

    >>> beyond_chance(0.5, 0.5), beyond_chance(1.0, 0.1), beyond_chance(1.0, 1.0)
    (0.0, 1.0, 0.0)
    """
    return (alike - chance) / (1.0 - chance) if chance < 1.0 else 0.0


def groups(similarity: NDArray[np.float64], least: float) -> list[list[int]]:
    """Connected groups of two or more whose members are linked by at least this similarity.

    >>> groups(np.array([[1, 0.95, 0], [0.95, 1, 0], [0, 0, 1]]), 0.9)
    [[0, 1]]
    """
    left, found = set(range(len(similarity))), []
    while left:
        group, frontier = set(), {min(left)}
        while frontier:
            group |= frontier
            frontier = {j for i in frontier for j in left - group if similarity[i, j] >= least}
        left -= group
        if len(group) > 1:
            found.append(sorted(group))
    return found


def _order(matrices: Mapping[str, NDArray[np.float64]]) -> list[int]:
    """An order in which relatives stand together: hierarchical clustering, leaves as close as they can be.

    Raises:
        UsageError: SciPy is not installed.
    """
    try:
        from scipy.cluster.hierarchy import leaves_list, linkage
    except ImportError:
        raise lacking("comparing more than two adapters needs", "plots", ["scipy"]) from None
    start, columns = (np.nan_to_num(matrices[name], nan=-1.0) for name in ("down_cosine", "column_alike"))
    distance = np.maximum(1.0 - np.maximum(start, columns), 0.0)
    condensed = distance[np.triu_indices(len(distance), 1)]
    if len(distance) < 3:  # nothing to order
        return list(range(len(distance)))
    return [int(i) for i in leaves_list(linkage(condensed, "average", optimal_ordering=True))]


def trainer(adapter: Adapter) -> str:
    """The program that an adapter says it comes from, or what its key names tell."""
    metadata = adapter.metadata
    if RECIPE in metadata:
        return "nplora"
    software = metadata.get("software", "")
    with suppress(ValueError, TypeError, KeyError, RecursionError):  # some write JSON, some a name
        software = str(json.loads(software)["name"])
    if software:
        return software
    if "ss_network_module" in metadata:
        return f"sd-scripts ({metadata['ss_network_module']})"
    return f"unknown; names: {adapter.format.title}"


def _file(adapter: Adapter) -> dict[str, Any]:
    ranks = Counter(module.update.rank for module in adapter.values() if isinstance(module.update, LowRank))
    return {
        "file": adapter.path, "name": os.path.basename(adapter.path.rstrip("/")) or adapter.path,  # noqa: PTH119
        "base": adapter.base, "format": adapter.format.title, "trainer": trainer(adapter),
        "modules": len(adapter), "rank": ranks.most_common(1)[0][0] if ranks else None,
        "seed": adapter.metadata.get("ss_seed"),
    }  # fmt: skip


def _name_apart(files: Sequence[dict[str, Any]]) -> None:
    """Two files of one name go by their paths."""
    counts = Counter(file["name"] for file in files)
    for file in files:
        if counts[file["name"]] > 1:
            file["name"] = file["file"]


def _same(files: Sequence[Mapping[str, Any]], key: str) -> list[list[int]]:
    """Groups of two or more files of which the same is known."""
    found: dict[str, list[int]] = {}
    for index, file in enumerate(files):
        found.setdefault(file[key], []).append(index)
    return [group for group in found.values() if len(group) > 1]


def _plain(matrix: Array) -> list[list[float | None]]:
    return [[None if not np.isfinite(value) else round(float(value), 4) + 0.0 for value in row] for row in matrix]


def _sentences(
    files: Sequence[Mapping[str, Any]], seeds: Sequence[Sequence[int]], subjects: Sequence[Sequence[int]]
) -> list[str]:
    """What the groups mean; `relatives` lists them."""
    said = [
        "Between two adapters of one seed mu acts mostly as a strength."
        if seeds
        else "No two of them share a seed: mu hardly matters between any two, balance them by strengths."
    ]
    if subjects:
        said.append("Adapters that write alike add up, and their sum is louder than either: lower their strengths.")
    bases = Counter(file["base"] for file in files)
    if len(bases) > 1:
        counted = ", ".join(f"{base} ({number})" for base, number in bases.items())
        said.append(f"Their bases differ, and only adapters of one base can be fused: {counted}.")
    return said


def relatives(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The groups as labelled facts: one seed; alike in what they write (one subject, run or sort of style); trainers.

    Args:
        found: from `relate`.
    """
    labels = (("seed", "one seed"), ("subject", "write alike"))
    rows = [(label, _listed(found["files"], group)) for kind, label in labels for group in found["groups"][kind]]
    trainers = Counter(file["trainer"].partition(";")[0] for file in found["files"])
    if set(trainers) != {"unknown"}:
        rows.append(("trainers", ", ".join(f"{name} ({number})" for name, number in trainers.items())))
    return rows


def _listed(files: Sequence[Mapping[str, Any]], group: Sequence[int]) -> str:
    return ", ".join(files[i]["name"].removesuffix(".safetensors") for i in group)
