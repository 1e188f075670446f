"""diffusers: one loader for each pipeline, most of them silent about what they leave."""

from __future__ import annotations

import re
from collections import Counter

from ..adapters import LowRank
from . import FLUX, SD3, UNETS, File, Key, Program, Rule, bases

KOHYA = r"^lora_(unet|te|te1|te2)_"
SILENT = "diffusers passes over it in silence"
PREFIXED = r"^(unet|transformer|transformer_2|text_encoder|text_encoder_2|text_encoder_3)\."
FOLDED = bases("flux1", "chroma", "flux2-klein-4b", "qwen-image", "wan-14b", "wan-5b", "wan-1.3b", "z-image")
ANY_NAMES = FOLDED - FLUX | bases("lumina2", "hunyuan-video")
ATTENTION = r"attn[12]?_(to_|q_proj|k_proj|v_proj|out_proj)"
HEADS = r"^lora_unet_(img_in|txt_in|time_in|vector_in|guidance_in|final_layer)"


def is_kohya(key: Key, file: File) -> bool:
    """Every key begins as kohya's do: only then the file is read as one (Stable Diffusion)."""
    return file.first(rf"^(?!{KOHYA[1:]})(?!.*dora_scale$)") is None


def is_kohya_flux(key: Key, file: File) -> bool:
    """One kohya key makes a FLUX file a kohya file."""
    return file.first(r"\.lora_down\.weight") is not None


def encoder_of(name: str) -> str | None:
    """The prefix of the text encoder that a kohya name goes to, as a pattern; None for the denoiser's."""
    match = re.match(r"lora_(te2?|te1)_", name)
    return None if match is None else "lora_te2_" if match[1] == "te2" else "lora_te1?_"


def text_without_output(key: Key, file: File) -> bool:
    """Attention of a text encoder without its out_proj: the names are converted only where one is there."""
    encoder = encoder_of(key.key)
    if encoder is None or "self_attn" not in key.key:
        return False
    return file.first(rf"^{encoder}.*self_attn_out_proj") is None


def text_alone_without_output(key: Key, file: File) -> bool:
    """The same, where there is no mlp either to tell the naming by."""
    return text_without_output(key, file) and file.first(rf"^{encoder_of(key.key)}.*_mlp_") is None


def both_namings(key: Key, file: File) -> bool:
    """Blocks under the original names and under diffusers' in one file."""
    return file.first("down_blocks|mid_block|up_blocks") is not None


def common_alpha(encoder: str | None, file: File) -> float | None:
    """The most common alpha of a component in a kohya file, the first one where two are as common."""
    if ("alpha", encoder) not in file.memory:
        alphas = Counter(alpha for module, alpha in file.alphas.items() if encoder_of(module) == encoder)
        file.memory["alpha", encoder] = alphas.most_common(1)[0][0] if alphas else None
    found: float | None = file.memory["alpha", encoder]
    return found


def takes_the_common_alpha(key: Key, file: File) -> bool:
    """Attention under kohya names (and all of a first text encoder) gets the component's most common alpha."""
    encoder = encoder_of(key.key)
    common = common_alpha(encoder, file)
    if common is None or not key.modules or not isinstance(key.modules[0].update, LowRank):
        return False
    own = file.alphas.get(key.module)
    if own is not None and encoder != "lora_te1?_" and not re.search(ATTENTION, key.key):
        return False
    return (key.modules[0].update.rank if own is None else own) != common


def lacks_an_alpha(key: Key, file: File) -> bool:
    """FLUX lora_A keys, some with an alpha: the others get the most common one."""
    if is_kohya_flux(key, file) or not file.alphas or key.module in file.alphas or not key.modules:
        return False
    update = key.modules[0].update
    return isinstance(update, LowRank) and update.rank != Counter(file.alphas.values()).most_common(1)[0][0]


def negative_alpha(key: Key, file: File) -> bool:
    return file.alphas.get(key.module, 1.0) < 0


def integer_alpha(key: Key, file: File) -> bool:
    assert file.adapter.file is not None
    return key.role == "alpha" and file.adapter.file.tensors[key.key].dtype[0] in "IU"


def other_rank(key: Key, file: File) -> bool:
    """A text projection whose rank is not the one that its text encoder's other modules have most."""
    encoder = encoder_of(key.key)
    if "text_projection" not in key.key or encoder is None or not key.modules:
        return False
    others = (k for k in file.keys if encoder_of(k.key) == encoder and "text_projection" not in k.key)
    ranks = Counter(module.update.rank for other in others if other.role == "down" for module in other.modules)
    return bool(ranks) and key.modules[0].update.rank != ranks.most_common(1)[0][0]


def has_metadata(key: Key, file: File) -> bool:
    return "lora_adapter_metadata" in file.adapter.metadata and bool(file.alphas)


PROGRAM = Program(
    "diffusers",
    "diffusers",
    (
        # Stable Diffusion 1, 2 and XL.
        Rule("dropped", "it drops dora_scale with a warning", roles=frozenset({"dora"}), key=r"dora_scale$"),
        Rule("refused", "{key} has no 'lora' in its name and one such key makes the whole file invalid",
             UNETS | SD3, unless="lora"),
        Rule("refused", "it knows no such tensors as {key} under kohya names and stops there", UNETS, key=KOHYA,
             unless=r"\.(lora_down\.weight|lora_up\.weight|alpha)$", when=is_kohya),
        Rule("refused", "an alpha without factors ({key}) is one that it cannot place", UNETS, key=KOHYA,
             when=lambda key, file: is_kohya(key, file) and not key.module),
        Rule("refused", "lora_adapter_metadata in the header and alphas may not stand in one file", UNETS, key=KOHYA,
             when=lambda key, file: is_kohya(key, file) and has_metadata(key, file)),
        Rule("dropped", "a key of another kind in the file keeps it from reading kohya's", UNETS, key=r"^lora_",
             when=lambda key, file: not is_kohya(key, file)),
        Rule("dropped", "the file holds both block namings of SDXL and it keeps the other one", UNETS,
             key="input_blocks|middle_block|output_blocks", when=both_namings),
        Rule("dropped", "both layers of add_embedding become one name", bases("sdxl"), key="^lora_unet_add_embedding_"),
        Rule("refused", "the text encoder's attention stands there without out_proj or mlp ({key}) and it cannot tell "
             "the naming", UNETS, when=text_alone_without_output),
        Rule("dropped", "text attention is read only where out_proj is there too", UNETS | FLUX,
             when=text_without_output),
        Rule("refused", "its text projection has another rank than the rest ({key}), which it does not look at", UNETS,
             when=other_rank),
        Rule("changed", "its alpha is replaced by the most common one of its component", UNETS, frozenset({"kohya"}),
             when=takes_the_common_alpha),
        Rule("changed", "its dora_scale is dropped: what is left is a plain LoRA", roles=frozenset({"down", "up"}),
             when=lambda key, file: f"{key.module}.dora_scale" in file.names),
        # FLUX.1.
        Rule("refused", "a negative alpha ({key}) sends it into a loop without end", FOLDED, frozenset({"kohya"}),
             when=negative_alpha),
        Rule("dropped", "beside keys that begin with transformer. it passes over all others", FLUX,
             unless=r"^transformer\.",
             when=lambda key, file: is_kohya_flux(key, file) and file.first(r"^transformer\.") is not None),
        Rule("dropped", "it reads no T5 and no second text encoder of a FLUX file", FLUX,
             key=r"^(lora_te[23]_|text_encoder_2\.|text_encoders\.t5xxl)"),
        Rule("dropped", "it drops text_projection of a FLUX file", FLUX, key="text_projection"),
        Rule("dropped", f"of a kohya FLUX file it reads the blocks only; {SILENT}", FLUX, key=HEADS),
        Rule("dropped", "biases and norms of a kohya FLUX file are not read", FLUX, frozenset({"kohya"}),
             key=r"\.(diff_b|w_norm|b_norm|diff)$"),
        Rule("dropped", f"it does not know this prefix; {SILENT}", FLUX, key=r"^(lycoris_|lora_prior_|oft_)"),
        Rule("refused", "it knows no such tensors as {key} under kohya names and stops there", FLUX,
             frozenset({"kohya"}), unless=r"\.(lora_down\.weight|lora_up\.weight|alpha)$", when=is_kohya_flux),
        Rule("refused", "{key} is an alpha of whole numbers, which it takes for an error", FLUX, unless="^lora_",
             when=integer_alpha),
        Rule("changed", "it has no alpha and gets the most common one of the file", FLUX, frozenset({"diffusers"}),
             when=lacks_an_alpha),
        # The rest.
        Rule("refused", "it finds no module for {key} (transformer. together with an alpha or .default.)",
             bases("qwen-image"), key=r"^transformer\..*(\.alpha|\.default\..*)$"),
        Rule("dropped", f"the transformer. in front is missing; {SILENT}", bases("qwen-image"), frozenset({"generic"}),
             when=lambda key, file: file.first(r"\.alpha$|default\.|^lora_unet_|^diffusion_model\.") is None),
        Rule("dropped", "it knows .default. of a Qwen or Z-Image file only", key=r"\.default\.",
             when=lambda key, file: file.base not in ("qwen-image", "z-image")),
        Rule("dropped", f"it has no reader for kohya names of this model; {SILENT}", SD3, key="^lora_"),
        Rule("dropped", f"it does not know this prefix; {SILENT}", key=r"^(lycoris_|lora_prior_|oft_)"),
        Rule("dropped", "PEFT's prefix base_model.model. is read for FLUX only", key=r"^base_model\.model\.",
             when=lambda key, file: file.base not in FLUX | bases("flux2-klein-4b")),
        Rule("dropped", "cloneofsimo's numbered list is not read", key=r"^\w+:\d+:(up|down)$"),
        Rule("dropped", f"it looks for keys that begin with unet., transformer. or text_encoder.; {SILENT}",
             unless=rf"{PREFIXED}|^lora_|processor",
             when=lambda key, file: file.base not in ANY_NAMES and not (
                 file.base in FLUX and (is_kohya_flux(key, file) or key.format == "peft"))),
        Rule("dropped", f"the unet. in front is missing; {SILENT}", UNETS, unless=rf"{PREFIXED}|^lora_"),
    ),
    "run with diffusers 0.42.1 for SD 1.x, SDXL, FLUX.1, SD 3.5, Qwen-Image and Wan; read for the rest",
)  # fmt: skip
