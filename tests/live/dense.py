"""What a live model adds to its weights, dense and float64, and what the paper says it should."""

from __future__ import annotations

import numpy as np
import torch
from peft.tuners.lora import LoraLayer


def factors(model: torch.nn.Module, adapter: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Path -> float64 factors, up (out, r) and down (r, in*kh*kw), the present scaling in the up factor."""
    found = {}
    for path, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        if adapter in layer.lora_A:
            up, down = layer.lora_B[adapter].weight, layer.lora_A[adapter].weight
        elif adapter in layer.lora_embedding_A:
            up, down = layer.lora_embedding_B[adapter], layer.lora_embedding_A[adapter]
        else:
            continue
        up, down = (x.detach().double().flatten(1).numpy() for x in (up, down))
        found[path] = float(layer.scaling[adapter]) * up, down
    return found


def deltas(model: torch.nn.Module, adapter: str) -> dict[str, np.ndarray]:
    """Path -> float64 update (out, in*kh*kw) of one adapter, active or not, at its present scaling."""
    return {path: up @ down for path, (up, down) in factors(model, adapter).items()}


def projected(subject: np.ndarray, style: np.ndarray, mu: float = 0.5, side: str = "input") -> np.ndarray:
    """``dW_c (I - g V V^T)`` (Eq. 12), or ``(I - g U U^T) dW_c`` on the output side, by a dense SVD."""
    U, s, Vt = np.linalg.svd(style, full_matrices=False)
    k = int((s > 1e-6 * s[0]).sum())
    g = 1.0 if np.isinf(mu) else mu / (1 + mu)
    if side == "output":
        return subject - g * U[:, :k] @ (U[:, :k].T @ subject)
    return subject - g * (subject @ Vt[:k].T) @ Vt[:k]


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 3e-7) -> None:
    """Equal paths, and each update within a share of its norm: 3e-7 for float32 factors, each rounded once."""
    assert found.keys() == expected.keys()
    for path, delta in expected.items():
        assert np.linalg.norm(found[path] - delta) <= tolerance * np.linalg.norm(delta), path
