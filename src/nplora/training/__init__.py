"""Train a subject or a style LoRA of your own: a thin front to diffusers, PEFT and accelerate.

It shows what a pair is made of, on the world in about a minute and on SD and SDXL with a GPU. It is no match for a
trainer that does nothing else (buckets, text encoders, prior preservation); their files are fused just as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OutputError, UsageError
from ..pictures import Base, Opened, find_base, open_pipeline
from ..pictures.pipelines import SMALL, fitting_threads, needed, quiet
from ..version import __version__
from .captions import KINDS, captioned, check_kind, content_seed, trigger_of
from .files import FORMS, Factors, write_adapter
from .loop import Schedule, encode, fit

__all__ = [
    "FORMS", "KINDS", "Schedule", "Trained", "captioned", "content_seed", "train_lora", "trigger_of", "usual_schedule",
    "write_adapter",
]  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        files: what was written.
        seed: the seed that was used.
        losses: the loss of every step.
    """

    files: list[Path]
    seed: int
    losses: list[float]


def usual_schedule(kind: str, numbers: int) -> Schedule:
    """Steps, batch and rate for a subject or a style, by the size of the denoiser.

    Those of a miniature were found on the world; the others are what people use on SD and SDXL.

    >>> usual_schedule("style", 7_000_000)
    Schedule(steps=250, batch=4, rate=0.002)
    """
    if numbers < SMALL:
        return Schedule(200 if kind == "subject" else 250, 4, 2e-3)
    return Schedule(800 if kind == "subject" else 1200, 1, 1e-4)


def train_lora(
    pipeline: Path | str | Base,
    images: Path,
    prompt: str,
    kind: str,
    output: Path,
    *,
    rank: int = 4,
    alpha: float | None = None,
    seed: int | None = None,
    steps: int | None = None,
    batch: int | None = None,
    rate: float | None = None,
    forms: Sequence[str] = ("diffusers",),
    trigger: str | None = None,
    dtype: str = "fp16",
    device: str = "auto",
    mixed_precision: str = "auto",
    overwrite: bool = False,
    report: Callable[[int, int, float], None] | None = None,
) -> Trained:
    """Train one LoRA on the UNet's attention and feed-forward layers.

    Args:
        pipeline: a folder of a Stable Diffusion or SDXL pipeline, "world", or a `Base`.
        images: folder of pictures; see `captioned` for how each gets its caption.
        prompt: caption, with a rare word for what is new ("a sks in flat style", "a {name} in stl style").
        kind: "subject" or "style"; chooses the usual length and is noted in the file.
        output: the file to write in the first form, a folder for peft alone. Further forms stand beside it, as
            ``NAME.kohya.safetensors`` and ``NAME.peft``.
        rank, alpha: of the LoRA; alpha is the rank by default. The files hold ``alpha / rank`` in their factors.
        seed: of the initial down factors, the noise and the order; by default it follows from the content, see
            `content_seed`.
        steps, batch, rate: length, pictures a step, learning rate; `usual_schedule` by default.
        forms: any of `FORMS`.
        trigger: the words that call it up; those of `trigger_of` by default.
        dtype: of the files. device: as in `open_pipeline`.
        mixed_precision: accelerate's "no", "bf16" or "fp16"; "auto" takes what the device is fast in.
        overwrite: replace what stands there.
        report: called with (step, steps, loss) after every step.

    Raises:
        UsageError, InputError, OutputError, NploraError: see there.
    """
    check_kind(kind)
    unknown = [form for form in forms if form not in FORMS]
    if unknown or not forms:
        raise UsageError(f"unknown form {', '.join(unknown)}", expected=", ".join(FORMS))
    targets = _targets(Path(output), forms)
    for target in targets.values():
        if target.exists() and not overwrite:
            raise OutputError("the output exists already", file=target, hint="Choose another name, or add --overwrite.")
    pairs = captioned(images, prompt)
    found_seed = content_seed(pairs, kind) if seed is None else seed
    needed("torch", "diffusers", "transformers", "peft", "accelerate", "PIL")
    base = pipeline if isinstance(pipeline, Base) else find_base(pipeline)
    opened = open_pipeline(base, device)
    usual = usual_schedule(kind, sum(p.numel() for p in opened.denoiser.parameters()))
    schedule = Schedule(steps or usual.steps, batch or usual.batch, rate or usual.rate)
    with fitting_threads(opened), quiet():
        encoded = encode(opened, pairs)
        precision = _precision(opened) if mixed_precision == "auto" else mixed_precision
        losses = fit(opened, encoded, rank, alpha or rank, schedule, found_seed, precision, report)
        factors = _factors(opened, (alpha or rank) / rank)
    last = losses[-max(len(losses) // 10, 1) :]
    facts = {
        "nplora": __version__, "kind": kind, "base": base.name, "pipeline": type(opened.pipe).__name__,
        "prompt": prompt, "pictures": len(pairs), "seed": found_seed,
        "seed_from": "content" if seed is None else "given", "rank": rank, "steps": schedule.steps,
        "batch": schedule.batch, "learning_rate": schedule.rate, "final_loss": round(sum(last) / len(last), 5),
    }  # fmt: skip
    header = _header(facts, trigger or trigger_of(prompt))
    files = [
        write_adapter(target, factors, header, form=form, dtype=dtype, overwrite=overwrite)
        for form, target in targets.items()
    ]
    return Trained(files, found_seed, losses)


def _targets(output: Path, forms: Sequence[str]) -> dict[str, Path]:
    """Form -> where it is written: the first one takes the name as given."""
    names = {form: output.stem + (f".{form}" if form == "peft" else f".{form}.safetensors") for form in forms}
    return {form: output.with_name(name) for form, name in names.items()} | {forms[0]: output}


def _precision(opened: Opened) -> str:
    """What the device is fast in."""
    import torch

    if opened.device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    try:
        fast = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - torch has no public question for it
    except (AttributeError, RuntimeError):
        fast = False
    return "bf16" if opened.device == "cpu" and fast else "no"


def _factors(opened: Opened, scale: float) -> Factors:
    """Canonical name -> (up, down) in float32; the scale goes into up."""
    from peft.utils import get_peft_model_state_dict

    trained = get_peft_model_state_dict(opened.pipe.unet)
    state = {key: value.detach().float().cpu().numpy() for key, value in trained.items()}
    mark = ".lora_A.weight"
    names = [key.removesuffix(mark) for key in state if key.endswith(mark)]
    return {f"unet.{name}": (scale * state[name + ".lora_B.weight"], state[name + mark]) for name in names}


def _header(facts: Mapping[str, Any], trigger: str) -> dict[str, str]:
    """What the training was, under the names that other programs read, and whole under our own."""
    known = {
        "ss_sd_model_name": facts["base"], "ss_seed": facts["seed"], "ss_steps": facts["steps"],
        "ss_learning_rate": facts["learning_rate"], "ss_num_train_images": facts["pictures"],
        "ss_network_dim": facts["rank"], "ss_network_alpha": float(facts["rank"]),
    }  # fmt: skip
    whole = {"modelspec.trigger_phrase": trigger, "nplora.training": json.dumps(facts, ensure_ascii=False)}
    return whole | {name: str(value) for name, value in known.items()}
