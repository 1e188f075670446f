"""Fuse the adapters of a PEFT model, language models included, and turn mu afterwards.

>>> import nplora.peft
>>> model = PeftModel.from_pretrained(base, "chef", adapter_name="chef")  # doctest: +SKIP
>>> model.load_adapter("pirate", adapter_name="pirate")  # doctest: +SKIP
>>> nplora.peft.fuse_adapters(model, subject="chef", style="pirate", mu=0.5).sentence  # doctest: +SKIP
>>> model.save_pretrained("out", selected_adapters=["fused"])  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

from .errors import UsageError
from .live.fusing import LiveFusion, fuse_models, set_mu_models
from .live.injection import inner_model
from .live.layers import lora_layers


def fuse_adapters(
    model: Any, subject: str, style: str, *, name: str = "fused", method: str = "np", **parameters: Any
) -> LiveFusion:
    """Fuse two loaded adapters of a model into a new one, on its device, and make that the active one.

    Each adapter counts as strongly as PEFT's scaling says at the moment (alpha / r, or alpha / sqrt(r), times
    `set_scale`), times its strength here. The base weights are neither read nor copied. The new adapter has scaling 1
    in each layer (alpha = r, exceptions in rank_pattern and alpha_pattern), so that `save_pretrained` writes a folder
    that any PEFT loads. Its parameters are frozen.

    Args:
        model: a `peft.PeftModel`, or a transformers model with adapters (`model.load_adapter`).
        subject, style: their names.
        name: of the new adapter, of rank r_c + r_s in each layer that both change.
        method: of `nplora methods`.
        **parameters: the method's (mu, directions, ...), side, subject_strength, style_strength, allow_nonfinite.

    Returns:
        What was done: counts, overlaps, `sentence` and `advice`.

    Raises:
        UsageError: an adapter is unknown, the name is taken, a parameter is out of range.
        InputError: an adapter is of a kind that cannot be fused in a model (DoRA, LoHa, heads of its own, ...), or
            holds NaN or infinity.
    """
    _require_model(model)
    done = fuse_models({"": model}, subject, style, method, name, parameters)
    model.set_adapter(name)
    for _, layer in lora_layers(inner_model(model)):
        for side in (layer.lora_A, layer.lora_B, layer.lora_embedding_A, layer.lora_embedding_B):
            if name in side:
                side[name].requires_grad_(False)
    return done


def set_mu(model: Any, mu: float | str, name: str = "fused") -> None:
    """Turn mu of a fused adapter in place: one multiply-add for each layer.

    0 is plain addition of the two, "inf" the hard projection.

    Raises:
        UsageError: mu is out of range, or there is no such adapter.
    """
    _require_model(model)
    set_mu_models({"": model}, mu, name)


def _require_model(model: Any) -> None:
    if not hasattr(model, "named_modules") or not hasattr(model, "set_adapter"):
        raise UsageError(
            "this is no model with adapters", got=type(model).__name__,
            hint="Give a peft.PeftModel; for a diffusers pipeline use nplora.diffusers.fuse_adapters.",
        )  # fmt: skip
