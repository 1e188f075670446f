"""Kinds that need the base weight: exact with it, carried or refused without; and finding that weight in any checkpoint."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import nplora
from laws import based
from laws.based import CELLS, CONV, LINEAR, SHAPES, base_weights, flat, key, put, put_base
from laws.making import factors, kohya_tensors, read, relative, write
from nplora import BaseModel, InputError

each_cell = pytest.mark.parametrize(("kind", "where"), CELLS, ids=[f"{kind}, {where}" for kind, where in CELLS])


def expanded(tmp_path: Path, kind: str, where: str, **options: object):
    adapter = nplora.load(put(tmp_path / "a.safetensors", where, based.module(kind, where)))
    return nplora.expand(adapter, BaseModel(put_base(tmp_path / "base.safetensors")), **options)


# ------------------------------------------------------------------------------------------ what the kinds mean


@each_cell
def test_a_kind_means_its_formula(tmp_path: Path, kind: str, where: str) -> None:
    module = expanded(tmp_path, kind, where)[f"unet.{where}"]
    assert module.delta().shape == SHAPES[where]
    assert relative(flat(module.delta()), based.module(kind, where).dense) < 1e-12


@each_cell
def test_rank_and_keys_are_known_without_reading(tmp_path: Path, kind: str, where: str) -> None:
    update = expanded(tmp_path, kind, where)[f"unet.{where}"].update
    matrices = (update.up, update.down) if kind in based.LOW_RANK else (update.diff,)
    assert all(matrix.shape == matrix.read().shape for matrix in matrices)
    stored = {key(where) + suffix for suffix in based.module(kind, where).tensors if suffix != ".alpha"}
    assert stored <= {*update.keys, key(where) + ".alpha"}


def test_a_glora_is_low_rank_and_its_rank_grows_by_the_kernel_only(tmp_path: Path) -> None:
    assert expanded(tmp_path, "GLoRA", LINEAR)[f"unet.{LINEAR}"].update.rank == 2 * based.RANK
    assert expanded(tmp_path, "GLoRA", CONV)[f"unet.{CONV}"].update.rank == based.RANK * 9 + based.RANK


@pytest.mark.parametrize("where", [LINEAR, CONV])
def test_a_glora_whose_base_half_is_zero_needs_no_base(tmp_path: Path, where: str) -> None:
    made = based.glora(np.random.default_rng(1), base_weights()[where], empty=True)
    adapter = nplora.expand(nplora.load(put(tmp_path / "a.safetensors", where, made)), None)
    assert relative(flat(adapter[f"unet.{where}"].delta()), made.dense) < 1e-12
    assert adapter[f"unet.{where}"].update.rank == based.RANK


def test_a_row_without_a_direction_stays_zero(tmp_path: Path) -> None:
    made = based.module("DoRA by output", LINEAR)
    made.tensors[".lora_up.weight"][7] = 0
    weights = base_weights()
    weights[LINEAR][7] = 0
    base = BaseModel(put_base(tmp_path / "base.safetensors", weights=weights))
    delta = nplora.expand(nplora.load(put(tmp_path / "a.safetensors", LINEAR, made)), base)[f"unet.{LINEAR}"].delta()
    assert np.isfinite(delta).all()
    assert not delta[7].any()


# ------------------------------------------------------------------------------------------ DoRA without its magnitude


@pytest.mark.parametrize("kind", ["DoRA by output", "DoRA by input", "DoRA of a LoHa"])
@pytest.mark.parametrize("with_base", [True, False])
def test_the_direction_alone_is_a_plain_update(tmp_path: Path, kind: str, with_base: bool) -> None:
    made = based.module(kind, LINEAR)
    adapter = nplora.load(put(tmp_path / "a.safetensors", LINEAR, made))
    without = {suffix: array for suffix, array in made.tensors.items() if suffix != ".dora_scale"}
    plain = nplora.load(put(tmp_path / "b.safetensors", LINEAR, based.Based(without, made.dense)))
    base = BaseModel(put_base(tmp_path / "base.safetensors")) if with_base else None
    direction = nplora.expand(adapter, base, dora="ignore")
    assert np.array_equal(direction[f"unet.{LINEAR}"].delta(), plain[f"unet.{LINEAR}"].delta())
    assert direction.unread == {key(LINEAR) + ".dora_scale": "the magnitude is ignored (--dora ignore)"}
    assert direction.notes[-1] == (
        "the magnitudes of 1 module are ignored: only the direction part of DoRA is used, and how its rows or channels "
        "were rescaled is lost; --base MODEL.safetensors keeps it exactly"
    )


# ------------------------------------------------------------------------------------------ finding the weight

SGM = {LINEAR: "input_blocks.1.1.transformer_blocks.0.attn1.to_q", CONV: "input_blocks.0.0"}
SGM[based.OTHER] = "input_blocks.2.1.transformer_blocks.0.attn1.to_v"


def original(prefix: str):
    """The names of the original checkpoint."""
    return {f"{prefix}{SGM[name]}.weight": array for name, array in base_weights().items()}


def shards(folder: Path, tensors: dict[str, np.ndarray], name: str = "model") -> Path:
    where = {}
    for number, (tensor, array) in enumerate(tensors.items()):
        where[tensor] = f"{name}-{number + 1:05}-of-{len(tensors):05}.safetensors"
        write(folder / where[tensor], {tensor: array})
    index = folder / f"{name}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def diffusers(prefix: str = "") -> dict[str, np.ndarray]:
    return {f"{prefix}{name}.weight": array for name, array in base_weights().items()}


def whole_folder(folder: Path) -> Path:
    write(folder / "unet" / "diffusion_pytorch_model.safetensors", diffusers())
    write(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", {})
    write(folder / "vae" / "diffusion_pytorch_model.safetensors", {"conv_in.weight": np.zeros((1, 1), np.float32)})
    return folder


CHECKPOINTS = {
    "a component": lambda at: write(at / "unet.safetensors", diffusers()),
    "a component's folder": lambda at: write(at / "unet" / "model.safetensors", diffusers()).parent,
    "a diffusers folder": whole_folder,
    "an original checkpoint": lambda at: write(at / "sd.safetensors", original("model.diffusion_model.")),
    "ComfyUI's": lambda at: write(at / "sd.safetensors", original("diffusion_model.")),
    "a bare original": lambda at: write(at / "sd.safetensors", original("")),
    "under its component's name": lambda at: write(at / "sd.safetensors", diffusers("unet.")),
    "an index of shards": lambda at: shards(at, diffusers()),
    "a folder of shards": lambda at: shards(at, original("model.diffusion_model.")).parent,
    "a diffusers folder of shards": lambda at: (
        shards(at / "unet", diffusers(), "diffusion_pytorch_model").parent.parent
    ),
}


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_the_weight_is_found_whatever_the_checkpoint_calls_it(tmp_path: Path, checkpoint: str) -> None:
    (tmp_path / "m" / "unet").mkdir(parents=True)
    base = BaseModel(CHECKPOINTS[checkpoint](tmp_path / "m"))
    for where in (LINEAR, CONV):
        made = based.module("DoRA by output", where)
        adapter = nplora.expand(nplora.load(put(tmp_path / f"{where}.safetensors", where, made)), base)
        assert relative(flat(adapter[f"unet.{where}"].delta()), made.dense) < 1e-12


def test_only_the_shards_that_are_needed_are_opened(tmp_path: Path) -> None:
    index = shards(tmp_path, diffusers())
    (tmp_path / "model-00002-of-00003.safetensors").write_bytes(b"not opened")
    made = based.module("OFT", LINEAR)
    adapter = nplora.expand(nplora.load(put(tmp_path / "a.safetensors", LINEAR, made)), BaseModel(index))
    assert relative(flat(adapter[f"unet.{LINEAR}"].delta()), made.dense) < 1e-12


def test_openai_s_and_openclip_s_text_layers_are_found(tmp_path: Path) -> None:
    """SDXL's second text encoder: q, k and v are thirds of one tensor."""
    rng = np.random.default_rng(3)
    joined, up = (
        rng.standard_normal((3840, 1280)).astype(np.float32),
        rng.standard_normal((5120, 1280)).astype(np.float32),
    )
    first = rng.standard_normal((768, 768)).astype(np.float32)
    path = write(tmp_path / "sdxl.safetensors", {
        "conditioner.embedders.0.transformer.text_model.encoder.layers.3.self_attn.out_proj.weight": first,
        "conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_weight": joined,
        "conditioner.embedders.1.model.transformer.resblocks.3.mlp.c_fc.weight": up,
    })  # fmt: skip
    weights = {
        "te1": {"self_attn_out_proj": first},
        "te2": {"self_attn_v_proj": joined[2560:], "self_attn_q_proj": joined[:1280], "mlp_fc1": up},
    }
    tensors, wanted = {}, {}
    for te, modules in weights.items():
        for name, W in modules.items():
            made = based.ia3_out(rng, W)
            tensors |= {
                f"lora_{te}_text_model_encoder_layers_3_{name}{suffix}": a for suffix, a in made.tensors.items()
            }
            wanted[te, name] = made.dense
    adapter = nplora.expand(nplora.load(write(tmp_path / "a.safetensors", tensors)), BaseModel(path))
    for (te, name), dense in wanted.items():
        component = {"te1": "text_encoder", "te2": "text_encoder_2"}[te]
        dotted = name.replace("self_attn_", "self_attn.").replace("mlp_", "mlp.")
        assert relative(adapter[f"{component}.text_model.encoder.layers.3.{dotted}"].delta(), dense) < 1e-12


def test_an_unknown_base_is_looked_up_by_its_own_paths(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    W = rng.standard_normal((12, 8)).astype(np.float32)
    base = write(tmp_path / "llm.safetensors", {"model.layers.3.self_attn.q_proj.weight": W})
    made = based.dora_out(rng, W)
    for name in ("model.layers.3.self_attn.q_proj", "lora_unet_model_layers_3_self_attn_q_proj"):
        tensors = {name + suffix: array for suffix, array in made.tensors.items()}
        adapter = nplora.expand(nplora.load(write(tmp_path / "a.safetensors", tensors)), BaseModel(base))
        assert relative(next(iter(adapter.values())).delta(), made.dense) < 1e-12


# Shows the base, which a rotation or a vector does not.
BESIDE = kohya_tensors({"lora_unet_joint_blocks_1_x_block_attn_proj": factors(np.random.default_rng(0), 1536, 1536, 1)})
QKV = "lora_unet_joint_blocks_0_x_block_attn_qkv"


@pytest.mark.parametrize(("kind", "fused"), [("DoRA by input", False), ("OFT", True), ("IA3 by output", False)])
def test_a_fused_projection_is_expanded_whole_and_then_split(tmp_path: Path, kind: str, fused: bool) -> None:
    """Norms of input channels run over q, k and v together, wherever the base keeps them apart."""
    rng = np.random.default_rng(4)
    W = rng.standard_normal((4608, 1536)).astype(np.float32)
    if kind == "OFT":
        blocks = (rng.standard_normal((1152, 4, 4)) / 4).astype(np.float32)
        R = np.linalg.solve(
            np.eye(4) - (Q := blocks.astype(np.float64) - blocks.swapaxes(1, 2)), np.eye(4) + Q
        )  # the factors of a Cayley transform commute
        dense = np.einsum("knm,knx->kmx", R, W.reshape(1152, 4, -1)).reshape(W.shape) - W
        made = based.Based({".oft_blocks": blocks}, dense)
    else:
        made = based.KINDS[kind](rng, W)
    names = [f"transformer_blocks.0.attn.{part}" for part in ("to_q", "to_k", "to_v")]
    weights = (
        {"joint_blocks.0.x_block.attn.qkv.weight": W}
        if fused
        else {f"{name}.weight": W[1536 * i : 1536 * (i + 1)] for i, name in enumerate(names)}
    )
    base = BaseModel(write(tmp_path / "sd3.safetensors", weights))
    tensors = {QKV + suffix: np.asarray(a) for suffix, a in made.tensors.items()}
    path = write(tmp_path / "a.safetensors", tensors | BESIDE)
    adapter = nplora.expand(nplora.load(path), base)
    for index, name in enumerate(names):
        assert relative(adapter[f"transformer.{name}"].delta(), made.dense[1536 * index : 1536 * (index + 1)]) < 1e-12


def test_a_fused_projection_is_carried_whole_without_the_base(tmp_path: Path) -> None:
    made = based.ia3_out(np.random.default_rng(4), np.zeros((4608, 1536), np.float32))
    path = write(tmp_path / "a.safetensors", {QKV + suffix: np.asarray(a) for suffix, a in made.tensors.items()})
    nplora.convert(nplora.load(path), tmp_path / "b.safetensors")
    before, after = read(path)[0], read(tmp_path / "b.safetensors")[0]
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


# ------------------------------------------------------------------------------------------ what is refused


def refusal(call) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def test_a_base_of_another_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    path = write(tmp_path / "sdxl.safetensors", {f"{LINEAR}.weight": np.zeros((640, 640), np.float32)})
    adapter = nplora.load(put(tmp_path / "a.safetensors", LINEAR, based.module("DoRA by output", LINEAR)))
    assert refusal(lambda: nplora.expand(adapter, BaseModel(path))) == (
        f"{path}: {LINEAR}.weight: the base model's weight has another shape than the adapter's DoRA module unet.{LINEAR}: "
        "expected 320x320, got 640x640. Use the base model that the adapter was trained on."
    )


def test_a_fused_weight_of_another_model_is_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "b.safetensors", {"joint_blocks.0.x_block.attn.qkv.weight": np.zeros((7296, 8), np.float32)}
    )
    tensors = {
        QKV + suffix: np.asarray(a)
        for suffix, a in based.ia3_out(np.random.default_rng(4), np.zeros((4608, 1536))).tensors.items()
    }
    adapter = nplora.load(write(tmp_path / "a.safetensors", tensors | BESIDE))
    message = refusal(lambda: nplora.expand(adapter, BaseModel(path)))
    assert "the base model's weight is not Stable Diffusion 3" in message
    assert "expected 4608 rows, got 7296. Use the base model that the adapter was trained on." in message


@pytest.mark.parametrize(("kind", "what"), [("OFT", "rotation"), ("IA3 by output", "IA3 vector")])
def test_kinds_that_know_one_side_only_say_so(tmp_path: Path, kind: str, what: str) -> None:
    path = write(tmp_path / "b.safetensors", {f"{LINEAR}.weight": np.zeros((640, 640), np.float32)})
    adapter = nplora.load(put(tmp_path / "a.safetensors", LINEAR, based.module(kind, LINEAR)))
    message = refusal(partial(nplora.expand, adapter, BaseModel(path)))
    assert f"the {what} does not fit the base weight" in message
    assert message.endswith("Is this the base model that the adapter was trained on?")


def test_a_quantised_base_is_refused(tmp_path: Path) -> None:
    for extra, dtype in ((".weight", np.uint8), (".scale_weight", np.float32)):
        tensors = {f"{LINEAR}.weight": np.zeros((320, 320), dtype), f"{LINEAR}{extra}": np.ones((320, 320), dtype)}
        path = write(tmp_path / "base.safetensors", tensors)
        adapter = nplora.load(put(tmp_path / "a.safetensors", LINEAR, based.module("OFT", LINEAR)))
        assert "the base model's weight is quantised: expected fp32, fp16 or bf16 numbers" in refusal(
            lambda adapter=adapter, path=path: nplora.expand(adapter, BaseModel(path))
        )


def test_what_is_no_base_model_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "none.safetensors"
    assert refusal(partial(BaseModel, missing)) == f"{missing}: no such base model. Check the path after --base."
    (tmp_path / "empty").mkdir()
    assert refusal(lambda: BaseModel(tmp_path / "empty")) == (
        f"{tmp_path / 'empty'}: the folder holds no base model: expected a .safetensors checkpoint, or a diffusers folder. "
        "Name the checkpoint itself after --base."
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}'])
def test_a_damaged_index_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    adapter = nplora.load(put(tmp_path / "a.safetensors", LINEAR, based.module("OFT", LINEAR)))
    assert "the index of shards cannot be read" in refusal(lambda: nplora.expand(adapter, BaseModel(path)))


def test_an_index_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {f"{LINEAR}.weight": "../secret.safetensors"}}))
    adapter = nplora.load(put(tmp_path / "a.safetensors", LINEAR, based.module("OFT", LINEAR)))
    assert refusal(lambda: nplora.expand(adapter, BaseModel(path))) == (
        f"{path}: the index names a shard outside its folder: got ../secret.safetensors. Download it again."
    )


@pytest.mark.parametrize("magnitude", [(7, 1), (1, 7), (320,), (0,)])
def test_a_magnitude_that_fits_no_side_is_refused(tmp_path: Path, magnitude: tuple[int, ...]) -> None:
    made = based.module("DoRA by output", CONV)
    made.tensors[".dora_scale"] = np.ones(magnitude, np.float32)
    path = put(tmp_path / "a.safetensors", CONV, made)
    if magnitude == (320,):  # as many as outputs: by output, whatever its axes
        assert nplora.load(path)
        return
    message = refusal(lambda: nplora.load(path))
    assert "the magnitude does not fit the module: expected floats of shape (320, 1) or (1, 36)" in message


@pytest.mark.parametrize("missing", [".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight"])
def test_a_glora_without_one_of_its_parts_is_carried_and_one_that_does_not_fit_is_refused(
    tmp_path: Path, missing: str
) -> None:
    made = based.module("GLoRA", LINEAR)
    made.tensors[missing] = made.tensors[missing][:2, :2]
    message = refusal(lambda: nplora.load(put(tmp_path / "a.safetensors", LINEAR, made)))
    assert "the GLoRA halves do not fit each other: expected (in, r), (r, in), (out, r), (r, in)" in message


def test_a_rotation_of_unknown_shape_is_refused(tmp_path: Path) -> None:
    made = based.Based({".oft_blocks": np.zeros((40, 8, 7), np.float32)}, np.zeros(0))
    message = refusal(lambda: nplora.load(put(tmp_path / "a.safetensors", LINEAR, made)))
    assert (
        "the rotation has an unknown shape: expected floats of shape (blocks, b, b), or (stages, blocks, b, b)"
        in message
    )
