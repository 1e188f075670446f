"""Real files read without nplora: module names as they stand there, factors, and the scale that the file's program uses."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import numpy as np

from laws.making import Factors, read

PAIRS = re.compile(r"^\| `([^`]+)` \| `([^`]+)` \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) / (\d+) \|", re.MULTILINE)
# (what is behind the module's name in the up factor's key, in the down factor's)
SUFFIXES = (
    (".lora_B.weight", ".lora_A.weight"), (".lora.up.weight", ".lora.down.weight"), ("_lora.up.weight", "_lora.down.weight"),
    ("_lora_up.weight", "_lora_down.weight"), (".lora_up.weight", ".lora_down.weight"), (":up", ":down"),
)  # fmt: skip


def rows(folder: Path) -> list[tuple[str, str, tuple[int, ...]]]:
    """The table of PAIRS.md: subject, style, and the numbers (modules of each, common, of other shape, ranks)."""
    found = PAIRS.findall((folder / "PAIRS.md").read_text())
    return [(subject, style, tuple(map(int, numbers))) for subject, style, *numbers in found]


@cache
def original(path: Path) -> dict[str, Factors]:
    """Module name in the file -> its update."""
    tensors, metadata = read(path)
    config = json.loads((path / "adapter_config.json").read_text()) if path.is_dir() else {}
    text = metadata.get("lora_adapter_metadata") if metadata else None
    table = {key.rpartition(".")[2]: value for key, value in json.loads(text).items()} if text else config
    modules = {}
    for key in tensors:
        found = _halves(key, tensors)
        if found is not None:
            name, up, down = found
            modules[name] = Factors(up, down, _scale(table, down.shape[0]))
    return modules


def _halves(key: str, tensors: dict[str, np.ndarray]) -> tuple[str, np.ndarray, np.ndarray] | None:
    for up, down in SUFFIXES:
        if key.endswith(up):
            name = key.removesuffix(up)
            return name, _matrix(tensors[key]), _matrix(tensors[name + down])
    if key.endswith(".lora_b"):  # MLX
        name = key.removesuffix(".lora_b")
        return name, tensors[key].T, tensors[name + ".lora_a"].T
    if key.startswith("w_b_"):  # SAM
        number = key.removeprefix("w_b_")
        return f"w_{number}", tensors[key], tensors[f"w_a_{number}"]
    return None


def _matrix(array: np.ndarray) -> np.ndarray:
    return array.reshape(array.shape[0], -1)


def _scale(table: dict, rank: int) -> float:
    if "lora_parameters" in table:
        return float(table["lora_parameters"]["scale"])
    return table["lora_alpha"] / (rank**0.5 if table.get("use_rslora") else rank) if "lora_alpha" in table else 1.0


def row_space(module: Factors) -> np.ndarray:
    """V (n, k) of a low-rank update, by QR of both factors and a small SVD."""
    _Q_b, R_b = np.linalg.qr(module.up.astype(np.float64))
    Q_a, R_a = np.linalg.qr(module.down.T.astype(np.float64))
    _, s, vt = np.linalg.svd(R_b @ R_a.T)
    live = int(np.sum(s > max(module.up.shape[0], module.down.shape[1]) * 2.0**-52 * s[0]))
    return Q_a @ vt[:live].T


def norm(up: np.ndarray, down: np.ndarray) -> float:
    """``||up down||`` in float64 without the product: R factors of both sides have it."""
    R_b = np.linalg.qr(up.astype(np.float64), mode="r")
    R_a = np.linalg.qr(down.T.astype(np.float64), mode="r")
    return float(np.linalg.norm(R_b @ R_a.T))


def distance(up: np.ndarray, down: np.ndarray, others: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """``||up down - sum_i up_i down_i||``, likewise."""
    ups = [up.astype(np.float64), *(-other.astype(np.float64) for other, _ in others)]
    downs = [down.astype(np.float64), *(other.astype(np.float64) for _, other in others)]
    return norm(np.hstack(ups), np.vstack(downs))
