"""What two adapters come to in common merges: distance from the true weighted sum, and the ratio of the norms.

    .venv/bin/python benchmarks/strength.py

One module of 64 x 48, rank 4, alpha 4, two random adapters, the mean over many pairs. PEFT is called where it is
installed. kohya's and ai-toolkit's merges are written out here as their scripts compute them (sd-scripts 2026-02,
`networks/merge_lora.py`; ai-toolkit 2026-11, `scripts/merge_loras.py`); `nplora fuse --method kohya-add` and
`kohya-concat` do the former on whole files, and the tests compare `peft-linear` with PEFT itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

OUT, IN, RANK, ALPHA, PAIRS = 64, 48, 4, 4.0, 200
Array = Any


def sets(seed: int) -> list[tuple[Array, Array]]:
    numbers = np.random.default_rng(seed)
    return [(numbers.standard_normal((OUT, RANK)), numbers.standard_normal((RANK, IN))) for _ in range(2)]


def true_sum(pair: list[tuple[Array, Array]], weights: tuple[float, ...]) -> Array:
    return sum(w * ALPHA / RANK * up @ down for w, (up, down) in zip(weights, pair, strict=False))


def kohya(pair: list[tuple[Array, Array]], ratios: tuple[float, ...]) -> Array:
    """The ratio multiplies both factors; factors are added; alpha stays."""
    up = sum(w * up for w, (up, _) in zip(ratios, pair, strict=False))
    down = sum(w * down for w, (_, down) in zip(ratios, pair, strict=False))
    return ALPHA / RANK * up @ down


def kohya_concat(pair: list[tuple[Array, Array]], ratios: tuple[float, ...]) -> Array:
    """Factors are stacked; alpha stays while the rank grows, so that readers scale by alpha over the new rank."""
    up = np.hstack([w * up for w, (up, _) in zip(ratios, pair, strict=False)])
    down = np.vstack([w * down for w, (_, down) in zip(ratios, pair, strict=False)])
    return ALPHA / up.shape[1] * up @ down


def ai_toolkit(pair: list[tuple[Array, Array]], strengths: tuple[float, ...]) -> Array:
    """The strength multiplies every tensor, alpha too; then tensors of one name are added."""
    up = sum(w * up for w, (up, _) in zip(strengths, pair, strict=False))
    down = sum(w * down for w, (_, down) in zip(strengths, pair, strict=False))
    alpha = sum(w * ALPHA for w in strengths)
    return alpha / RANK * up @ down


def peft(kind: str, **more: object) -> Callable[..., Array] | None:
    """PEFT's own merge, on a model of one layer."""
    try:
        import torch
        from peft import LoraConfig, get_peft_model
    except ImportError:
        return None

    def merged(pair: list[tuple[Array, Array]], weights: tuple[float, ...]) -> Array:
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"])
        model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(IN, OUT, bias=False)), config, adapter_name="a")
        model.add_adapter("b", config)
        layer = model.base_model.model[0]
        with torch.no_grad():
            for name, (up, down) in zip("ab", pair, strict=True):
                layer.lora_B[name].weight.copy_(torch.from_numpy(up))
                layer.lora_A[name].weight.copy_(torch.from_numpy(down))
        model.add_weighted_adapter(["a", "b"], list(weights), "sum", combination_type=kind, **more)
        return layer.get_delta_weight("sum").detach().numpy().astype(np.float64)

    return merged


def rows() -> Iterator[tuple[str, tuple[float, ...], Callable[..., Array] | None]]:
    yield "kohya merge_lora.py, ratios 1 1", (1.0, 1.0), kohya
    yield "kohya merge_lora.py, ratios 0.7 0.4", (0.7, 0.4), kohya
    yield "kohya merge_lora.py, one file, ratio 0.5", (0.5,), kohya
    yield "kohya merge_lora.py --concat, ratios 1 1", (1.0, 1.0), kohya_concat
    yield "kohya merge_lora.py --concat, ratios 0.5 0.5", (0.5, 0.5), kohya_concat
    yield "ai-toolkit merge_loras.py, strengths 1 1", (1.0, 1.0), ai_toolkit
    yield "ai-toolkit merge_loras.py, one file, strength 0.5", (0.5,), ai_toolkit
    yield "PEFT linear, weights 1 1", (1.0, 1.0), peft("linear")
    yield "PEFT linear, weights 0.7 0.4", (0.7, 0.4), peft("linear")
    yield "PEFT svd, default rank, weights 1 1", (1.0, 1.0), peft("svd")
    yield "PEFT svd, default rank, weights 0.7 0.4", (0.7, 0.4), peft("svd")
    yield "PEFT svd, rank 8, weights 1 1", (1.0, 1.0), peft("svd", svd_rank=2 * RANK)
    yield "PEFT cat, weights 1 1", (1.0, 1.0), peft("cat")
    yield "PEFT ties, density 1, weights 1 1", (1.0, 1.0), peft("ties", density=1.0)


def measure(weights: tuple[float, ...], merge: Callable[..., Array]) -> tuple[float, float]:
    """Mean error and mean size over many pairs."""
    found = []
    for seed in range(PAIRS):
        pair = sets(seed)
        exact, merged = true_sum(pair, weights), merge(pair, weights)
        size = np.linalg.norm(exact)
        found.append((np.linalg.norm(merged - exact) / size, np.linalg.norm(merged) / size))
    error, size = np.mean(found, axis=0)
    return float(error), float(size)


def main() -> None:
    warnings.simplefilter("ignore")  # theirs
    print(f"{'':52} error   size   (mean of {PAIRS} pairs)")
    for name, weights, merge in rows():
        if merge is None:
            print(f"{name:52} PEFT is not installed")
            continue
        error, size = measure(weights, merge)
        print(f"{name:52} {error:5.2f}  {size:5.2f}")


if __name__ == "__main__":
    main()
