"""sd-scripts (and musubi-tuner for the models that sd-scripts lacks): its own network's names, loaded not strictly."""

from __future__ import annotations

from . import File, Key, Program, Rule


def lacks_factors(key: Key, file: File) -> bool:
    """A module without a lora_down of its own: none is made for it, so its alpha finds nothing."""
    if "made" not in file.memory:
        file.memory["made"] = {each.module for each in file.keys if each.key.endswith(".lora_down.weight")}
    return key.module not in file.memory["made"]


OWN = r"^lora_(unet|te|te1|te2|te3)_"

PROGRAM = Program(
    "kohya",
    "sd-scripts",
    (
        Rule("dropped", "it loads the names of its own networks only (lora_unet_, lora_te1_, ...)", unless=OWN),
        Rule("dropped", "it belongs to no module of its network", when=lambda key, file: not key.module),
        Rule("dropped", "LyCORIS kinds need the lycoris module, not networks.lora",
             key=r"\.(hada_|lokr_|oft_|lora_mid|a1|a2|b1|b2|bm|glora|w_norm|b_norm|diff)"),
        Rule("dropped", "it is an alpha without a lora_down beside it", roles=frozenset({"alpha"}), when=lacks_factors),
        Rule("changed", "its dora_scale is dropped: what is left is a plain LoRA", roles=frozenset({"down", "up"}),
             when=lambda key, file: f"{key.module}.dora_scale" in file.names),
        Rule("dropped", "networks.lora has no such tensor", unless=r"\.(lora_down\.weight|lora_up\.weight|alpha)$"),
    ),
    "read (sd-scripts 48d368f, February 2026; musubi-tuner 30c658c, June 2026), not run",
)  # fmt: skip
