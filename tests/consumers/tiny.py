"""Small random pipelines, and what the real consumers (diffusers, PEFT) add to their weights when they load a file.

Stands on torch, diffusers, transformers and peft, never on nplora: it is the outside witness. Names are canonical,
`<component>.<module path>`; a delta is the float64 matrix `(out, in*kh*kw)` added to a weight at strength 1.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"

import diffusers
import numpy as np
import peft
import torch
import transformers
from diffusers.models.transformers.transformer_flux import FluxAttention
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import save_file

Deltas = dict[str, np.ndarray]


# Pipelines: true block structure, names and outside widths (text, time, latent); hidden widths as small as they go.


def _clip_tokenizer() -> transformers.CLIPTokenizer:
    """CLIP's tokenizer over single letters, made in memory."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    return transformers.CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=77)


def _clip(width: int, projection: bool = False) -> torch.nn.Module:
    """CLIP text model of the true width, two layers, a narrow MLP."""
    config = transformers.CLIPTextConfig(
        vocab_size=64, hidden_size=width, projection_dim=width, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config)


def _t5() -> torch.nn.Module:
    """T5 encoder of the true width 4096, one layer, narrow inside."""
    config = transformers.T5Config(vocab_size=64, d_model=4096, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(config)


def _vae(channels: int) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(latent_channels=channels, block_out_channels=(8,), norm_num_groups=4, sample_size=8)


def _sd15() -> diffusers.DiffusionPipeline:
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32, 64, 64), cross_attention_dim=768, attention_head_dim=2,
        norm_num_groups=8,
    )  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        vae=_vae(4), text_encoder=_clip(768), tokenizer=_clip_tokenizer(), unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _sdxl() -> diffusers.DiffusionPipeline:
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32, 64), cross_attention_dim=2048, attention_head_dim=(2, 4, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816, norm_num_groups=8,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(4), text_encoder=_clip(768), text_encoder_2=_clip(1280, projection=True), unet=unet,
        tokenizer=_clip_tokenizer(), tokenizer_2=_clip_tokenizer(),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
    )  # fmt: skip


def _flux1() -> diffusers.DiffusionPipeline:
    """Hidden width 128, but the single blocks' q, k, v and MLP have FLUX.1's true 3072 and 12288 rows.

    diffusers splits kohya's `linear1` at these fixed rows. The model still runs: 24 heads of 128 read 128 inputs.
    """
    transformer = diffusers.FluxTransformer2DModel(
        num_layers=2, num_single_layers=2, num_attention_heads=1, attention_head_dim=128, guidance_embeds=True
    )
    for block in transformer.single_transformer_blocks:
        block.attn = FluxAttention(query_dim=128, heads=24, dim_head=128, bias=True, pre_only=True, eps=1e-6)
        block.proj_mlp = torch.nn.Linear(128, 12288)
        block.proj_out = torch.nn.Linear(3072 + 12288, 128)
    return _flux_pipeline(transformer)


def _flux1_wide() -> diffusers.DiffusionPipeline:
    """All of FLUX.1's true widths, one double and one single block; a weight's rows share one stored row of memory.

    Dense deltas of a whole file would take 4 GB: give `effective_deltas` an `only`. Not for running.
    """
    with torch.device("meta"):
        transformer = diffusers.FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    for module in transformer.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            row = torch.randn(weight.shape[-1]) / weight.shape[-1] ** 0.5
            setattr(module, name, torch.nn.Parameter(row.expand(weight.shape), requires_grad=False))
    return _flux_pipeline(transformer)


def _flux_pipeline(transformer: torch.nn.Module) -> diffusers.DiffusionPipeline:
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=_vae(16), transformer=transformer,
        text_encoder=_clip(768), tokenizer=_clip_tokenizer(), text_encoder_2=_t5(),
        tokenizer_2=transformers.T5Tokenizer(extra_ids=10, model_max_length=16),
    )  # fmt: skip


def _sd3() -> diffusers.DiffusionPipeline:
    """SD3.5-medium: the first block has the second attention. Without T5."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, num_layers=3, attention_head_dim=16, num_attention_heads=2, caption_projection_dim=32,
        pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=_vae(16), transformer=transformer,
        text_encoder=_clip(768, projection=True), tokenizer=_clip_tokenizer(), text_encoder_3=None, tokenizer_3=None,
        text_encoder_2=_clip(1280, projection=True), tokenizer_2=_clip_tokenizer(),
    )  # fmt: skip


def _qwen_image() -> diffusers.DiffusionPipeline:
    """The transformer alone: diffusers loads LoRA into nothing else."""
    transformer = diffusers.QwenImageTransformer2DModel(
        num_layers=2, attention_head_dim=16, num_attention_heads=2, axes_dims_rope=(4, 6, 6)
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.QwenImagePipeline(scheduler, vae=None, text_encoder=None, tokenizer=None, transformer=transformer)


def _wan() -> diffusers.DiffusionPipeline:
    """Both experts of Wan 2.2; `load_into_transformer_2=True` loads a file into the second."""
    experts = [
        diffusers.WanTransformer3DModel(num_attention_heads=2, attention_head_dim=16, ffn_dim=64, num_layers=2)
        for _ in range(2)
    ]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.WanPipeline(None, None, None, scheduler, transformer=experts[0], transformer_2=experts[1])


_BUILDERS = {"sd15": _sd15, "sdxl": _sdxl, "flux1": _flux1, "flux1-wide": _flux1_wide, "sd3": _sd3,
             "qwen-image": _qwen_image, "wan": _wan}  # fmt: skip
KINDS = tuple(_BUILDERS)


@cache
def tiny_pipeline(kind: str) -> diffusers.DiffusionPipeline:
    """The random float32 pipeline of one of `KINDS`, seeded, built once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(KINDS.index(kind))
        return _BUILDERS[kind]()


# What consumers do with a file.


def _models(pipe: diffusers.DiffusionPipeline) -> Iterator[tuple[torch.nn.Module, str]]:
    """(model, prefix that makes its module paths canonical) of every component that can carry a LoRA."""
    for component, model in pipe.components.items():
        if isinstance(model, torch.nn.Module) and component != "vae":
            flat_clip = isinstance(model, transformers.CLIPTextModel) and not hasattr(model, "text_model")
            yield model, f"{component}.text_model." if flat_clip else f"{component}."


def modules_of(pipe: diffusers.DiffusionPipeline) -> dict[str, tuple[int, ...]]:
    """Canonical name -> weight shape of every Linear and Conv2d (Wan's Conv3d patch embedding is left out)."""
    return {
        prefix + path: tuple(module.weight.shape)
        for model, prefix in _models(pipe)
        for path, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
    }


def _rows(tensor: torch.Tensor) -> np.ndarray:
    """Float64 (n, everything else)."""
    return tensor.detach().double().reshape(len(tensor), -1).numpy()


def _layer_delta(layer: LoraLayer, adapters: list[str]) -> np.ndarray:
    """Float64 (out, in*kh*kw) that a PEFT layer adds, from its own numbers; (in, out) if the base is stored so."""
    deltas = []
    for name in adapters:
        assert layer.lora_B[name].bias is None, "a LoRA bias is no part of the weight's delta"
        delta = float(layer.scaling[name]) * (_rows(layer.lora_B[name].weight) @ _rows(layer.lora_A[name].weight))
        if name in layer.lora_magnitude_vector:  # DoRA: m (W + d) / |W + d| - W, row by row
            base = _rows(layer.get_base_layer().weight)
            magnitude = _rows(layer.lora_magnitude_vector[name].weight).reshape(-1, 1)
            delta = magnitude * (base + delta) / np.linalg.norm(base + delta, axis=1, keepdims=True) - base
        deltas.append(delta.T if getattr(layer, "fan_in_fan_out", False) else delta)
    return sum(deltas)


def _adapted(model: torch.nn.Module, prefix: str, only: str) -> Deltas:
    """Canonical name -> delta of the LoRA layers of `model` whose name matches `only`."""
    layers = {prefix + path: m for path, m in model.named_modules() if isinstance(m, BaseTunerLayer)}
    strange = [name for name, layer in layers.items() if not isinstance(layer, LoraLayer)]
    assert not strange, f"layers that are not LoRA: {strange}"
    active = {name: [a for a in layer.active_adapters if a in layer.lora_A] for name, layer in layers.items()}
    return {name: _layer_delta(layers[name], active[name]) for name in layers if active[name] and re.search(only, name)}


@contextmanager
def _heard() -> Iterator[list[str]]:
    """The texts of all warnings that diffusers, peft, transformers or Python give inside the block."""
    texts: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())
    loggers = {logger: logger.level for logger in map(logging.getLogger, ("diffusers", "peft", "transformers"))}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            for logger in loggers:
                logger.addHandler(handler)
                logger.setLevel(logging.WARNING)
            yield texts
        finally:
            for logger, level in loggers.items():
                logger.removeHandler(handler)
                logger.setLevel(level)
            # A DeprecationWarning speaks of the consumers' own code, never of the file.
            texts += [str(w.message) for w in caught if not issubclass(w.category, DeprecationWarning)]


_ABSENT = re.compile(r"No LoRA keys associated to \w+ found with the prefix='(\w+)'")
_COMPONENT_KEYS = {
    "text_encoder": r"text_encoder\.|lora_te1?_|text_encoders\.clip_l\.",
    "text_encoder_2": r"text_encoder_2\.|lora_te2_|text_encoders\.clip_g\.",
}


def _harmless(text: str, keys: list[str]) -> bool:
    """diffusers warns for every component it found no key for; that is right where the file has none for it."""
    match = _ABSENT.search(text)
    pattern = match and _COMPONENT_KEYS.get(match[1], r"(?!text_encoder|lora_te)")
    return bool(match) and not any(re.match(pattern, key) for key in keys)


def effective_deltas(pipe, file, only: str = "", tolerate: str = "(?!)", **load) -> Deltas:
    """Canonical name -> what `pipe.load_lora_weights(file, **load)` adds to each weight, for names matching `only`.

    `file` is a path, or a state dict, which is saved to one first. A warning that is not known to be harmless, nor
    matches `tolerate`, is an AssertionError. What a loader drops in silence shows as a missing name: compare with
    `assert_deltas`. The pipeline is left as it was.
    """
    if isinstance(file, Mapping):
        with tempfile.TemporaryDirectory() as folder:
            save_file(dict(file), path := f"{folder}/lora.safetensors")
            return effective_deltas(pipe, path, only, tolerate, **load)
    with safe_open(file, "pt") as opened:
        keys = list(opened.keys())
    try:
        with _heard() as texts:
            pipe.load_lora_weights(str(file), **load)
        loud = [text for text in texts if not _harmless(text, keys) and not re.search(tolerate, text)]
        assert not loud, "the loader warned: " + "\n".join(loud)
        found = [_adapted(model, prefix, only) for model, prefix in _models(pipe)]
        return {name: delta for deltas in found for name, delta in deltas.items()}
    finally:
        pipe.unload_lora_weights()


def peft_deltas(model: torch.nn.Module, folder: str | Path) -> Deltas:
    """Module path -> what `peft.PeftModel.from_pretrained(model, folder)` adds to each weight, in the base's layout.

    Missing and unexpected keys and every warning are an AssertionError. The model is left as it was.
    """
    try:
        with _heard() as texts:
            wrapped = peft.PeftModel.from_pretrained(model, str(folder))
            result = wrapped.load_adapter(str(folder), "again")  # from_pretrained keeps this result to itself
        assert not result.unexpected_keys, f"unexpected keys: {result.unexpected_keys}"
        assert not texts, "the loader warned: " + "\n".join(texts)
        return _adapted(model, "", "")
    finally:
        diffusers.utils.peft_utils.recurse_remove_peft_layers(model)
        vars(model).pop("peft_config", None)


def assert_deltas(got: Deltas, expected: Deltas, tolerance: float = 1e-6) -> None:
    """Same names, and each delta within `tolerance` of the expected one, relative to its Frobenius norm."""
    missing, extra = sorted(expected.keys() - got.keys()), sorted(got.keys() - expected.keys())
    assert missing + extra == [], f"not applied: {missing}, applied but not expected: {extra}"
    for name, delta in expected.items():
        assert got[name].shape == delta.shape, f"{name}: {got[name].shape}, expected {delta.shape}"
        error, norm = np.linalg.norm(got[name] - delta), np.linalg.norm(delta)
        assert error <= tolerance * norm, f"{name}: off by {error:.3g}, its norm is {norm:.3g}"


# A small writer of files with known deltas, independent of nplora.


class Factors(NamedTuple):
    """One module's LoRA: delta = scale * up @ down, up (out, r), down (r, in) or (r, in, kh, kw), float32."""

    up: np.ndarray
    down: np.ndarray
    scale: float = 1.0


Spec = dict[str, Factors]


def random_spec(kind: str, only: str = "", alpha: float = 2.0, ranks: tuple[int, ...] = (2, 3, 4)) -> Spec:
    """Canonical name -> random factors for the modules whose name starts with `only`; scale = alpha / rank."""
    rng = np.random.default_rng(0)
    shapes = {name: shape for name, shape in modules_of(tiny_pipeline(kind)).items() if re.match(only, name)}
    turns = [ranks[i % len(ranks)] for i in range(len(shapes))]
    return {
        name: Factors(rng.standard_normal((out, r), "f"), rng.standard_normal((r, *rest), "f"), alpha / r)
        for (name, (out, *rest)), r in zip(shapes.items(), turns, strict=True)
    }


def dense(spec: Spec) -> Deltas:
    """Canonical name -> float64 delta (out, in*kh*kw)."""
    return {n: f.scale * (f.up.astype(float) @ f.down.reshape(len(f.down), -1).astype(float)) for n, f in spec.items()}


def _tensors(spec: Spec, down: str = "lora_A", up: str = "lora_B") -> dict[str, torch.Tensor]:
    """`<name>.<role>.weight`, the scale left out; a convolution's up is (out, r, 1, 1)."""
    ups = {n: f.up.reshape(*f.up.shape, *[1] * (f.down.ndim - 2)) for n, f in spec.items()}
    downs = {f"{n}.{down}.weight": torch.tensor(f.down) for n, f in spec.items()}
    return downs | {f"{n}.{up}.weight": torch.tensor(weight) for n, weight in ups.items()}


def _kohya(spec: Spec, te: str) -> dict[str, torch.Tensor]:
    prefix = {"unet": "lora_unet_", "transformer": "lora_unet_", "text_encoder": te, "text_encoder_2": "lora_te2_"}
    flat = {prefix[n.split(".")[0]] + "_".join(n.split(".")[1:]): f for n, f in spec.items()}
    alphas = {f"{n}.alpha": torch.tensor(f.scale * len(f.down), dtype=torch.float32) for n, f in flat.items()}
    return _tensors(flat, "lora_down", "lora_up") | alphas


_SGM = {"conv_in": "input_blocks.0.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
        "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip


def _sgm_name(name: str) -> str:
    """The SDXL UNet's module under its original name, three layers to a block; other components keep theirs."""
    path = name.removeprefix("unet.")
    if name == path or path in _SGM:
        return name if name == path else f"unet.{_SGM[path]}"
    side, block, kind, layer, rest = re.fullmatch(r"(\w+)_blocks?\.(?:(\d)\.)?(\w+)\.(\d)\.(.*)", path).groups()
    rest, layer, first, inner = _SGM.get(rest, rest), int(layer), 3 * int(block or 0), int(kind == "attentions")
    if kind in ("downsamplers", "upsamplers"):
        return f"unet.input_blocks.{first + 3}.0.op" if side == "down" else f"unet.output_blocks.{first + 2}.2.conv"
    if side == "mid":
        return f"unet.middle_block.{inner or 2 * layer}.{rest}"
    down = side == "down"
    return f"unet.{'input' if down else 'output'}_blocks.{first + layer + down}.{inner}.{rest}"


_FLUX_TOP = {"x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer_linear"} | {
    f"time_text_embed.{ours}_embedder.linear_{i}": f"{theirs}_in_{side}_layer"
    for ours, theirs in (("timestep", "time"), ("text", "vector"), ("guidance", "guidance"))
    for i, side in ((1, "in"), (2, "out"))
}
_FLUX_BLOCKS = {  # (ours, theirs) -> body in a kohya file: canonical parts in the order of their rows
    ("transformer_blocks", "double_blocks"): {
        "img_attn_qkv": "attn.to_q attn.to_k attn.to_v", "img_attn_proj": "attn.to_out.0",
        "txt_attn_qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj", "txt_attn_proj": "attn.to_add_out",
        "img_mlp_0": "ff.net.0.proj", "img_mlp_2": "ff.net.2", "img_mod_lin": "norm1.linear",
        "txt_mlp_0": "ff_context.net.0.proj", "txt_mlp_2": "ff_context.net.2", "txt_mod_lin": "norm1_context.linear",
    },
    ("single_transformer_blocks", "single_blocks"): {
        "linear1": "attn.to_q attn.to_k attn.to_v proj_mlp", "linear2": "proj_out", "modulation_lin": "norm.linear",
    },
}  # fmt: skip


def _join(parts: list[Factors]) -> Factors:
    """One fused module: a shared down is kept once, else downs are stacked and ups stand on the block diagonal."""
    if all(np.array_equal(f.down, parts[0].down) for f in parts):
        return parts[0]._replace(up=np.concatenate([f.up for f in parts]))
    blocks = [torch.tensor(f.up * np.float32(f.scale / parts[0].scale)) for f in parts]
    return Factors(torch.block_diag(*blocks).numpy(), np.concatenate([f.down for f in parts]), parts[0].scale)


def _flux_fused(spec: Spec) -> Spec:
    """The modules of FLUX.1 under their original names, q, k, v (and the MLP) in one."""
    fused = {f"transformer.{_FLUX_TOP[p]}": spec[f"transformer.{p}"] for p in _FLUX_TOP if f"transformer.{p}" in spec}
    fused |= {n: f for n, f in spec.items() if n.startswith("text_encoder.")}
    for (ours, theirs), bodies in _FLUX_BLOCKS.items():
        for block in {n.split(".")[2] for n in spec if n.startswith(f"transformer.{ours}.")}:
            for body, parts in bodies.items():
                names = [f"transformer.{ours}.{block}.{part}" for part in parts.split()]
                if names[0] in spec:
                    fused[f"transformer.{theirs}.{block}.{body}"] = _join([spec[n] for n in names])
    return fused


def lora_state(spec: Spec, naming: str) -> dict[str, torch.Tensor]:
    """The state dict of a file: "diffusers" (scale folded into lora_B), "kohya", "kohya-sgm" or "kohya-flux1"."""
    if naming == "diffusers":
        return _tensors({n: f._replace(up=f.up * np.float32(f.scale)) for n, f in spec.items()})
    if naming == "kohya":
        return _kohya(spec, te="lora_te_")
    assert naming in ("kohya-sgm", "kohya-flux1"), naming
    return _kohya(_flux_fused(spec) if "flux" in naming else {_sgm_name(n): f for n, f in spec.items()}, te="lora_te1_")


def write_lora(path: Path, spec: Spec, naming: str, **config: object) -> Path:
    """Writes a file in one of `lora_state`'s namings, or a "peft" folder whose config holds `config` as well.

    For PEFT the names are module paths of the one model; every rank and alpha stands in an anchored pattern.
    """
    if naming != "peft":
        save_file(lora_state(spec, naming), path)
        return path
    path.mkdir(exist_ok=True)
    save_file({f"base_model.model.{k}": v for k, v in _tensors(spec).items()}, path / "adapter_model.safetensors")
    alphas = {n: f.scale * len(f.down) ** (0.5 if config.get("use_rslora") else 1) for n, f in spec.items()}
    config |= {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": list(spec)}
    config |= {"rank_pattern": {f"^{n}": len(f.down) for n, f in spec.items()}}
    config |= {"alpha_pattern": {f"^{n}": alpha for n, alpha in alphas.items()}}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path
