"""What the real consumers (diffusers, PEFT) add to a model's weights when they load a file.

Stands on torch, diffusers, transformers and peft, never on nplora: it is the outside witness. Names are canonical,
`<component>.<module path>`; a delta is the float64 matrix `(out, in*kh*kw)` added to a weight at strength 1.
"""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from safetensors import safe_open
from safetensors.torch import save_file

from consumers.tiny import models_of


@dataclass(frozen=True)
class Product:
    """A float64 delta as `up @ down`, which is seldom multiplied out: NumPy gets the dense matrix where it asks."""

    up: np.ndarray
    down: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.up), self.down.shape[1]

    @property
    def T(self) -> Product:
        return Product(self.down.T, self.up.T)

    def any(self) -> bool:
        return bool(self.up.any() and self.down.any())

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return self.up @ self.down


Deltas = dict[str, Product | np.ndarray]


def _norm(delta: Product | np.ndarray) -> float:
    """The Frobenius norm."""
    if isinstance(delta, Product):
        delta = np.linalg.qr(delta.up, "r") @ np.linalg.qr(delta.down.T, "r").T
    return float(np.linalg.norm(delta))


def _distance(one: Product | np.ndarray, other: Product | np.ndarray) -> float:
    """The norm of the difference."""
    if isinstance(one, Product) and isinstance(other, Product):
        return _norm(Product(np.hstack([one.up, -other.up]), np.vstack([one.down, other.down])))
    if isinstance(one, Product):  # by rows: the dense matrix may have a hundred million numbers
        rows = (slice(i, i + 256) for i in range(0, len(other), 256))
        return float(np.linalg.norm([_norm(one.up[part] @ one.down - other[part]) for part in rows]))
    return _norm(one - np.asarray(other))


def _rows(tensor: torch.Tensor) -> np.ndarray:
    """Float64 (n, everything else)."""
    return tensor.detach().double().reshape(len(tensor), -1).numpy()


def _layer_delta(layer: LoraLayer, adapters: list[str]) -> Product | np.ndarray:
    """Float64 (out, in*kh*kw) that a PEFT layer adds, from its own numbers; (in, out) if the base is stored so."""
    deltas = []
    for name in adapters:
        assert layer.lora_B[name].bias is None, "a LoRA bias is no part of the weight's delta"
        up, down = (_rows(side[name].weight) for side in (layer.lora_B, layer.lora_A))
        delta = Product(float(layer.scaling[name]) * up, down)
        if name in layer.lora_magnitude_vector:  # DoRA: m (W + d) / |W + d| - W, row by row
            base, delta = _rows(layer.get_base_layer().weight), np.asarray(delta)
            magnitude = _rows(layer.lora_magnitude_vector[name].weight).reshape(-1, 1)
            delta = magnitude * (base + delta) / np.linalg.norm(base + delta, axis=1, keepdims=True) - base
        deltas.append(delta.T if getattr(layer, "fan_in_fan_out", False) else delta)
    return deltas[0] if len(deltas) == 1 else sum(map(np.asarray, deltas))


def _adapted(model: torch.nn.Module, prefix: str, only: str) -> Deltas:
    """Canonical name -> delta of the LoRA layers of `model` whose name matches `only`."""
    layers = {prefix + path: m for path, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    strange = [name for name, layer in layers.items() if not isinstance(layer, LoraLayer)]
    assert not strange, f"layers that are not LoRA: {strange}"
    active = {name: [a for a in layer.active_adapters if a in layer.lora_A] for name, layer in layers.items()}
    return {name: _layer_delta(layers[name], active[name]) for name in layers if active[name] and re.search(only, name)}


@contextmanager
def _heard() -> Iterator[list[str]]:
    """The texts of all warnings that diffusers, peft, transformers or Python give inside the block."""
    texts: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("diffusers", "peft", "transformers"))}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            for logger in loggers:
                logger.addHandler(handler)
                logger.setLevel(logging.WARNING)
            yield texts
        finally:
            for logger, level in loggers.items():
                logger.removeHandler(handler)
                logger.setLevel(level)
            # A DeprecationWarning or FutureWarning speaks of the consumers' own code, never of the file.
            texts += [str(w.message) for w in caught if not issubclass(w.category, DeprecationWarning | FutureWarning)]


_ABSENT = re.compile(r"No LoRA keys associated to \w+ found with the prefix='(\w+)'")
_COMPONENT_KEYS = {
    "text_encoder": r"text_encoder\.|lora_te1?_|text_encoders\.clip_l\.",
    "text_encoder_2": r"text_encoder_2\.|lora_te2_|text_encoders\.clip_g\.",
}


def _harmless(text: str, keys: list[str]) -> bool:
    """diffusers warns for every component it found no key for; that is right where the file has none for it."""
    match = _ABSENT.search(text)
    pattern = match and _COMPONENT_KEYS.get(match[1], r"(?!text_encoder|lora_te)")
    return bool(match) and not any(re.match(pattern, key) for key in keys)


def effective_deltas(pipe, file, only: str = "", tolerate: str = "(?!)", **load) -> Deltas:
    """Canonical name -> what `pipe.load_lora_weights(file, **load)` adds to each weight, for names matching `only`.

    `file` is a path, or a state dict, which is saved to one first. A warning that is not known to be harmless, nor
    matches `tolerate`, is an AssertionError. What a loader drops in silence shows as a missing name: compare with
    `assert_deltas`. The pipeline is left as it was.
    """
    if isinstance(file, Mapping):
        with tempfile.TemporaryDirectory() as folder:
            save_file(dict(file), path := f"{folder}/lora.safetensors")
            return effective_deltas(pipe, path, only, tolerate, **load)
    with safe_open(file, "pt") as opened:
        keys = list(opened.keys())
    try:
        with _heard() as texts:
            pipe.load_lora_weights(str(file), **load)
        loud = [text for text in texts if not _harmless(text, keys) and not re.search(tolerate, text)]
        assert not loud, "the loader warned: " + "\n".join(loud)
        found = [_adapted(model, prefix, only) for model, prefix in models_of(pipe)]
        return {name: delta for deltas in found for name, delta in deltas.items()}
    finally:
        pipe.unload_lora_weights()


def peft_deltas(model: torch.nn.Module, folder: str | Path) -> Deltas:
    """Module path -> what `peft.PeftModel.from_pretrained(model, folder)` adds to each weight, in the base's layout.

    Missing and unexpected keys and every warning are an AssertionError. The model is left as it was.
    """
    try:
        with _heard() as texts:
            wrapped = PeftModel.from_pretrained(model, str(folder))
            # Once more, because from_pretrained keeps this result to itself.
            result = set_peft_model_state_dict(wrapped, load_peft_weights(str(folder)))
        assert not result.unexpected_keys, f"unexpected keys: {result.unexpected_keys}"
        assert not texts, "the loader warned: " + "\n".join(texts)
        return _adapted(model, "", "")
    finally:
        diffusers.utils.peft_utils.recurse_remove_peft_layers(model)
        vars(model).pop("peft_config", None)


def assert_deltas(got: Deltas, expected: Deltas, tolerance: float = 1e-6) -> None:
    """Same names, and each delta within `tolerance` of the expected one, relative to its Frobenius norm."""
    missing, extra = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    assert missing + extra == [], f"not applied: {missing}, applied but not expected: {extra}"
    for name, delta in expected.items():
        assert got[name].shape == delta.shape, f"{name}: {got[name].shape}, expected {delta.shape}"
        error, norm = _distance(got[name], delta), _norm(delta)
        assert error <= tolerance * norm, f"{name}: off by {error:.3g}, its norm is {norm:.3g}"
