"""A small writer of files with known deltas, independent of nplora: the other end of the round trip."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from consumers.harness import Deltas, Product
from consumers.tiny import modules_of, tiny_pipeline


class Factors(NamedTuple):
    """One module's LoRA: delta = scale * up @ down, up (out, r), down (r, in) or (r, in, kh, kw), float32."""

    up: np.ndarray
    down: np.ndarray
    scale: float = 1.0


Spec = dict[str, Factors]


def _sixteenths(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.round(np.clip(rng.standard_normal(shape, "f"), -7, 7) * 16) / 16


def random_spec(
    kind: str, only: str = "", alpha: float = 2.0, ranks: tuple[int, ...] = (2, 3, 4), seed: int = 0
) -> Spec:
    """Canonical name -> random factors for the modules whose name starts with `only`; scale = alpha / rank.

    The numbers are sixteenths below 8, which every number type down to bfloat16 holds exactly.
    """
    rng = np.random.default_rng(seed)
    shapes = {name: shape for name, shape in modules_of(tiny_pipeline(kind)).items() if re.match(only, name)}
    turns = [ranks[i % len(ranks)] for i in range(len(shapes))]
    return {
        name: Factors(_sixteenths(rng, out, r), _sixteenths(rng, r, *rest), alpha / r)
        for (name, (out, *rest)), r in zip(shapes.items(), turns, strict=True)
    }


def deltas_of(spec: Spec) -> Deltas:
    """Canonical name -> float64 delta (out, in*kh*kw)."""
    return {
        n: Product(f.scale * f.up.astype(float), f.down.reshape(len(f.down), -1).astype(float)) for n, f in spec.items()
    }


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


_SD3_BLOCKS = {
    ("transformer_blocks", "joint_blocks"): {
        "x_block_attn_qkv": "attn.to_q attn.to_k attn.to_v", "x_block_attn_proj": "attn.to_out.0",
        "context_block_attn_qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
        "context_block_attn_proj": "attn.to_add_out", "x_block_mlp_fc1": "ff.net.0.proj", "x_block_mlp_fc2": "ff.net.2",
        "x_block_attn2_qkv": "attn2.to_q attn2.to_k attn2.to_v", "x_block_attn2_proj": "attn2.to_out.0",
    },
}  # fmt: skip


def _join(parts: list[Factors]) -> Factors:
    """One fused module: a shared down is kept once, else downs are stacked and ups stand on the block diagonal."""
    if all(np.array_equal(f.down, parts[0].down) for f in parts):
        return parts[0]._replace(up=np.concatenate([f.up for f in parts]))
    blocks = [torch.tensor(f.up * np.float32(f.scale / parts[0].scale)) for f in parts]
    return Factors(torch.block_diag(*blocks).numpy(), np.concatenate([f.down for f in parts]), parts[0].scale)


def _fused(spec: Spec, blocks: dict[tuple[str, str], dict[str, str]], top: dict[str, str]) -> Spec:
    """The modules of a transformer under their original names, q, k, v (and the MLP) in one."""
    fused = {f"transformer.{top[p]}": spec[f"transformer.{p}"] for p in top if f"transformer.{p}" in spec}
    fused |= {n: f for n, f in spec.items() if n.startswith("text_encoder")}
    for (ours, theirs), bodies in blocks.items():
        for block in {n.split(".")[2] for n in spec if n.startswith(f"transformer.{ours}.")}:
            for body, parts in bodies.items():
                names = [f"transformer.{ours}.{block}.{part}" for part in parts.split()]
                if names[0] in spec:
                    fused[f"transformer.{theirs}.{block}.{body}"] = _join([spec[n] for n in names])
    return fused


_WAN = {"attn1.to_": "self_attn.", "attn2.to_": "cross_attn.", "out.0": "o", "ffn.net.0.proj": "ffn.0", "net.2": "2",
        "transformer.": "diffusion_model."}  # fmt: skip


def _wan_name(name: str) -> str:
    for ours, theirs in _WAN.items():
        name = name.replace(ours, theirs)
    return name


_PROCESSOR = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out", "0": "to_out"}


def _processor(name: str) -> str:
    """An attention module as diffusers' first scripts called it."""
    path, leaf = name.replace("to_out.0", "to_out").rsplit(".", 1)
    return f"{path}.{_PROCESSOR[leaf]}" if path.endswith("self_attn") else f"{path}.processor.{leaf}"


def lora_state(spec: Spec, naming: str) -> dict[str, torch.Tensor]:
    """The state dict of a file.

    "diffusers", "diffusers-linear" and "diffusers-processor" have the scale folded into the up factor, "kohya",
    "kohya-sgm" (SDXL's original names), "kohya-flux1", "kohya-sd3" (the original names, q, k, v in one) and
    "onetrainer" have alphas. "native-wan" is ComfyUI's `diffusion_model.`, folded.
    """
    folded = {n: f._replace(up=f.up * np.float32(f.scale)) for n, f in spec.items()}
    match naming:
        case "diffusers":
            return _tensors(folded)
        case "diffusers-linear":
            state = _tensors(folded, "lora.down", "lora.up")
            return {re.sub(r"^(text.*)\.lora\.", r"\1.lora_linear_layer.", key): t for key, t in state.items()}
        case "diffusers-processor":
            state = _tensors({_processor(n): f for n, f in folded.items()}, "lora.down", "lora.up")
            return {key.replace(".lora.", "_lora."): tensor for key, tensor in state.items()}
        case "kohya":
            return _kohya(spec, te="lora_te_")
        case "kohya-sgm":
            return _kohya({_sgm_name(n): f for n, f in spec.items()}, te="lora_te1_")
        case "kohya-flux1":
            return _kohya(_fused(spec, _FLUX_BLOCKS, _FLUX_TOP), te="lora_te1_")
        case "kohya-sd3":
            return _kohya(_fused(spec, _SD3_BLOCKS, {}), te="lora_te1_")
        case "onetrainer":
            state = _kohya(spec, te="lora_te1_")
            return {key.replace("lora_unet_", "lora_transformer_"): tensor for key, tensor in state.items()}
        case "native-wan":
            return _tensors({_wan_name(n): f for n, f in folded.items()})
    raise ValueError(naming)


def write_lora(path: Path, spec: Spec, naming: str, dtype: torch.dtype = torch.float32, **config: object) -> Path:
    """Writes a file in one of `lora_state`'s namings, or a "peft" folder whose config holds `config` as well.

    For PEFT the names are module paths of the one model (a component's name is dropped); every rank and alpha stands
    in an anchored pattern. Alphas stay float32 whatever the factors' `dtype`.
    """
    if naming != "peft":
        save_file({k: v.to(dtype) if v.ndim else v for k, v in lora_state(spec, naming).items()}, path)
        return path
    path.mkdir(exist_ok=True)
    spec = {re.sub(r"^(unet|transformer|text_encoder(_2)?)\.", "", name): f for name, f in spec.items()}
    state = {f"base_model.model.{key}": tensor.to(dtype) for key, tensor in _tensors(spec).items()}
    save_file(state, path / "adapter_model.safetensors")
    alphas = {n: f.scale * len(f.down) ** (0.5 if config.get("use_rslora") else 1) for n, f in spec.items()}
    config |= {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": list(spec)}
    config |= {"rank_pattern": {f"^{n}": len(f.down) for n, f in spec.items()}}
    config |= {"alpha_pattern": {f"^{n}": alpha for n, alpha in alphas.items()}}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path
