"""Small adapter files written by hand, and dense float64 references that are slow and obvious."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "I64": np.dtype("<i8"), "U8": np.dtype("u1"),
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
ROUNDOFF = {"F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}
STEP = {"F64": 0.0, "F32": 2.0**-150, "F16": 2.0**-25, "BF16": 2.0**-134}  # half of the smallest subnormal


# ------------------------------------------------------------------------------------------ files


def write(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> Path:
    """A safetensors file, laid out as the library does (wide types first, then by name)."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    arrays = {key: np.asarray(value) for key, value in tensors.items()}
    order = sorted(arrays, key=lambda key: (-arrays[key].dtype.itemsize, key))
    position = 0
    for key in order:
        array = arrays[key]
        header[key] = {
            "dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [position, position + array.nbytes]
        }  # fmt: skip
        position += array.nbytes
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            stream.write(np.ascontiguousarray(arrays[key]).tobytes())
    return path


def folder(path: Path, tensors: Mapping[str, Any], config: Mapping[str, Any], name: str = "adapter_model") -> Path:
    """A PEFT (or MLX) folder."""
    write(path / f"{name}.safetensors", tensors, {"format": "pt"})
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Every tensor of a file and its metadata, without nplora."""
    if path.is_dir():
        path = next(path.glob("*.safetensors"))
    blob = path.read_bytes()
    base = 8 + int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8:base])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for key, entry in header.items():
        start, stop = (base + offset for offset in entry["data_offsets"])
        tensors[key] = np.frombuffer(blob[start:stop], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors, metadata


# ------------------------------------------------------------------------------------------ factors


@dataclass(frozen=True)
class Factors:
    """One low-rank update as it is stored: ``dW = scale * up @ down``."""

    up: np.ndarray  # (out, r)
    down: np.ndarray  # (r, n)
    scale: float = 1.0
    kernel: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def dense(self) -> np.ndarray:
        return self.scale * (self.up.astype(np.float64) @ self.down.astype(np.float64))

    @cached_property
    def size(self) -> float:
        """``sum_k |B_k| |A_k|``: what relative errors of the factors are multiplied by; projecting does not raise it."""
        up, down = self.up.astype(np.float64), self.down.astype(np.float64)
        return float(np.linalg.norm(up, axis=0) @ np.linalg.norm(down, axis=1))

    def stored_up(self) -> np.ndarray:
        return self.up.reshape(*self.up.shape, *(1 for _ in self.kernel))

    def stored_down(self) -> np.ndarray:
        width = self.down.shape[1] // prod(self.kernel)
        return self.down.reshape(self.rank, width, *self.kernel)


def factors(
    rng: np.random.Generator, out: int, width: int, rank: int, *, dtype: str = "F32", scale: float = 1.0,
    kernel: tuple[int, ...] = (), size: float = 1.0,
) -> Factors:  # fmt: skip
    """Random factors of ordinary size in a number type; ``width`` is without the kernel."""
    kind = DTYPES[dtype]
    columns = width * prod(kernel)
    up = (size * rng.standard_normal((out, rank))).astype(kind)
    down = (rng.standard_normal((rank, columns)) / np.sqrt(columns)).astype(kind)
    return Factors(up, down, scale, kernel)


# ------------------------------------------------------------------------------------------ references


def protected(dW_s: np.ndarray, directions: str | float = "all") -> np.ndarray:
    """V (n, k): the style's right singular vectors that are protected; from a dense SVD."""
    _, s, vt = np.linalg.svd(dW_s, full_matrices=False)
    rank = int(np.sum(s > max(dW_s.shape) * 2.0**-52 * s[0])) if s.size else 0
    if isinstance(directions, int):
        rank = min(rank, directions)
    elif isinstance(directions, float):
        energy = np.cumsum(s[:rank] ** 2)
        rank = next((k + 1 for k in range(rank) if energy[k] >= directions * energy[-1] * (1 - 1e-12)), 0)
    return vt[:rank].T


def g_of(mu: float) -> float:
    return 1.0 if mu == np.inf else mu / (1.0 + mu)


def reference(
    dW_c: np.ndarray, dW_s: np.ndarray, mu: float, *, w_c: float = 1.0, w_s: float = 1.0,
    directions: str | float = "all", side: str = "input",
) -> np.ndarray:  # fmt: skip
    """``w_s dW_s + w_c dW_c (I - g V V^T)`` on dense matrices."""
    if side == "output":
        return reference(dW_c.T, dW_s.T, mu, w_c=w_c, w_s=w_s, directions=directions).T
    return w_s * dW_s + w_c * attenuated(dW_c, protected(dW_s, directions), mu)


def attenuated(dW_c: np.ndarray, V: np.ndarray, mu: float) -> np.ndarray:
    return dW_c @ (np.eye(V.shape[0]) - g_of(mu) * V @ V.T)


def relative(got: np.ndarray, wanted: np.ndarray, scale: float | None = None) -> float:
    """Frobenius distance over the size of what was wanted (or a given size, where that may cancel)."""
    size = np.linalg.norm(wanted) if scale is None else scale
    distance = np.linalg.norm(np.asarray(got, np.float64) - wanted)
    return float(distance / size) if size else float(distance)


# ------------------------------------------------------------------------------------------ adapters


def kohya_tensors(modules: Mapping[str, Factors], alpha_dtype: str = "F32") -> dict[str, np.ndarray]:
    """kohya keys; the scale stands in alpha, which is left out where the scale is 1 by its absence (NaN)."""
    tensors = {}
    for name, module in modules.items():
        tensors[f"{name}.lora_up.weight"] = module.stored_up()
        tensors[f"{name}.lora_down.weight"] = module.stored_down()
        tensors[f"{name}.alpha"] = np.array(module.scale * module.rank, DTYPES[alpha_dtype])
    return tensors


def suffixed_tensors(
    modules: Mapping[str, Factors], up: str, down: str, *, transposed: bool = False
) -> dict[str, np.ndarray]:
    """Factors under any two suffixes, nothing else: the scale is 1 or stands in a config."""
    tensors = {}
    for name, module in modules.items():
        one, two = module.stored_up(), module.stored_down()
        tensors[name + up] = one.T if transposed else one
        tensors[name + down] = two.T if transposed else two
    return tensors


def peft_tensors(modules: Mapping[str, Factors]) -> dict[str, np.ndarray]:
    return suffixed_tensors(modules, ".lora_B.weight", ".lora_A.weight")


# ------------------------------------------------------------------------------------------ what rounding may do


def allowed(modules: list[tuple[Factors, float]], dtype: str, arithmetic: float = 2.0**-22) -> float:
    """How far (Frobenius) the product of a written stack may be from ``sum_i w_i dW_i``, projected or not.

    Each down factor is rounded once to the output's type, the scale to float32, and the arithmetic before that is
    at least as good as `arithmetic`. Numbers below the smallest step of a type are lost in front of the largest scale.
    """
    scales = [abs(strength * module.scale) for module, strength in modules]
    total = sum(
        (ROUNDOFF[dtype] + arithmetic) * scale * module.size for scale, (module, _) in zip(scales, modules, strict=True)
    )
    for module, _ in modules:
        total += (
            max(*scales, 1.0)
            * STEP[dtype]
            * float(np.linalg.norm(module.up.astype(np.float64)))
            * module.down.size**0.5
        )
    return total
