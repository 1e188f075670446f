"""Make small adapters, as trainers write them, for tests: bytes of the safetensors format without any library.

Modules are named canonically, ``<component>.<path>``, with the weight's shape; the naming turns that into keys.
Numbers depend on (seed, module, role) only, so a module is the same whatever stands beside it.

    cat = make(tmp_path / "cat.safetensors", seed=1, rank=8, alpha=4)
    ink = make(tmp_path / "ink.safetensors", "diffusers", seed=2, dtype="BF16")
    twin = make(tmp_path / "twin.safetensors", seed=3, down_seed=1)         # one initialisation with cat
    peft = make(tmp_path / "peft", "peft", {"unet.mid_block.attentions.0.proj_in": (1280, 1280)})
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Collection, Iterable, Mapping
from math import prod
from pathlib import Path

import ml_dtypes
import numpy as np

BLOCK = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
# A handful of Stable Diffusion 1.5's modules, enough for its table to be recognised: canonical name -> weight shape.
SD15: dict[str, tuple[int, ...]] = {
    f"{BLOCK}.attn1.to_q": (320, 320),
    f"{BLOCK}.attn1.to_k": (320, 320),
    f"{BLOCK}.attn2.to_v": (320, 768),
    f"{BLOCK}.ff.net.0.proj": (2560, 320),
}
CONVOLUTIONS: dict[str, tuple[int, ...]] = {
    "unet.down_blocks.0.resnets.0.conv1": (320, 320, 3, 3),
    "unet.down_blocks.0.attentions.0.proj_in": (320, 320, 1, 1),
}
TEXT: dict[str, tuple[int, ...]] = {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (768, 768)}
# Modules of no known model.
PLAIN: dict[str, tuple[int, ...]] = {f"model.layers.{index}.self_attn.q_proj": (48, 32) for index in range(3)}

NUMPY = {
    "F16": np.float16, "F32": np.float32, "F64": np.float64, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
}  # fmt: skip
SUFFIXES = {
    "kohya": {"down": ".lora_down.weight", "up": ".lora_up.weight", "mid": ".lora_mid.weight", "bias": ".diff_b"},
    "diffusers": {"down": ".lora_A.weight", "up": ".lora_B.weight", "bias": ".lora_B.bias"},
}
SUFFIXES |= {"peft": SUFFIXES["diffusers"], "plain": SUFFIXES["diffusers"]}

Tensors = dict[str, np.ndarray]


def numbers(seed: int, name: str, shape: Iterable[int]) -> np.ndarray:
    """Normally distributed float64 numbers that depend on seed and name."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(tuple(shape))


def factors(
    name: str, shape: tuple[int, ...], rank: int, seed: int, down_seed: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Up and down of a module whose update has a Frobenius norm near 1, shaped as trainers store them."""
    down_seed = seed if down_seed is None else down_seed
    out, kernel = shape[0], shape[2:]
    up = numbers(seed, name + ":up", (out, rank, *(1 for _ in kernel))) / np.sqrt(out * rank)
    down = numbers(down_seed, name + ":down", (rank, *shape[1:])) / np.sqrt(prod(shape[1:]))
    return up, down


def key_stem(name: str, naming: str) -> str:
    """The module's name in a file of this naming."""
    component, _, path = name.partition(".")
    if naming == "kohya":
        prefix = {"text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}.get(component, "lora_unet_")
        return prefix + path.replace(".", "_")
    return {"diffusers": name, "peft": f"base_model.model.{path}", "plain": name}[naming]


def tensors(
    naming: str = "kohya",
    modules: Mapping[str, tuple[int, ...]] = SD15,
    *,
    rank: int = 4,
    alpha: float | None = None,
    dtype: str = "F16",
    seed: int = 0,
    down_seed: int | None = None,
    size: float = 1.0,
    tucker: Collection[str] = (),
    full: Collection[str] = (),
    bias: Collection[str] = (),
    norms: Mapping[str, int] | None = None,
) -> Tensors:
    """The tensors of an adapter.

    Args:
        naming: "kohya", "diffusers", "peft" or "plain" (names as they are).
        modules: canonical name -> shape of the weight, (out, in) or (out, in, kh, kw).
        rank: of every module. alpha: None leaves it out; otherwise a tensor beside the factors.
        dtype: safetensors name of the numbers' type.
        seed: of all numbers; down_seed: of the down factors alone.
        size: Frobenius norm of each update at scale 1, about.
        tucker: modules (convolutions) with a ``lora_mid``. full: modules stored as ``diff``.
        bias: modules with a bias delta. norms: norm modules -> width, with deltas of weight and bias.
    """
    found: Tensors = {}
    suffixes, kind = SUFFIXES[naming], NUMPY[dtype]

    def put(stem: str, suffix: str, array: np.ndarray) -> None:
        found[stem + suffix] = array.astype(kind)

    for name, shape in modules.items():
        stem = key_stem(name, naming)
        if name in full:
            put(stem, ".diff", size * numbers(seed, name + ":diff", shape) / np.sqrt(prod(shape)))
            continue
        up, down = factors(name, shape, rank, seed, down_seed)
        if name in tucker:
            core = numbers(seed, name + ":mid", (rank, rank, *shape[2:])) / np.sqrt(rank)
            put(stem, suffixes["mid"], core)
            down = numbers(seed, name + ":down", (rank, shape[1], 1, 1)) / np.sqrt(prod(shape[1:]))
        put(stem, suffixes["up"], size * up)
        put(stem, suffixes["down"], down)
        if alpha is not None:
            put(stem, ".alpha", np.array(float(alpha)))
        if name in bias:
            put(stem, suffixes["bias"], numbers(seed, name + ":bias", shape[:1]) / 10)
    for name, width in (norms or {}).items():
        for part in ("w_norm", "b_norm"):
            put(key_stem(name, naming), f".{part}", numbers(seed, name + part, (width,)) / 10)
    return found


def write(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> Path:
    """A safetensors file of these tensors, in order of their names."""
    names = {np.dtype(kind): name for name, kind in NUMPY.items()}
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    data = b""
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        blob = array.tobytes()
        kind = names.get(array.dtype, f"{array.dtype.kind.upper()}{array.dtype.itemsize * 8}")
        header[key] = {
            "dtype": kind,
            "shape": list(arrays[key].shape),
            "data_offsets": [len(data), len(data) + len(blob)],
        }
        data += blob
    text = json.dumps(header).encode()
    path = Path(path)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def make(
    path: str | os.PathLike[str],
    naming: str = "kohya",
    modules: Mapping[str, tuple[int, ...]] = SD15,
    *,
    metadata: Mapping[str, str] | None = None,
    config: Mapping[str, object] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    **options: object,
) -> Path:
    """Write an adapter and return its path.

    Args:
        path: the file; for "peft" the folder, which gets an adapter_config.json.
        naming, modules, **options: as in `tensors`.
        metadata: header strings. config: entries of adapter_config.json beside those that follow from the rest.
        extra: further tensors, which may replace some.
    """
    path = Path(path)
    arrays = tensors(naming, modules, **options) | dict(extra or {})  # type: ignore[arg-type]
    if naming != "peft":
        return write(path, arrays, metadata)
    path.mkdir(parents=True, exist_ok=True)
    rank = options.get("rank", 4)
    table = {"peft_type": "LORA", "r": rank, "lora_alpha": options.get("alpha") or rank, **(config or {})}
    (path / "adapter_config.json").write_text(json.dumps(table))
    write(path / "adapter_model.safetensors", {k: v for k, v in arrays.items() if not k.endswith(".alpha")}, metadata)
    return path
