"""Open a local pipeline, put one adapter on it at a time, paint. torch and diffusers are imported here, on demand."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError, NploraError, UsageError
from ..extras import require
from .bases import Base

if TYPE_CHECKING:
    from PIL.Image import Image

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "fp32", "fp16", "bf16")
BATCH_PIXELS = 512 * 512  # pictures painted at once have about this many pixels in all
SMALL = 50_000_000  # numbers in a denoiser below which a second thread costs more than it brings


@dataclass(frozen=True)
class Opened:
    """A pipeline that is ready to paint.

    Attributes:
        pipe: the diffusers pipeline.
        base: where it came from.
        device, dtype: where and in which numbers it computes.
        width, height: of its pictures, in pixels.
    """

    pipe: Any
    base: Base
    device: str
    dtype: str
    width: int
    height: int

    @property
    def denoiser(self) -> Any:
        """The UNet or the transformer."""
        return getattr(self.pipe, "unet", None) or self.pipe.transformer

    def default(self, name: str) -> Any:
        """What the pipeline itself takes for an argument that is not given."""
        parameter = inspect.signature(self.pipe.__call__).parameters.get(name)
        return None if parameter is None else parameter.default

    def accepts(self, name: str) -> bool:
        return name in inspect.signature(self.pipe.__call__).parameters


@dataclass(frozen=True)
class Shot:
    """One picture to paint with what is on the pipeline."""

    prompt: str
    seed: int


def needed(*modules: str) -> None:
    """Make sure that the extra is installed.

    Raises:
        UsageError: a package is missing.
    """
    require("this needs", "pictures", *modules)


def open_pipeline(
    base: Base, device: str = "auto", dtype: str = "auto", *, offload: bool = False, size: tuple[int, int] | None = None
) -> Opened:
    """Open a pipeline for painting; nothing is fetched from a network and no pickle is read.

    Args:
        base: from `find_base`.
        device: "auto" takes a GPU where there is one.
        dtype: "auto" is fp32 on the CPU, bf16 on a GPU that has it, else fp16.
        offload: keep only the part that computes on the GPU (slower, and the memory of the largest part is enough).
        size: (width, height) of the pictures; the pipeline's own by default.

    Raises:
        UsageError: a package or the device is missing; InputError: diffusers cannot open the folder.
    """
    needed("torch", "diffusers", "transformers", "peft", "accelerate")
    import torch

    device, dtype = _resolved(device, dtype)
    if offload and device == "cpu":
        raise UsageError("offload needs a GPU", hint="On the CPU all of it is in main memory already.")
    kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    with quiet():
        from diffusers import DiffusionPipeline

        try:
            pipe = DiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
                os.fspath(base.folder), dtype=kinds[dtype], local_files_only=True, use_safetensors=True
            )
        except Exception as error:
            raise InputError(
                f"diffusers cannot open this pipeline ({in_short(error)})", file=base.folder,
                hint="Check that the folder is whole; weights must be safetensors.",
            ) from error  # fmt: skip
        if offload:
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.to(device)
        pipe.set_progress_bar_config(disable=True)
    if not hasattr(pipe, "load_lora_weights"):
        raise InputError(f"diffusers loads no LoRA into a {type(pipe).__name__}", file=base.folder)
    width, height = size or _own_size(pipe)
    return Opened(pipe, base, device, dtype, width, height)


def _resolved(device: str, dtype: str) -> tuple[str, str]:
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for name, value, known in (("device", device, DEVICES), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise UsageError(f"unknown {name} {value!r}", expected=", ".join(known))
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[device]:
        raise UsageError(f"device {device} is not available on this machine", hint="Use --device cpu.")
    if dtype == "auto":
        half = "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp16"
        dtype = "fp32" if device == "cpu" else half
    return device, dtype


def _own_size(pipe: Any) -> tuple[int, int]:
    """The size that the pipeline takes by itself: the denoiser's sample size, or what its class says."""
    sample = getattr(getattr(pipe, "unet", None) or pipe.transformer, "config", {}).get("sample_size")
    sample = getattr(pipe, "default_sample_size", None) or sample or 128
    height, width = sample if isinstance(sample, (tuple, list)) else (sample, sample)
    return width * pipe.vae_scale_factor, height * pipe.vae_scale_factor


def in_short(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + " ..."


def prepare_process() -> None:
    """Settings that torch and the hub's client read when they are imported; for programs, not for libraries.

    Threads that wait spinning make a busy machine many times slower; and a process that paints with local files has
    nothing to ask a hub for.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


@contextmanager
def quiet() -> Iterator[None]:
    """Neither bars nor advice of diffusers and transformers inside; what matters is said by nplora."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    levels = [(library, library.get_verbosity()) for library in (of_diffusers, of_transformers)]
    for library, _ in levels:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for library, level in levels:
            library.set_verbosity(level)
            library.enable_progress_bar()


def paint(
    opened: Opened,
    shots: Sequence[Shot],
    *,
    steps: int | None = None,
    guidance: float | None = None,
    negative: str | None = None,
    batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Image]:
    """Paint pictures; each depends on its own prompt and seed only (but for rounding), whatever is painted beside it.

    Args:
        opened: the pipeline, with or without an adapter on it.
        shots: prompt and seed of each picture. The noise comes from the CPU, so it is the same on every device.
        steps, guidance, negative: as the pipeline takes them; None is its default.
        batch: pictures at once; chosen by their size where not given.
        progress: called with the number of (picture, step) pairs done since the last call.

    Raises:
        NploraError: the device's memory is too small; UsageError: the pipeline takes no negative prompt.
    """
    import torch

    asked = _arguments(opened, steps, guidance)
    size = batch or max(1, min(16, BATCH_PIXELS // (opened.width * opened.height)))
    found: list[Image] = []
    with fitting_threads(opened), quiet(), torch.no_grad():
        for start in range(0, len(shots), size):
            part = shots[start : start + size]
            if negative is not None:
                if not opened.accepts("negative_prompt"):
                    raise UsageError(f"{type(opened.pipe).__name__} takes no negative prompt")
                asked["negative_prompt"] = [negative] * len(part)
            try:
                out = opened.pipe(
                    prompt=[shot.prompt for shot in part],
                    generator=[torch.Generator("cpu").manual_seed(shot.seed) for shot in part],
                    **asked, **_watched(opened, len(part), progress),
                )  # fmt: skip
            except torch.OutOfMemoryError:
                raise NploraError(
                    f"{len(part)} pictures of {opened.width} x {opened.height} do not fit the memory of "
                    f"{opened.device}", hint="Use --batch 1, --offload, a smaller --size, or --device cpu.",
                ) from None  # fmt: skip
            found += out.images
    return found


def _arguments(opened: Opened, steps: int | None, guidance: float | None) -> dict[str, Any]:
    chosen = {
        "num_inference_steps": steps or opened.base.steps,
        "guidance_scale": opened.base.guidance if guidance is None else guidance,
        "width": opened.width,
        "height": opened.height,
    }
    return {name: value for name, value in chosen.items() if value is not None} | {"output_type": "pil"}


def _watched(opened: Opened, pictures: int, progress: Callable[[int], None] | None) -> Mapping[str, Any]:
    if progress is None or not opened.accepts("callback_on_step_end"):
        return {}

    def step(pipe: Any, index: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        progress(pictures)
        return values

    return {"callback_on_step_end": step}


def steps_of(opened: Opened, steps: int | None) -> int:
    """How many steps a picture takes."""
    return steps or opened.base.steps or opened.default("num_inference_steps") or 1


@contextmanager
def fitting_threads(opened: Opened) -> Iterator[None]:
    """One thread for a miniature on the CPU: a second one waits more than it works."""
    import torch

    before = torch.get_num_threads()
    small = opened.device == "cpu" and sum(p.numel() for p in opened.denoiser.parameters()) < SMALL
    try:
        if small:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
