"""Fuse the adapters that are loaded in a diffusers pipeline, and turn mu between two pictures.

>>> import nplora.diffusers
>>> pipe.load_lora_weights("cat.safetensors", adapter_name="cat")  # doctest: +SKIP
>>> pipe.load_lora_weights("ink.safetensors", adapter_name="ink")  # doctest: +SKIP
>>> nplora.diffusers.fuse_adapters(pipe, subject="cat", style="ink", mu=0.5).sentence  # doctest: +SKIP
>>> nplora.diffusers.set_mu(pipe, 1.0)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .errors import UsageError
from .live.fusing import LiveFusion, chosen_adapters, fuse_models, set_mu_models
from .live.layers import lora_layers, uncompiled


def fuse_adapters(
    pipe: Any,
    *adapters: str,
    subject: str | None = None,
    style: str | None = None,
    name: str = "fused",
    method: str = "np",
    components: Sequence[str] | None = None,
    **parameters: Any,
) -> LiveFusion:
    """Fuse loaded adapters of a pipeline into a new one, on its device, and make that the active one.

    The denoiser and the text encoders are treated alike. Each adapter counts as strongly as PEFT's scaling says at the
    moment (alpha / rank, times the weight of `pipe.set_adapters`), times its strength here. The base weights are
    neither read nor copied, so quantised and fp8-cast models work. The adapters stay loaded, inactive; for less memory,
    `pipe.delete_adapters` them. Offloading hooks are taken off and put on again, as by `load_lora_weights`.

    Args:
        pipe: a diffusers pipeline with the adapters loaded.
        adapters: names in order, each gives way to those that follow it (or as ``protect`` says); or
        subject, style: the two names.
        name: of the new adapter. Its rank is the sum of the ranks, or the rank asked for, whatever mu is.
        method: of `nplora methods`.
        components: only these, for example ["unet"], and the others stay as they are; by default all.
        **parameters: the method's (mu, directions, side, protect, ...), of two adapters subject_strength and
            style_strength, strengths and overrides in parts of the model, and rank, energy, error, keep_style,
            allow_nonfinite, as in `nplora.fuse`. With a rank alone every layer gets just that rank, with zeros where it
            needs fewer.

    Returns:
        What was done: counts, overlaps, `sentence` and `advice`.

    Raises:
        UsageError: an adapter is unknown, the name is taken, a parameter is out of range.
        InputError: an adapter is of a kind that cannot be fused in a model (DoRA, LoKr, ...), or holds NaN or infinity.
    """
    named = chosen_adapters(adapters, subject, style)
    models = _models(pipe, components)
    with _without_hooks(pipe):
        done = fuse_models(models, named, method, name, parameters)
    _activate(models.values(), name)
    return done


def set_mu(pipe: Any, mu: float | str, name: str = "fused", *, where: str | None = None) -> None:
    """Turn mu of a fused adapter in place: one multiply-add for each layer, no new tensors, nothing recompiled.

    0 is plain addition of the two, "inf" the hard projection. A compressed layer, and one of a method that is not
    linear in g, is computed anew, at the rank that it has.

    Args:
        where: only in this part of the model, such as "up", "text_encoder" or "*.attn1.*"; by default everywhere,
            whatever mu a part had of its own.

    Raises:
        UsageError: mu is out of range, or there is no such adapter or part, or the adapter cannot be written now.
    """
    models = _models(pipe, None)
    away = any(
        layer.lora_A[name].weight.device.type == "meta"
        for model in models.values()
        for _, layer in lora_layers(model)
        if name in layer.lora_A
    )
    if not away:
        set_mu_models(models, mu, name, where)
        return
    with _without_hooks(pipe):  # sequential offloading keeps the numbers elsewhere between two runs
        set_mu_models(models, mu, name, where)


def _models(pipe: Any, components: Sequence[str] | None) -> dict[str, Any]:
    loadable = list(getattr(pipe, "_lora_loadable_modules", ()))
    models = {label: uncompiled(getattr(pipe, label, None)) for label in loadable}
    known = {label: model for label, model in models.items() if model is not None}
    if not known:
        raise UsageError(
            "the pipeline takes no LoRA", got=type(pipe).__name__, hint="Give the pipeline, not one of its models."
        )
    unknown = [label for label in components or () if label not in known]
    if unknown:
        raise UsageError(f"no component is called {', '.join(unknown)}", expected=" or ".join(known))
    chosen = {label: model for label, model in known.items() if components is None or label in components}
    for label, model in chosen.items():
        _require_not_on_disk(model, label)
    return chosen


def _require_not_on_disk(model: Any, label: str) -> None:
    """Group offloading to disk leaves tensors of arbitrary numbers behind, and never writes a file again."""
    from diffusers.hooks.group_offloading import _get_top_level_group_offload_hook

    hook = _get_top_level_group_offload_hook(model)
    if hook is not None and hook.config.offload_to_disk_path is not None:
        raise UsageError(
            "the model is offloaded to disk, where adapters can neither be read nor written", key=label,
            hint="Fuse and set mu first, then call enable_group_offload; or offload to memory.",
        )  # fmt: skip


def _activate(models: Iterable[Any], name: str) -> None:
    """Make an adapter the active one of these models, as `pipe.set_adapters` does of all that are not compiled."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for model in models:
        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.set_adapter([name], inference_mode=True)


@contextmanager
def _without_hooks(pipe: Any) -> Iterator[None]:
    """Offloading off and on again, by the function with which diffusers' own loaders do it."""
    import torch

    model, sequential, group = pipe._optionally_disable_offloading(pipe)  # noqa: SLF001 - there is no public one
    try:
        yield
    finally:
        if model:
            pipe.enable_model_cpu_offload(device=pipe._offload_device)  # noqa: SLF001 - as it was asked for
        elif sequential:
            pipe.enable_sequential_cpu_offload(device=pipe._offload_device)  # noqa: SLF001 - likewise
        elif group:
            from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading

            for component in pipe.components.values():
                if isinstance(component, torch.nn.Module):
                    _maybe_remove_and_reapply_group_offloading(component)
