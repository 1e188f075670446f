"""Write one trained LoRA in the three forms people meet: diffusers, kohya and PEFT.

diffusers: `unet.<module>.lora_A.weight`, with the PEFT configuration in the header.
kohya: `lora_unet_<module_with_underscores>.lora_down.weight` and `.alpha`.
PEFT: a folder of `adapter_model.safetensors` (`base_model.model.<module>.lora_A.weight`) and `adapter_config.json`.
"""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

FORMS = ("diffusers", "kohya", "peft")


def lora_weights(unet: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the adapter's factors in fp16, `<module>.lora_A.weight` and `.lora_B.weight`."""
    return {
        key: value.detach().to(torch.float16).contiguous() for key, value in get_peft_model_state_dict(unet).items()
    }


def save(
    unet: torch.nn.Module, output: Path, notes: dict[str, str], forms: tuple[str, ...] = ("diffusers",)
) -> list[Path]:
    """Write the adapter of `unet` beside `output` in the asked forms.

    Parameters
    ----------
    unet : torch.nn.Module
        Carries exactly one PEFT LoRA adapter named "default".
    output : pathlib.Path
        `NAME.safetensors`: the diffusers file. The kohya file is `NAME.kohya.safetensors`, the PEFT folder `NAME.peft`.
    notes : dict of str
        Facts of the training, kept in the header of the kohya file (`ss_...` keys there by custom).
    forms : tuple of str
        Any of `FORMS`.

    Returns
    -------
    list of pathlib.Path
        What was written.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    factors, config = lora_weights(unet), unet.peft_config["default"]
    written = []
    if "diffusers" in forms:
        StableDiffusionPipeline.save_lora_weights(
            output.parent,
            unet_lora_layers=factors,
            weight_name=output.name,
            **_collate_lora_metadata({"unet": unet}),
        )
        written.append(output)
    if "kohya" in forms:
        written.append(output.with_suffix(".kohya.safetensors"))
        save_file(_kohya(factors, config), written[-1], {f"ss_{key}": str(value) for key, value in notes.items()})
    if "peft" in forms:
        written.append(output.with_suffix(".peft"))
        written[-1].mkdir(exist_ok=True)
        save_file({f"base_model.model.{k}": v for k, v in factors.items()}, written[-1] / "adapter_model.safetensors")
        config.save_pretrained(written[-1])
    return written


def _kohya(factors: dict[str, torch.Tensor], config: LoraConfig) -> dict[str, torch.Tensor]:
    named = convert_state_dict_to_kohya({f"unet.{key}": value for key, value in factors.items()})
    # the converter takes alpha from the rank; ours may differ
    return {k: torch.tensor(float(config.lora_alpha)) if k.endswith(".alpha") else v for k, v in named.items()}
