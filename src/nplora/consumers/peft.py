"""PEFT: a folder, its own prefix, the scale from its config; whatever else is there is not mentioned."""

from __future__ import annotations

from . import File, Key, Program, Rule


def is_saved_module(key: Key, file: File) -> bool:
    """A whole tensor of a module that the config says is trained in full."""
    saved = (file.adapter.config or {}).get("modules_to_save")
    return isinstance(saved, list) and any(f".{name}." in f".{key.key}" for name in saved)


PROGRAM = Program(
    "peft",
    "PEFT",
    (
        Rule("dropped", "its keys begin with base_model.model.", unless=r"^base_model\.model\."),
        Rule("dropped", "the scale stands in adapter_config.json", roles=frozenset({"alpha", "scale"})),
        Rule("dropped", "modules_to_save of adapter_config.json does not name it", when=lambda key, file: (
            not key.role and not is_saved_module(key, file))),
        Rule("dropped", "no LoRA of PEFT has such a tensor",
             roles=frozenset({"mid", "diff", "diff_b", "w_norm", "b_norm", "set_weight", "reshape_weight"})),
    ),
    "run with PEFT 0.21.2",
    wants_folder=True,
)  # fmt: skip
