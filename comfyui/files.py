"""LoRA files as ComfyUI keeps them: chosen by name, loaded into a model, saved where its loaders find them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import folder_paths

import nplora
from nplora.consumers import forecast
from nplora.consumers.comfyui import safest_format

NONE = "none"


def names() -> list[str]:
    """What the loaders of ComfyUI list too."""
    return list(folder_paths.get_filename_list("loras"))


def paths(chosen: Sequence[str]) -> list[str]:
    """The files behind names from the list."""
    return [folder_paths.get_full_path_or_raise("loras", name) for name in chosen]


def fingerprint(chosen: Sequence[str], *settings: object) -> str:
    """Changes when a file or a setting does, so that ComfyUI knows when to run a node again."""
    stamps = [(path, (stat := Path(path).stat()).st_mtime_ns, stat.st_size) for path in paths(chosen)]
    return hashlib.sha256(repr((stamps, settings)).encode()).hexdigest()


def load(chosen: Sequence[str]) -> list[nplora.Adapter]:
    return [nplora.load(path) for path in paths(chosen)]


def written(fusion: nplora.Fusion, stamp: str) -> tuple[str, dict[str, Any]]:
    """The fusion as a file in ComfyUI's temporary folder, named as ComfyUI reads it, and the report."""
    folder = Path(folder_paths.get_temp_directory()) / "nplora"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stamp[:32]}.safetensors"
    report = fusion.save(path, format=safest_format(tuple(fusion.inputs.values())), overwrite=True)
    return str(path), report


def apply(path: str, model: Any, clip: Any, strength_model: float, strength_clip: float) -> tuple[Any, Any]:
    """Patch a model and its text encoder with a file, by ComfyUI's own loader."""
    import comfy.sd
    import comfy.utils

    state = comfy.utils.load_torch_file(path, safe_load=True)
    return comfy.sd.load_lora_for_models(model, clip, state, strength_model, strength_clip)


def save_target(folder: str, name: str, format: str) -> Path:
    """Where a fused file goes: inside the LoRA folder or the output folder, never outside.

    Raises:
        UsageError: the name leads out of the folder.
    """
    root = Path(folder_paths.get_folder_paths("loras")[0] if folder == "loras" else folder_paths.get_output_directory())
    path = (root / name.strip()).resolve()
    if not name.strip() or not path.is_relative_to(root.resolve()) or path == root.resolve():
        raise nplora.UsageError(
            "the name leads out of the folder", key=name, expected=f"a name inside {folder}", hint="Use no .. in it."
        )
    if format != "peft" and path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def progress() -> Callable[[int, int], None]:
    """A callback that moves ComfyUI's bar."""
    import comfy.utils

    return comfy.utils.ProgressBar(1).update_absolute


def picture_of(found: dict[str, Any]) -> Any:
    """What `compare` found as a picture for ComfyUI: (1, height, width, 3), from 0 to 1."""
    from io import BytesIO

    import numpy as np
    import torch
    from PIL import Image

    from nplora.plots import as_png
    from nplora.plots.figures import of_pair

    with Image.open(BytesIO(as_png(of_pair(found)))) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 255.0)[None]


def told(path: str, report: dict[str, Any]) -> str:
    """What a fusion did, in lines for a person."""
    coming = forecast(nplora.load(path), "comfyui")
    lines = [report["sentence"], report["advice"], coming.sentence]
    lines += [f"not taken: {key} ({why})" for key, why in coming.dropped.items()]
    lines += [f"left out: {key} ({why})" for key, why in report["left_out"].items()]
    lines += [f"{role} words: {', '.join(words)}" for role, words in report["trigger_words"].items() if words]
    return "\n".join(line for line in (*lines, *report["notes"]) if line)
