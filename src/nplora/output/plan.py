"""Lay the output file out: which tensors it holds and what each is made of, before a number is computed.

A fused module is a stack of strands: ``dW = sum_i factor_i * up_i @ down_i``, so ``up = [up_1 up_2 ..]`` and
``down = [down_1; down_2; ..]`` with one scale in front. Tensors are described as bands (rows of a tensor made of
pieces), so that each band can be written as soon as its pieces are there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from math import prod
from types import MappingProxyType
from typing import NamedTuple

from ..adapters import Combined, Factor, LowRank, Matrix
from ..errors import UsageError
from ..formats import Format, Spelling
from ..layouts import Layout, Part
from ..storage import Spooled, wider

JOB_SIDE = {"down": "input", "up": "output"}  # a projection on the input side rewrites the down factor
ALPHA_TOLERANCE = 2.0**-24  # a float32 alpha cannot say a scale more exactly


class Strand(NamedTuple):
    """One summand ``factor * up @ down`` of a module. ``job`` names the projection that rewrites one of its sides."""

    source: str  # the adapter's role: "subject", "style", "a", ...; or "merged"
    up: Matrix
    down: Matrix
    factor: float
    job: str | None = None


class OutputModule(NamedTuple):
    """A canonical module of the output: its strands, its kernel, and where it stood in the file that names it."""

    name: str
    strands: tuple[Strand, ...]
    kernel: tuple[int, ...]
    spelling: Spelling | None = None  # as in the file whose naming is kept
    suffixes: Mapping[str, str] = MappingProxyType({})  # that file's suffixes; the format's own elsewhere

    @property
    def component(self) -> str:
        return self.name.partition(".")[0]

    @property
    def path(self) -> str:
        return self.name.partition(".")[2]

    @property
    def out(self) -> int:
        return self.strands[0].up.shape[0]


class Piece(NamedTuple):
    """A rectangle of a band: a stored matrix times a factor, or (with ``job``) the projected one times it."""

    row: int
    column: int
    matrix: Matrix
    factor: float
    job: str | None = None
    swap: bool = False  # halves of the rows are exchanged


class Band(NamedTuple):
    """Rows ``row`` to ``row + shape[0]`` of a tensor, zero where no piece lies."""

    module: str  # the file's module that the tensor belongs to
    key: str
    row: int
    shape: tuple[int, int]
    dtype: str
    pieces: tuple[Piece, ...]
    transposed: bool = False

    @property
    def job(self) -> str | None:
        """The projection that the band waits for, if any."""
        return next((piece.job for piece in self.pieces if piece.job), None)

    @property
    def covered(self) -> bool:
        """Whether the pieces leave no gap."""
        areas = (piece.matrix.shape for piece in self.pieces)
        return sum(rows * columns for rows, columns in areas) == self.shape[0] * self.shape[1]


@dataclass
class Plan:
    """Everything about an output file but its numbers."""

    specs: list[tuple[str, str, tuple[int, ...]]] = field(default_factory=list)
    bands: list[Band] = field(default_factory=list)
    scalars: dict[str, float] = field(default_factory=dict)  # alpha tensors, float32
    scales: dict[str, float] = field(default_factory=dict)  # canonical module -> scale in front of the stack
    ranks: dict[str, int] = field(default_factory=dict)  # canonical module -> rank of the stack
    modules: dict[str, str] = field(default_factory=dict)  # canonical module -> module name in the file
    unnamed: list[str] = field(default_factory=list)  # modules kept under their old names: the format has none
    rewritten: set[str] = field(default_factory=set)  # keys whose bytes are not copies


class _Block(NamedTuple):
    """Ranks of a file module that share one down factor: one strand, or the same strand of several fused parts."""

    strand: Strand
    ups: tuple[tuple[Part, Strand], ...]


@dataclass(frozen=True)
class _FileModule:
    spelling: Spelling
    members: Mapping[str, OutputModule]  # path -> module
    blocks: tuple[_Block, ...]
    out: int
    padding: int = 0  # ranks of zeros, where a format takes one rank for all modules

    @cached_property
    def rank(self) -> int:
        return sum(block.strand.down.shape[0] for block in self.blocks) + self.padding

    @property
    def component(self) -> str:
        return next(iter(self.members.values())).component


def plan_modules(modules: Iterable[OutputModule], format: Format, layout: Layout | None, dtype: str | None) -> Plan:
    """Lay out the low-rank modules of an output file.

    Args:
        modules: canonical modules with their strands.
        format: how to name them; layout: the base model's table.
        dtype: a safetensors dtype for all factors, or None for each tensor's own.

    Returns:
        The plan; its bands cover every low-rank tensor.
    """
    plan = Plan()
    grouped = _padded(_group(modules, format, layout, plan), format)
    scales = _scales(grouped, format, layout)
    for module in grouped:
        scale = scales[module.spelling.module]
        for member in module.members.values():
            plan.scales[member.name] = scale
            plan.ranks[member.name] = module.rank
            plan.modules[member.name] = module.spelling.module
        _lay_out(plan, module, scale, format, dtype)
    return plan


def _padded(modules: list[_FileModule], format: Format) -> list[_FileModule]:
    """Modules with ranks of zeros added where readers do not look at each module's own rank."""
    if format.one_rank:
        largest = max((module.rank for module in modules), default=0)
        return [replace(module, padding=largest - module.rank) for module in modules]
    ranks: dict[str, Counter[int]] = {}
    for module in modules:
        if format.common_rank.isdisjoint(module.members):
            ranks.setdefault(module.component, Counter())[module.rank] += 1
    common = {component: counter.most_common(1)[0][0] for component, counter in ranks.items()}
    return [
        module
        if format.common_rank.isdisjoint(module.members)
        else replace(module, padding=max(0, common.get(module.component, 0) - module.rank))
        for module in modules
    ]


def _group(modules: Iterable[OutputModule], format: Format, layout: Layout | None, plan: Plan) -> list[_FileModule]:
    """Modules of the file with the canonical modules that each holds."""
    spellings: dict[str, Spelling] = {}
    members: dict[str, dict[str, OutputModule]] = {}
    for module in modules:
        spelling = module.spelling or format.spell(module.component, module.path, layout)
        if spelling is None:
            spelling = Spelling(module.name.removeprefix("unknown."), (Part(module.path),))
            plan.unnamed.append(module.name)
        spellings[spelling.module] = spelling
        held = members.setdefault(spelling.module, {})
        if module.path in held:
            raise UsageError(
                "two modules would get one name in the output", key=spelling.module, hint="Choose another --format."
            )
        held[module.path] = module
    return [_file_module(spellings[name], held) for name, held in members.items()]


def _file_module(spelling: Spelling, held: Mapping[str, OutputModule]) -> _FileModule:
    present = [(part, held[part.name]) for part in spelling.parts if part.name in held]
    if not present:  # a name kept from the file: its part is the module itself
        present = [(Part(path), module) for path, module in held.items()]
    blocks: list[_Block] = []
    for source in dict.fromkeys(strand.source for _, module in present for strand in module.strands):
        strands = [(part, strand) for part, module in present for strand in module.strands if strand.source == source]
        first = strands[0][1]
        if len(strands) > 1 and all(_same_down(first, strand) for _, strand in strands):
            blocks.append(_Block(first, tuple(strands)))
        else:
            blocks += [_Block(strand, ((part, strand),)) for part, strand in strands]
    last = spelling.parts[-1]
    out = last.rows[1] if last.rows else present[0][1].out
    return _FileModule(spelling, held, tuple(blocks), out)


def _same_down(one: Strand, other: Strand) -> bool:
    if one.factor != other.factor or (one.job != other.job and (_rewrites(one, "down") or _rewrites(other, "down"))):
        return False
    a, b = one.down, other.down
    if not (isinstance(a, Factor) and isinstance(b, Factor)):
        return a is b
    if a.tensor.source is b.tensor.source and (a.tensor.key, a.rows, a.columns) == (b.tensor.key, b.rows, b.columns):
        return True
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    # Files with split projections repeat the factor bit for bit; the first row alone settles nearly every pair.
    return all(a.read()[rows].tobytes() == b.read()[rows].tobytes() for rows in (slice(1), slice(None)))


def _scales(modules: Sequence[_FileModule], format: Format, layout: Layout | None) -> dict[str, float]:
    """The scale in front of each module's stack, chosen so that the style's factors are copied where possible."""
    if format.scale == "folded":
        return {module.spelling.module: 1.0 for module in modules}
    natural = {module.spelling.module: _natural_scale(module) for module in modules}
    if not format.uniform_alpha(layout):
        return natural
    alphas: dict[str, Counter[float]] = {}
    for module in modules:
        alpha = natural[module.spelling.module] * module.rank
        alphas.setdefault(module.component, Counter())[alpha] += 1
    common = {component: counter.most_common(1)[0][0] for component, counter in alphas.items()}
    return {module.spelling.module: common[module.component] / module.rank for module in modules}


def _natural_scale(module: _FileModule) -> float:
    factors = {block.strand.source: abs(block.strand.factor) for block in reversed(module.blocks)}
    return factors.get("style") or next((factor for factor in factors.values() if factor), 1.0)  # else the last one's


def _lay_out(plan: Plan, module: _FileModule, scale: float, format: Format, dtype: str | None) -> None:
    name = module.spelling.module
    member = next(iter(module.members.values()))
    kernel, suffixes = member.kernel, {**format.suffixes, **member.suffixes}
    down_key, up_key = join(name, suffixes["down"]), join(name, suffixes["up"])
    down, up = _down_pieces(module, scale), _up_pieces(module)
    width = module.blocks[0].strand.down.shape[1]
    down_shape = (module.rank, width // prod(kernel), *kernel) if kernel else (module.rank, width)
    up_shape = (module.out, module.rank, *(1 for _ in kernel))
    for key, pieces, shape in ((down_key, down, down_shape), (up_key, up, up_shape)):
        kind = dtype or _dtype(pieces)
        flat = (shape[0], prod(shape[1:]))
        plan.specs.append((key, kind, flat[::-1] if format.transposed else shape))
        plan.bands += _bands(name, key, pieces, flat, kind, format.transposed)
        computed = any(isinstance(piece.matrix, Combined | Spooled) for piece in pieces)
        if computed or any(piece.job or piece.factor != 1.0 or piece.matrix.dtype != kind for piece in pieces):
            plan.rewritten.add(key)
    if format.scale == "alpha":
        plan.scalars[join(name, suffixes["alpha"])] = scale * module.rank
        plan.specs.append((join(name, suffixes["alpha"]), "F32", ()))


def join(module: str, suffix: str) -> str:
    """A key from a module's name and a role's suffix (SAM's numbered keys put the suffix first).

    >>> join("unet.mid.proj", ".lora_A.weight"), join("w_003", "w_a_")
    ('unet.mid.proj.lora_A.weight', 'w_a_003')
    """
    return suffix + module.removeprefix("w_") if suffix.startswith("w_") else module + suffix


def _down_pieces(module: _FileModule, scale: float) -> list[Piece]:
    pieces, row = [], 0
    for block in module.blocks:
        strand = block.strand
        factor = strand.factor / scale
        if abs(factor - 1.0) <= ALPHA_TOLERANCE:
            factor = 1.0
        pieces.append(Piece(row, 0, strand.down, factor, strand.job if _rewrites(strand, "down") else None))
        row += strand.down.shape[0]
    return pieces


def _up_pieces(module: _FileModule) -> list[Piece]:
    pieces, column = [], 0
    for block in module.blocks:
        for part, strand in block.ups:
            row = part.rows[0] if part.rows else 0
            job = strand.job if _rewrites(strand, "up") else None
            pieces.append(Piece(row, column, strand.up, 1.0, job, part.swap))
        column += block.strand.down.shape[0]
    return pieces


def _rewrites(strand: Strand, side: str) -> bool:
    return strand.job is not None and strand.job.startswith(JOB_SIDE[side] + ":")


def _dtype(pieces: Sequence[Piece]) -> str:
    if len(pieces) == 1 and pieces[0].factor == 1.0 and not pieces[0].job:
        return pieces[0].matrix.dtype  # a copy keeps even fp8
    return wider(piece.matrix.dtype for piece in pieces)


def _bands(
    module: str, key: str, pieces: Sequence[Piece], shape: tuple[int, int], dtype: str, transposed: bool
) -> list[Band]:
    """One band for the whole tensor, or one per row range where several projections feed it."""
    if len({piece.job for piece in pieces if piece.job}) < 2:
        return [Band(module, key, 0, shape, dtype, tuple(pieces), transposed)]
    rows = sorted({piece.row for piece in pieces} | {0, shape[0]})
    bands = []
    for start, stop in pairwise(rows):
        inside = tuple(_shifted(piece, start) for piece in pieces if piece.row == start)
        bands.append(Band(module, key, start, (stop - start, shape[1]), dtype, inside))
    return bands


def _shifted(piece: Piece, start: int) -> Piece:
    return Piece(piece.row - start, piece.column, piece.matrix, piece.factor, piece.job, piece.swap)


def strand_of(source: str, update: LowRank, strength: float, job: str | None = None) -> Strand:
    """The strand of a low-rank update at a strength."""
    return Strand(source, update.up, update.down, strength * update.scale, job)
