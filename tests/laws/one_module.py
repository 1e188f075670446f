"""One module by two surfaces (two files and `fuse`; bare arrays and `project`), and what hypothesis draws for it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

import nplora
from laws.making import Factors, factors, kohya_tensors, write
from nplora.fusion import projection
from nplora.methods import all_methods

MUS = [0.0, 1e-9, 0.5, 1.0, 10.0, inf]
EXACT = 1e-10  # float64 against float64; what is left is the condition of random matrices

each_mu = pytest.mark.parametrize("mu", MUS)
each_side = pytest.mark.parametrize("side", ["input", "output"])


# ------------------------------------------------------------------------------------------ surfaces


def fused_delta(subject: Factors, style: Factors, **parameters):
    """The dense update of one fused module, through two files and `fuse`."""
    return fusion(subject, style, **parameters)["unknown.layer"].delta()


def fusion(subject: Factors, style: Factors, **parameters):
    with tempfile.TemporaryDirectory() as place:
        paths = [
            write(Path(place, name), kohya_tensors({"lora_unet_layer": module}))
            for name, module in (("c.safetensors", subject), ("s.safetensors", style))
        ]
        return nplora.fuse(*map(nplora.load, paths), **parameters)


def run(subject: Factors, style: Factors, mu: float, directions="all"):
    """X = the projected subject (dense, strength 1), its share inside, and the count of protected directions."""
    arrays = (module[None].astype(np.float64) for module in (subject.up, subject.down, style.up, style.down))
    down, (_, found) = project(*arrays, mu, directions)
    return subject.scale * subject.up.astype(np.float64) @ down[0], float(found.inside[0]), int(found.protected[0])


def project(B_c, A_c, B_s, A_s, mu, directions="all"):
    with np.errstate(all="ignore"):  # as the package calls it: a zero style divides 0 by 0 and is seen to
        return projection.project(B_c, A_c, B_s, A_s, all_methods()["np"], {"mu": mu, "directions": directions})


def projected(subject: Factors, style: Factors, mu: float, directions="all"):
    return run(subject, style, mu, directions)[0]


def transposed(module: Factors) -> Factors:
    return Factors(module.down.T, module.up.T, module.scale)


def invertible(rng, rank):
    """Neither orthogonal nor ill-conditioned."""
    return np.linalg.qr(rng.standard_normal((rank, rank)))[0] * rng.uniform(0.2, 5.0, rank)


def regauged(rng, module: Factors) -> Factors:
    """(B G^-1, G A): the same update from other factors."""
    G = invertible(rng, module.rank)
    return replace(module, up=module.up.astype(np.float64) @ np.linalg.inv(G), down=G @ module.down.astype(np.float64))


# ------------------------------------------------------------------------------------------ what is drawn


@dataclass(frozen=True)
class Pair:
    subject: Factors
    style: Factors

    @property
    def deltas(self):
        return self.subject.dense(), self.style.dense()


dtypes = st.sampled_from(["F64", "F32", "F16", "BF16"])
scales = st.sampled_from([1.0, 0.25, 2.0, -1.5])


@st.composite
def pairs(draw, largest: int = 20, top_rank: int = 24):
    """Two updates of one weight: any shape, any ranks (above out and n too), any number types, dead ranks, zeros."""
    out, n = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    made = [
        factors(
            rng, out, n, draw(st.integers(1, top_rank)), dtype=draw(dtypes), scale=draw(scales),
            size=10.0 ** draw(st.integers(-3, 2)),
        )
        for _ in range(2)
    ]  # fmt: skip
    style = made[1]
    dead = draw(st.integers(0, style.rank))
    if draw(st.booleans()):
        style.up[:, :dead] = 0
    return Pair(made[0], style)


mus = st.sampled_from(MUS)
strengths = st.sampled_from([1.0, 0.7, -1.0, 3.5, 1000.0, 1e-4])


def size_of(pair: Pair, w_c: float = 1.0, w_s: float = 1.0) -> float:
    """What errors are measured against: the sum may cancel."""
    dW_c, dW_s = pair.deltas
    return abs(w_c) * np.linalg.norm(dW_c) + abs(w_s) * np.linalg.norm(dW_s) or 1.0


def clear_spectrum(dW: np.ndarray, directions) -> bool:
    """Whether the top k directions, or the share, are well defined: no tie at the cut."""
    s = np.linalg.svd(dW, compute_uv=False)
    s = s[s > 1e-5 * s[0]] if s.size and s[0] else s[:0]
    if isinstance(directions, int):
        return directions >= s.size or s[directions - 1] > 1.01 * s[directions]
    energy = np.cumsum(s**2)
    return not s.size or (
        bool(np.all(np.abs(energy / energy[-1] - directions) > 1e-6)) and bool(np.all(s[:-1] > 1.01 * s[1:]))
    )
