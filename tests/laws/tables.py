"""One table of what is tested through files: every kind of module in every format that can say it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from laws.making import DTYPES, Factors, factors, folder, write

RANK = 3


@dataclass(frozen=True)
class Place:
    """A module: its name in the file, its canonical name, and the shape of its weight."""

    file: str
    name: str
    shape: tuple[int, ...]

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.shape[2:]

    def factors(self, rng: np.random.Generator, dtype: str, scale: float, rank: int = RANK) -> Factors:
        out, width = self.shape[:2]
        return factors(rng, out, width, rank, dtype=dtype, scale=scale, kernel=self.kernel)


@dataclass
class Content:
    """What a file holds, and what it means: dense updates and one-dimensional ones by canonical name."""

    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    factors: dict[str, Factors] = field(default_factory=dict)
    full: dict[str, np.ndarray] = field(default_factory=dict)
    products: dict[str, np.ndarray] = field(default_factory=dict)  # of more than two factors
    vectors: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    @cached_property
    def deltas(self) -> dict[str, np.ndarray]:
        return {name: module.dense() for name, module in self.factors.items()} | self.full | self.products


@dataclass(frozen=True)
class Speech:
    """How a format says things: where its modules are, its suffixes, and where its scale stands."""

    places: Mapping[str, Place]  # kind -> module
    up: str
    down: str
    scale: float = 1.0
    alpha: bool = False
    config: Mapping[str, Any] | None = None
    file: str = "adapter_model"  # inside a folder
    transposed: bool = False
    bias: str = ".lora_B.bias"
    norm: tuple[str, str] = (".w_norm", ".b_norm")

    def low_rank(self, place: Place, module: Factors) -> dict[str, np.ndarray]:
        up, down = module.stored_up(), module.stored_down()
        tensors = {place.file + self.up: up.T if self.transposed else up}
        tensors[place.file + self.down] = down.T if self.transposed else down
        if self.alpha:
            tensors[place.file + ".alpha"] = np.array(module.scale * module.rank, np.float32)
        return tensors

    def save(self, path: Path, content: Content) -> Path:
        if self.config is None:
            return write(path.with_suffix(".safetensors"), content.tensors, {"format": "pt"})
        return folder(path, content.tensors, self.config, self.file)


# The smallest modules that the real models have: their sizes tell the base, and dense references stay quick.
Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
V = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_v"
POINT = "down_blocks.0.attentions.0.proj_in"
CONV = "conv_in"
NORM = "down_blocks.0.resnets.0.norm1"
SHAPES = {Q: (320, 320), V: (320, 320), POINT: (320, 320, 1, 1), CONV: (320, 4, 3, 3), NORM: (320,)}
KINDS = {
    "linear": Q, "1x1": POINT, "3x3": CONV, "tucker": CONV, "full": CONV, "full, linear": Q, "diff_b": Q, "norm": NORM,
    "bias": Q, "loha": Q, "loha, 3x3": CONV, "lokr": Q, "companion": V,
}  # fmt: skip


def unet(spell: Callable[[str], str], *kinds: str) -> dict[str, Place]:
    """Places in the UNet of SD 1.5."""
    return {
        kind: Place(spell(KINDS[kind]), "unet." + KINDS[kind], SHAPES[KINDS[kind]]) for kind in (*kinds, "companion")
    }


def flat(prefix: str) -> Callable[[str], str]:
    return lambda name: prefix + name.replace(".", "_")


def processor(name: str) -> str:
    path, _, leaf = name.rpartition(".")
    return f"unet.{path}.processor.{leaf}"


def flux(*kinds: str) -> dict[str, Place]:
    """Places outside the fused projections of FLUX.1, under its original names."""
    last = ("diffusion_model.final_layer.linear", "transformer.proj_out", (64, 3072))
    norm = (
        "diffusion_model.double_blocks.0.img_attn.norm.query_norm",
        "transformer.transformer_blocks.0.attn.norm_q",
        (128,),
    )
    places = {kind: Place(*(norm if kind == "norm" else last)) for kind in kinds}
    return places | {"companion": Place("diffusion_model.img_in", "transformer.x_embedder", (3072, 64))}


def bare(*kinds: str) -> dict[str, Place]:
    """No prefix, no known model."""
    shapes = {"3x3": (6, 5, 3, 3), "full": (6, 5, 3, 3), "1x1": (6, 5, 1, 1), "norm": (6,), "tucker": (6, 5, 3, 3)}
    return {
        kind: Place(f"encoder.{kind}.q".replace(", ", "_"), f"unknown.encoder.{kind}.q".replace(", ", "_"), shapes.get(kind, (6, 9)))
        for kind in (*kinds, "companion")
    }  # fmt: skip


def llm(*kinds: str) -> dict[str, Place]:
    names = {"linear": "model.layers.3.self_attn.q_proj", "companion": "model.layers.4.mlp.gate_proj"}
    return {kind: Place(names[kind], "unknown." + names[kind], (24, 18)) for kind in (*kinds, "companion")}


XLABS = {
    "linear": Place(
        "double_blocks.4.processor.proj_lora2", "transformer.transformer_blocks.4.attn.to_add_out", (3072, 3072)
    )
}
NUMBERED = {
    "linear": Place("unet:0", "unet." + Q, SHAPES[Q]),
    "companion": Place("unet:5", "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q", (320, 320)),
}
PEFT = {
    "peft_type": "LORA",
    "r": RANK,
    "lora_alpha": 12,
    "target_modules": ["to_q"],
    "fan_in_fan_out": False,
    "bias": "none",
}
MLX = {"lora_parameters": {"rank": RANK, "alpha": 16, "scale": 10.0, "dropout": 0.0}, "model": "tiny"}

FORMATS = {
    "kohya": Speech(
        unet(
            flat("lora_unet_"), "linear", "1x1", "3x3", "tucker", "full", "full, linear", "diff_b", "norm", "bias", "loha",
            "loha, 3x3", "lokr",
        ),
        ".lora_up.weight", ".lora_down.weight", scale=0.5, alpha=True, bias=".lora_up.bias",
    ),
    "diffusers": Speech(
        unet("unet.{}".format, "linear", "1x1", "3x3", "bias"), ".lora_B.weight", ".lora_A.weight"
    ),
    "peft": Speech(
        unet("base_model.model.{}".format, "linear", "1x1", "3x3", "bias"),
        ".lora_B.weight", ".lora_A.weight", scale=4.0, config=PEFT,
    ),
    "diffusers-linear": Speech(unet("unet.{}".format, "linear", "1x1", "3x3"), ".lora.up.weight", ".lora.down.weight"),
    "diffusers-processor": Speech(unet(processor, "linear"), "_lora.up.weight", "_lora.down.weight"),
    "native": Speech(
        flux("linear", "full, linear", "diff_b", "norm", "bias"), ".lora_B.weight", ".lora_A.weight", norm=(".diff", ".diff_b"),
    ),
    "mlx": Speech(llm("linear"), ".lora_b", ".lora_a", scale=10.0, config=MLX, file="adapters", transposed=True),
    "cloneofsimo": Speech(NUMBERED, ":up", ":down"),
    "generic": Speech(
        bare("linear", "1x1", "3x3", "full", "full, linear", "diff_b", "norm", "bias"), ".lora_B.weight", ".lora_A.weight"
    ),
    "xlabs": Speech(XLABS, ".up.weight", ".down.weight"),
}  # fmt: skip

CELLS = [(format, kind) for format, speech in FORMATS.items() for kind in speech.places if kind != "companion"]


# ------------------------------------------------------------------------------------------ contents


@cache
def content(format: str, kind: str, dtype: str, seed: int = 0) -> Content:
    """A file of one module of a kind, beside a linear companion elsewhere."""
    rng = np.random.default_rng(seed)
    speech, made = FORMATS[format], Content()
    if "companion" in speech.places:
        _low_rank(made, speech, speech.places["companion"], rng, dtype)
    _MAKERS.get(kind, _low_rank)(made, speech, speech.places[kind], rng, dtype)
    return made


def _low_rank(made: Content, speech: Speech, place: Place, rng: np.random.Generator, dtype: str) -> None:
    module = place.factors(rng, dtype, speech.scale)
    made.factors[place.name] = module
    made.tensors.update(speech.low_rank(place, module))


def _tucker(made: Content, speech: Speech, place: Place, rng: np.random.Generator, dtype: str) -> None:
    """``dW[o,c,kl] = sum_ij up[o,i] mid[i,j,kl] down[j,c]``."""
    plain = replace(place, shape=place.shape[:2]).factors(rng, dtype, speech.scale)
    mid = rng.standard_normal((RANK, RANK, *place.kernel)).astype(DTYPES[dtype])
    contracted = np.einsum("ijkl,jc->ickl", mid.astype(np.float64), plain.down.astype(np.float64))
    made.factors[place.name] = replace(plain, down=contracted.reshape(RANK, -1), kernel=place.kernel)
    made.tensors.update({
        f"{place.file}.lora_up.weight": plain.up[:, :, None, None],
        f"{place.file}.lora_mid.weight": mid,
        f"{place.file}.lora_down.weight": plain.down[:, :, None, None],
        f"{place.file}.alpha": np.array(speech.scale * RANK, np.float32),
    })  # fmt: skip


def _loha(made: Content, speech: Speech, place: Place, rng: np.random.Generator, dtype: str) -> None:
    """``dW = scale * (w1_a w1_b) * (w2_a w2_b)``, elementwise; kernels are flattened away in the file."""
    out, width = place.shape[0], prod(place.shape[1:])
    shapes = {"w1_a": (out, RANK), "w1_b": (RANK, width), "w2_a": (out, RANK), "w2_b": (RANK, width)}
    w = _stored(made, place, "hada", shapes, speech.scale * RANK, rng, dtype)
    made.products[place.name] = speech.scale * (w["w1_a"] @ w["w1_b"]) * (w["w2_a"] @ w["w2_b"])


def _lokr(made: Content, speech: Speech, place: Place, rng: np.random.Generator, dtype: str) -> None:
    """``dW = scale * kron(w1, w2_a w2_b)``."""
    (out, width), small = place.shape, 8
    shapes = {"w1": (small, small), "w2_a": (out // small, RANK), "w2_b": (RANK, width // small)}
    w = _stored(made, place, "lokr", shapes, speech.scale * RANK, rng, dtype)
    made.products[place.name] = speech.scale * np.kron(w["w1"], w["w2_a"] @ w["w2_b"])


def _stored(
    made: Content, place: Place, algo: str, shapes: dict[str, tuple[int, int]], alpha: float, rng: np.random.Generator, dtype: str
) -> dict[str, np.ndarray]:  # fmt: skip
    arrays = {name: rng.standard_normal(shape).astype(DTYPES[dtype]) for name, shape in shapes.items()}
    made.tensors.update({f"{place.file}.{algo}_{name}": array for name, array in arrays.items()})
    made.tensors[f"{place.file}.alpha"] = np.array(alpha, np.float32)
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def _full(made: Content, speech: Speech, place: Place, rng: np.random.Generator, dtype: str) -> None:
    diff = rng.standard_normal(place.shape).astype(DTYPES[dtype])
    made.full[place.name] = diff.astype(np.float64).reshape(diff.shape[0], -1)
    made.tensors[f"{place.file}.diff"] = diff


def _diff_b(made: Content, speech: Speech, place: Place, rng: np.random.Generator, dtype: str) -> None:
    _low_rank(made, speech, place, rng, dtype)
    _vector(made, place, ".diff_b", "bias", rng, dtype)


def _bias(made: Content, speech: Speech, place: Place, rng: np.random.Generator, dtype: str) -> None:
    """PEFT's bias is multiplied by the scale, as B A is."""
    _low_rank(made, speech, place, rng, dtype)
    _vector(made, place, speech.bias, "bias", rng, dtype, speech.scale)


def _norm(made: Content, speech: Speech, place: Place, rng: np.random.Generator, dtype: str) -> None:
    for suffix, what in zip(speech.norm, ("weight", "bias"), strict=True):
        _vector(made, place, suffix, what, rng, dtype)


def _vector(
    made: Content, place: Place, suffix: str, what: str, rng: np.random.Generator, dtype: str, scale: float = 1.0
) -> None:
    numbers = rng.standard_normal(place.shape[0]).astype(DTYPES[dtype])
    made.vectors[place.name, what] = scale * numbers.astype(np.float64)
    made.tensors[place.file + suffix] = numbers


_MAKERS = {
    "tucker": _tucker, "full": _full, "full, linear": _full, "diff_b": _diff_b, "bias": _bias, "norm": _norm,
    "loha": _loha, "loha, 3x3": _loha, "lokr": _lokr,
}  # fmt: skip


def flattened(delta: np.ndarray) -> np.ndarray:
    return delta.reshape(delta.shape[0], prod(delta.shape[1:]))
