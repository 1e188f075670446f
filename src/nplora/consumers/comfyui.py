"""ComfyUI: a map from names to weights for each model; a key that it does not hold is logged and passed over."""

from __future__ import annotations

from collections.abc import Sequence

from ..reading.adapter import Adapter
from . import SD3, UNETS, Program, Rule, bases

LOGGED = "ComfyUI logs 'lora key not loaded' and goes on"
PEFT = SD3 | bases("hunyuan-video")

PROGRAM = Program(
    "comfyui",
    "ComfyUI",
    (
        Rule("dropped", f"it belongs to no module; {LOGGED}", when=lambda key, file: not key.module),
        Rule("dropped", f"attention under diffusers names is known in its old form only (.processor.); {LOGGED}",
             UNETS, key=r"\.to_(q|k|v|out)\b|\.to_out\.0", unless=r"\.processor\.|^diffusion_model\."),
        Rule("dropped", f"of text encoders under diffusers names CLIP's layers are known only; {LOGGED}",
             key=r"^text_encoder(_\d)?\.", unless=r"^text_encoder(_2)?\.text_model\.encoder\.layers\.\d+\."),
        Rule("dropped", f"PEFT's prefix is known for SD3 and HunyuanVideo only; {LOGGED}",
             key=r"^base_model\.model\.", when=lambda key, file: file.base not in PEFT),
        Rule("dropped", f"cloneofsimo's numbered list is not known; {LOGGED}", key=r"^\w+:\d+:(up|down)$"),
        Rule("dropped", f"lora_transformer_ is known for FLUX.1 and SD3 only; {LOGGED}", key=r"^lora_transformer_",
             when=lambda key, file: file.base not in SD3 | bases("flux1")),
        Rule("dropped", f"xlabs names are known in the form of USO only; {LOGGED}", formats=frozenset({"xlabs"}),
             when=lambda key, file: not (file.first(r"single_blocks\.37\.processor\.qkv_lora\.up")
                                         and file.first(r"double_blocks\.18\.processor\.qkv_lora2\.up"))),
        Rule("dropped", f"names without a prefix are known in the attention-processor form only; {LOGGED}", UNETS,
             formats=frozenset({"generic"})),
    ),
    "read (ComfyUI 17358c8), not run: it is in no package registry",
)  # fmt: skip


def safest_format(adapters: Sequence[Adapter]) -> str:
    """The ``format`` of `fuse` whose names ComfyUI finds: kohya's for a UNet, else those of the inputs.

    >>> safest_format([load("cat.safetensors"), load("ink.safetensors")])  # doctest: +SKIP
    'kohya'
    """
    return "kohya" if any(adapter.layout and adapter.layout.name in UNETS for adapter in adapters) else "auto"
