"""Split a tensor's key into the module it belongs to and the role it plays there.

Splitting at the role suffix is the only safe way: module names hold dots and underscores of their own.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Key(NamedTuple):
    """A split key: ``module + suffix`` is the key again, except for numbered formats (see `numbered`)."""

    module: str
    role: str
    suffix: str
    adapter: str | None = None  # the adapter's name in ``lora_A.<name>.weight``


# suffix -> role. Example keys stand in each format's file.
SUFFIXES: dict[str, str] = {
    ".lora_down.weight": "down", ".lora_up.weight": "up", ".lora_mid.weight": "mid",
    ".lora_down.bias": "down_bias", ".lora_up.bias": "bias",
    ".lora_A.weight": "down", ".lora_B.weight": "up", ".lora_A.bias": "down_bias", ".lora_B.bias": "bias",
    ".lora_A": "down", ".lora_B": "up",
    ".lora_a": "down_transposed", ".lora_b": "up_transposed",
    ".lora.down.weight": "down", ".lora.up.weight": "up",
    "_lora.down.weight": "down", "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",
    ".down.weight": "down", ".up.weight": "up",
    "_lora_down.weight": "down", "_lora_up.weight": "up",
    ".lora_embedding_A": "embedding_down", ".lora_embedding_B": "embedding_up",
    ".alpha": "alpha", ".scale": "scale",
    ".dora_scale": "dora", ".magnitude": "dora",
    ".lora_magnitude_vector": "dora", ".lora_magnitude_vector.weight": "dora",
    ".diff": "diff", ".diff_b": "diff_b", ".w_norm": "w_norm", ".b_norm": "b_norm",
    ".set_weight": "set_weight", ".reshape_weight": "reshape_weight",
    **{f".hada_{part}": f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{part}": f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t1", "t2")},
    ".oft_blocks": "oft", ".oft_diag": "oft_diag", ".rescale": "oft_rescale",
    ".oft_R.weight": "oft_rotation", ".oft_R.scaled_oft": "oft_scaled",
    ".a1.weight": "glora_a1", ".a2.weight": "glora_a2", ".b1.weight": "glora_b1", ".b2.weight": "glora_b2",
    ".bm.weight": "glora_bm",
    ".on_input": "ia3_on_input", ".ia3_l": "ia3", ".boft_R": "boft", ".boft_s": "boft_scale",
    ".bias_indices": "sparse_bias", ".bias_values": "sparse_bias_values", ".bias_size": "sparse_bias_size",
}  # fmt: skip

# xlabs' bare ``processor.qkv_lora1.down.weight`` aside, ``.down.weight`` also names ordinary MLP layers.
_AMBIGUOUS = {".down.weight", ".up.weight"}

_NAMED = re.compile(
    r"^(?P<module>.+?)\.(?P<stem>lora_[AB]|lora_magnitude_vector)\.(?P<name>[^.]+)(?P<tail>\.weight|\.bias)?$"
)
_OTHER_METHODS = re.compile(
    r"^(?P<module>.+?)\.(?P<role>(?:vera_lambda|hra|fourierft|c3a|road|randlora|shira|miss|vblora|gralora|hira)_\w+)"
    r"(?:\.\w+)*$"
)
_LISTED = re.compile(r"^(?P<module>[^:]+:\d+):(?P<role>up|down)$")
_NUMBERED = re.compile(r"^w_(?P<side>[ab])_(?P<index>\d+)$")
_NOT_MODULES = ("bundle_emb.", "_aux.")


def split(key: str) -> Key | None:
    """Split a key into module and role; None where no rule matches (such a key is carried along untouched).

    >>> split("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight")
    Key(module='lora_unet_mid_block_attentions_0_proj_in', role='down', suffix='.lora_down.weight', adapter=None)
    >>> split("transformer.blocks.0.attn.to_q.lora_A.default.weight").adapter
    'default'
    >>> split("base_model.model.score.weight") is None
    True
    """
    if key.startswith("lora_"):  # kohya modules hold no dot, so the first one is right
        module, _, rest = key.partition(".")
        role = SUFFIXES.get("." + rest)
        if role is not None:
            return Key(module, role, "." + rest)
    if key.startswith(_NOT_MODULES):
        return None
    return _split_special(key) or _split_suffix(key)


def _split_suffix(key: str) -> Key | None:
    # The longest suffix wins: ``.lora_B.weight`` before ``.weight``-like tails.
    position = key.rfind(".")
    found: Key | None = None
    while position > 0:
        suffix = key[position:]
        role = SUFFIXES.get(suffix)
        if role is not None and (suffix not in _AMBIGUOUS or "processor." in key or "lora" in key):
            found = Key(key[:position], role, suffix)
        for joint in ("_lora", "_lora_down", "_lora_up"):  # glued to the module's last word
            if key[:position].endswith(joint):
                start = position - len(joint)
                role = SUFFIXES.get(key[start:])
                if role is not None:
                    return Key(key[:start], role, key[start:])
        if len(suffix) > 40:
            break
        position = key.rfind(".", 0, position)
    return found


def _split_special(key: str) -> Key | None:
    if match := _LISTED.match(key):
        return Key(match["module"], match["role"], ":" + match["role"])
    if match := _NUMBERED.match(key):
        return Key("w_" + match["index"], {"a": "down", "b": "up"}[match["side"]], f"w_{match['side']}_")
    match = _NAMED.match(key)
    if match and match["name"] not in ("weight", "bias"):
        suffix = f".{match['stem']}{match['tail'] or ''}"
        if suffix in SUFFIXES:
            return Key(match["module"], SUFFIXES[suffix], key[len(match["module"]) :], match["name"])
    if match := _OTHER_METHODS.match(key):
        return Key(match["module"], "other:" + match["role"], key[len(match["module"]) :])
    return None
