"""Fusing in pipelines of every state: offloaded, compiled, merged, in small number types; and what memory it takes."""

from __future__ import annotations

import copy

import pytest

for _package in ("torch", "diffusers", "transformers", "peft"):
    pytest.importorskip(_package, reason=f"no {_package}: there is no pipeline to fuse in")

import numpy as np
import torch

from consumers.tiny import tiny_pipeline
from live.dense import assert_close, deltas
from live.pictures import paint
from live.wan import BOTH, MARKS, expected, message
from nplora.diffusers import fuse_adapters, set_mu
from nplora.live.turning import kept_of

pytestmark = MARKS


@pytest.mark.parametrize("how", ["model", "leaf_level", "block_level"])
def test_offloading_goes_on_and_the_picture_is_the_same(pipe, how):
    plain = copy.deepcopy(pipe)
    fuse_adapters(plain, "cat", "ink")
    cpu = torch.device("cpu")
    if how == "model":
        pipe.enable_model_cpu_offload(device=cpu)
    else:
        pipe.transformer.enable_group_offload(cpu, offload_type=how, num_blocks_per_group=1)
    paint(pipe, 16)
    fuse_adapters(pipe, "cat", "ink")
    for mu in (0.5, 2.0):
        set_mu(pipe, mu)
        set_mu(plain, mu)
        assert np.array_equal(paint(pipe, 16), paint(plain, 16))
    assert hasattr(pipe.transformer, "_hf_hook" if how == "model" else "_diffusers_hook")


def test_sequential_offloading_keeps_the_new_adapter_away_from_the_device(pipe, monkeypatch):
    """accelerate's own hooks, with "cpu" in the place of the "cpu:0" that diffusers asks for and torch has not."""
    hook = pytest.importorskip("accelerate.hooks").AlignDevicesHook
    start = hook.__init__
    monkeypatch.setattr(hook, "__init__", lambda self, *a, **k: start(self, *a, **k | {"execution_device": "cpu"}))
    plain = copy.deepcopy(pipe)
    pipe.enable_sequential_cpu_offload(device="cpu")
    before = paint(pipe, 16)
    for one in (pipe, plain):
        fuse_adapters(one, "cat", "ink")
    for mu in (0.5, "inf"):
        for one in (pipe, plain):
            set_mu(one, mu)
        assert {weight.device.type for weight in pipe.transformer.parameters()} == {"meta"}
        picture = paint(pipe, 16)
        assert np.array_equal(picture, paint(plain, 16))
        assert not np.array_equal(picture, before)


@pytest.mark.parametrize("before", [True, False])
def test_a_model_offloaded_to_disk_is_refused(pipe, tmp_path, before):
    """diffusers leaves tensors of arbitrary numbers in memory, and never writes its files a second time."""
    if not before:
        fuse_adapters(pipe, "cat", "ink")
    pipe.transformer.enable_group_offload(
        torch.device("cpu"), offload_type="leaf_level", offload_to_disk_path=str(tmp_path)
    )
    call = (lambda: fuse_adapters(pipe, "cat", "ink")) if before else (lambda: set_mu(pipe, 1.0))
    assert message(call) == (
        "transformer: the model is offloaded to disk, where adapters can neither be read nor written. Fuse and set mu "
        "first, then call enable_group_offload; or offload to memory."
    )


def test_the_numbers_of_an_adapter_must_be_in_memory(pipe):
    fuse_adapters(pipe, "cat", "ink")
    layer = pipe.transformer.get_submodule(BOTH)
    layer.lora_A["fused"].to("meta")
    layer.lora_A["cat"].to("meta")
    told = "the adapter's numbers are not in memory: got device meta. Take the offloading off, and put it on again"
    assert told in message(lambda: set_mu(pipe, 1.0))
    assert told in message(lambda: fuse_adapters(pipe, "cat", "ink", name="again"))
    assert {one.base.device.type for one in kept_of(layer, "fused")} == {"cpu"}


# ----------------------------------------------------------------------------------------------- compiled and merged


def compiled(pipe, how: str) -> list[int]:
    """Compile the transformer; the list grows with each compilation."""
    torch.compiler.reset()
    made: list[int] = []

    def backend(graph, inputs):
        made.append(len(inputs))
        return graph

    if how == "torch.compile(model)":
        pipe.transformer = torch.compile(pipe.transformer, backend=backend)
    elif how == "model.compile()":
        pipe.transformer.compile(backend=backend)
    else:
        pipe.transformer.compile_repeated_blocks(backend=backend)
    return made


@pytest.mark.parametrize("first", ["fused", "compiled"])
@pytest.mark.parametrize("how", ["torch.compile(model)", "model.compile()", "compile_repeated_blocks()"])
def test_a_compiled_model_is_not_compiled_again_when_mu_is_turned(pipe, how, first):
    plain = copy.deepcopy(pipe)
    fuse_adapters(plain, "cat", "ink")
    if first == "fused":
        fuse_adapters(pipe, "cat", "ink")
    made = compiled(pipe, how)
    before = paint(pipe, 16)
    assert made
    if first == "compiled":
        fuse_adapters(pipe, "cat", "ink")
        assert not np.array_equal(paint(pipe, 16), before)
    count = len(made)
    for mu in (2.0, 0, "inf"):
        for one in (pipe, plain):
            set_mu(one, mu)
        assert np.array_equal(paint(pipe, 16), paint(plain, 16))
    assert len(made) == count


def test_mu_is_not_turned_while_the_fused_adapter_is_merged(pipe):
    """It would change nothing at first, and `unfuse_lora` would leave the base weights wrong."""
    before = pipe.transformer.get_submodule(BOTH).base_layer.weight.clone()
    fuse_adapters(pipe, "cat", "ink")
    apart = paint(pipe, 16)
    pipe.fuse_lora(components=["transformer"], adapter_names=["fused"])
    assert np.abs(paint(pipe, 16) - apart).max() < 1e-5
    assert message(lambda: set_mu(pipe, 1.0)) == (
        f"transformer.{BOTH}: adapters are merged into the base weights: got fused. Take them out first: "
        "pipe.unfuse_lora() in diffusers, model.unmerge_adapter() in PEFT."
    )
    pipe.unfuse_lora(components=["transformer"])
    set_mu(pipe, 1.0)
    assert torch.allclose(pipe.transformer.get_submodule(BOTH).base_layer.weight, before, atol=1e-6)
    assert not np.array_equal(paint(pipe, 16), apart)


# ------------------------------------------------------------------------------------------- number types and memory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_factors_are_rounded_once(pipe, dtype):
    pipe.to(dtype)
    fuse_adapters(pipe, "cat", "ink", mu=1.0)
    layer = pipe.transformer.get_submodule(BOTH)
    assert layer.lora_A["fused"].weight.dtype == layer.lora_B["fused"].weight.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert_close(deltas(pipe.transformer, "fused"), expected(pipe, 1.0), 2 * eps)
    assert np.isfinite(paint(pipe, 16)).all()


def test_mu_turns_after_the_model_has_been_cast(pipe):
    pipe.to(torch.bfloat16)
    fuse_adapters(pipe, "cat", "ink", mu=0.1)
    pipe.to(torch.float32)
    set_mu(pipe, 1.0)
    assert_close(deltas(pipe.transformer, "fused"), expected(pipe, 1.0), 1e-6)


def test_an_fp8_cast_base_keeps_its_numbers(pipe):
    pipe.to(torch.bfloat16)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    layer = pipe.transformer.get_submodule(BOTH)
    base = layer.base_layer.weight.clone()
    pipe.set_adapters(["cat", "ink"])
    both = paint(pipe, 16)
    fuse_adapters(pipe, "cat", "ink", mu=0)
    assert layer.base_layer.weight.dtype == torch.float8_e4m3fn
    assert torch.equal(layer.base_layer.weight.view(torch.uint8), base.view(torch.uint8))
    assert layer.lora_A["fused"].weight.dtype == torch.bfloat16
    assert np.abs(paint(pipe, 16) - both).max() < 0.02 * np.abs(both).max()  # bfloat16: 2^-8, through two steps


def test_adapters_loaded_into_an_fp8_cast_base_give_a_bfloat16_one(paths):
    """diffusers stores them in fp8 then, and cannot run them on a CPU; the fused one can be run."""
    pipe = copy.deepcopy(tiny_pipeline("wan")).to(torch.bfloat16)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    for name, path in paths.items():
        pipe.load_lora_weights(path, adapter_name=name)
    fuse_adapters(pipe, "cat", "ink")
    assert pipe.transformer.get_submodule(BOTH).lora_A["fused"].weight.dtype == torch.bfloat16
    assert_close(deltas(pipe.transformer, "fused"), expected(pipe), 2 * torch.finfo(torch.bfloat16).eps)
    assert np.isfinite(paint(pipe, 16)).all()


class _Packed(torch.nn.Linear):
    """A quantised layer as PEFT sees one: integers of another shape, unpacked only in its own forward."""

    def __init__(self, full: torch.nn.Linear) -> None:
        super().__init__(full.in_features, full.out_features, bias=full.bias is not None)
        self.scale = full.weight.detach().abs().max() / 127
        packed = torch.round(full.weight.detach() / self.scale).to(torch.int8).reshape(-1, 1)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        self.bias = full.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.reshape(self.out_features, self.in_features) * self.scale
        return torch.nn.functional.linear(x, weight, self.bias)


def test_a_quantised_base_is_never_read(paths):
    """bitsandbytes is not installed here: a stand-in that packs its weight as bitsandbytes does."""
    pipe = copy.deepcopy(tiny_pipeline("wan"))
    for block in pipe.transformer.blocks:
        for part in ("to_q", "to_k", "to_v"):
            setattr(block.attn1, part, _Packed(getattr(block.attn1, part)))
    for name, path in paths.items():
        pipe.load_lora_weights(path, adapter_name=name)
    pipe.set_adapters(["cat", "ink"])
    both = paint(pipe, 16)
    fuse_adapters(pipe, "cat", "ink", mu=0)
    assert np.abs(paint(pipe, 16) - both).max() < 1e-5 * np.abs(both).max()
    assert_close(deltas(pipe.transformer, "fused"), expected(pipe, 0.0))


def test_nothing_of_the_base_is_copied(pipe):
    def storages() -> dict[int, int]:
        parts = (*pipe.transformer.parameters(), *pipe.transformer.buffers())
        return {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}

    before = storages()
    fuse_adapters(pipe, "cat", "ink")
    new = sum(size for pointer, size in storages().items() if pointer not in before)
    assert before.items() <= storages().items()
    layers = [pipe.transformer.get_submodule(path) for path in deltas(pipe.transformer, "fused")]
    factors = [part["fused"].weight for layer in layers for part in (layer.lora_A, layer.lora_B)]
    assert new == sum(factor.numel() * factor.element_size() for factor in factors)
    kept = [moved for layer in layers for moved in kept_of(layer, "fused")]
    assert kept
    assert sum(one.base.nbytes + one.change.nbytes for one in kept) < new  # only the subject's down factors, twice


def test_it_works_in_inference_mode_and_under_autocast(pipe):
    wanted = expected(pipe)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        fuse_adapters(pipe, "cat", "ink", mu=0)
    set_mu(pipe, 0.5)
    assert_close(deltas(pipe.transformer, "fused"), wanted)
