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
from .live.fusing import LiveFusion, chosen_adapters, fuse_models, set_mu_models
from .live.injection import inner_model
from .live.layers import lora_layers, uncompiled


def fuse_adapters(
    model: Any,
    *adapters: str,
    subject: str | None = None,
    style: str | None = None,
    name: str = "fused",
    method: str = "np",
    **parameters: Any,
) -> LiveFusion:
    """Fuse loaded adapters of a model into a new one, on its device, and make that the active one.

    Each adapter counts as strongly as PEFT's scaling says at the moment (alpha / r, or alpha / sqrt(r), times
    `set_scale`), times its strength here. The base weights are neither read nor copied. The new adapter has scaling 1
    in each layer (alpha = r, exceptions in rank_pattern and alpha_pattern), so that `save_pretrained` writes a folder
    that any PEFT loads. Its parameters are frozen.

    Args:
        model: a `peft.PeftModel`, or a module into which PEFT has injected adapters, as transformers'
            `model.load_adapter` does.
        adapters: names in order, each gives way to those that follow it (or as ``protect`` says); or
        subject, style: the two names.
        name: of the new adapter. Its rank is the sum of the ranks, or the rank asked for, whatever mu is.
        method: of `nplora methods`.
        **parameters: the method's (mu, directions, side, protect, ...), of two adapters subject_strength and
            style_strength, strengths and overrides in parts of the model, and rank, energy, error, keep_style,
            allow_nonfinite, as in `nplora.fuse`. With a rank alone every layer gets just that rank, with zeros where it
            needs fewer.

    Returns:
        What was done: counts, overlaps, `sentence` and `advice`.

    Raises:
        UsageError: an adapter is unknown, the name is taken, a parameter is out of range.
        InputError: an adapter is of a kind that cannot be fused in a model (DoRA, LoHa, heads of its own, ...), or
            holds NaN or infinity.
    """
    from peft import PeftModel

    named = chosen_adapters(adapters, subject, style)
    _require_model(model)
    model = uncompiled(model)
    done = fuse_models({"": model}, named, method, name, parameters)
    if isinstance(model, PeftModel):
        model.set_adapter(name)
    for _, layer in lora_layers(inner_model(model)):
        layer.set_adapter([name], inference_mode=True)
    return done


def set_mu(model: Any, mu: float | str, name: str = "fused", *, where: str | None = None) -> None:
    """Turn mu of a fused adapter in place: one multiply-add for each layer.

    0 is plain addition of the two, "inf" the hard projection. A compressed layer, and one of a method that is not
    linear in g, is computed anew, at the rank that it has.

    Args:
        where: only in this part of the model, such as "model.layers.3" or "*.mlp.*"; by default everywhere,
            whatever mu a part had of its own.

    Raises:
        UsageError: mu is out of range, or there is no such adapter or part, or the adapter cannot be written now.
    """
    _require_model(model)
    set_mu_models({"": uncompiled(model)}, mu, name, where)


def _require_model(model: Any) -> None:
    if not hasattr(model, "named_modules"):
        raise UsageError(
            "this is no model with adapters", got=type(model).__name__,
            hint="Give a peft.PeftModel; for a diffusers pipeline use nplora.diffusers.fuse_adapters.",
        )  # fmt: skip
