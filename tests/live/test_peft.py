"""Fusing inside PEFT models: language models, embeddings, convolutions, saving and loading, what is refused."""

from __future__ import annotations

import json

import pytest

for _package in ("torch", "transformers", "peft"):
    pytest.importorskip(_package, reason=f"no {_package}: there is no model to fuse in")

import numpy as np
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import nplora
from live.dense import assert_close, deltas, projected
from nplora import InputError, UsageError
from nplora.peft import fuse_adapters, set_mu

pytestmark = [
    pytest.mark.consumer,
    pytest.mark.filterwarnings(
        "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
    ),  # peft, of transformers
]
WORDS = torch.arange(12)[None]


def llama() -> torch.nn.Module:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return _seeded(LlamaForCausalLM, config)


def gpt2() -> torch.nn.Module:
    """Its layers are stored (in, out): fan_in_fan_out."""
    config = GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0
    )  # fmt: skip
    return _seeded(GPT2LMHeadModel, config)


class Convolutions(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.second = torch.nn.Conv2d(8, 8, 1)
        self.line = torch.nn.Conv1d(8, 8, 3)
        self.grouped = torch.nn.Conv2d(8, 8, 3, groups=4)
        self.out = torch.nn.Linear(8, 5)
        self.inner = torch.nn.ModuleDict({"out": torch.nn.Linear(5, 5)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.line(self.second(self.first(x).relu()).flatten(2))
        return self.inner["out"](self.out(x.mean(-1)))


def convolutions() -> torch.nn.Module:
    torch.manual_seed(0)
    return Convolutions().eval()


def _seeded(kind: type, config: object) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(config).eval()


PAIRS = {
    "llama": (
        llama,
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], "use_rslora": True,
         "task_type": "CAUSAL_LM"},
        {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "o_proj", "down_proj"],
         "rank_pattern": {"down_proj": 6}, "alpha_pattern": {"down_proj": 1}},
    ),
    "gpt2": (
        gpt2,
        {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True},
        {"r": 2, "lora_alpha": 3, "target_modules": ["c_attn"], "fan_in_fan_out": True, "lora_dropout": 0.5},
    ),
    "convolutions": (
        convolutions,
        {"r": 4, "lora_alpha": 8, "target_modules": ["first", "second", "out"]},
        {"r": 2, "lora_alpha": 3, "target_modules": ["first", "second", "line"]},
    ),
}  # fmt: skip


def adapted(base, chef: dict, pirate: dict, dtype=torch.float32) -> PeftModel:
    """A model with a subject "chef" and a style "pirate" of random numbers."""
    model = get_peft_model(base().to(dtype), LoraConfig(**chef), adapter_name="chef")
    model.add_adapter("pirate", LoraConfig(**pirate))
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = 0.2 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def said(model, base=None) -> torch.Tensor:
    with torch.no_grad():
        if isinstance(model.get_base_model() if isinstance(model, PeftModel) else model, Convolutions):
            return model(torch.ones(1, 3, 4, 4))
        return model(WORDS).logits


def expected(model, mu=0.5):
    chef, pirate = (deltas(model.get_base_model(), name) for name in ("chef", "pirate"))
    both = {path: projected(chef[path], pirate[path], mu) + pirate[path] for path in chef if path in pirate}
    return chef | pirate | both


@pytest.mark.parametrize("kind", PAIRS)
def test_products_and_outputs(kind, tmp_path):
    """Outputs equal those of the fused folder and those after saving and loading, to 2e-6 of the largest."""
    base, chef, pirate = PAIRS[kind]
    model = adapted(base, chef, pirate)
    model.base_model.set_adapter(["chef", "pirate"])
    both = said(model)
    done = fuse_adapters(model, subject="chef", style="pirate", mu=0.5)
    live = said(model)
    assert (done.fused, done.passed) == {"llama": (4, 4), "gpt2": (2, 2), "convolutions": (2, 2 + 1)}[kind]
    assert_close(deltas(model.get_base_model(), "fused"), expected(model))
    assert torch.dist(live, both) > 1e-4 * both.norm()

    model.save_pretrained(tmp_path, selected_adapters=["fused", "chef", "pirate"])
    again = PeftModel.from_pretrained(base(), tmp_path / "fused").eval()
    assert torch.equal(said(again), live)
    set_mu(model, 0)
    torch.testing.assert_close(said(model), both, rtol=0, atol=2e-6 * float(both.abs().max()))
    if kind != "convolutions":
        inputs = [nplora.load(tmp_path / name) for name in ("chef", "pirate")]
        for mu in (0.5, "inf"):
            set_mu(model, mu)
            nplora.fuse(*inputs, mu=mu).save(tmp_path / f"file-{mu}", format="peft")
            file = PeftModel.from_pretrained(base(), tmp_path / f"file-{mu}").eval()
            torch.testing.assert_close(said(model), said(file), rtol=0, atol=2e-6 * float(both.abs().max()))


def test_the_saved_config_says_ranks_and_alphas_exactly(tmp_path):
    model = adapted(*PAIRS["llama"])
    fuse_adapters(model, "chef", "pirate")
    model.save_pretrained(tmp_path, selected_adapters=["fused"])
    config = json.loads((tmp_path / "fused" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"], config["task_type"]) == (6, 6, False, "CAUSAL_LM")
    others = {rf"^model\.layers\.{i}\.{part}": rank for i in (0, 1) for part, rank in (
        (r"mlp\.down_proj", 10), (r"self_attn\.o_proj", 2), (r"self_attn\.v_proj", 4))}  # fmt: skip
    assert config["rank_pattern"] == config["alpha_pattern"] == others


def test_a_layer_whose_name_ends_another_s_is_told_apart(tmp_path):
    """`out` is adapted, `inner.out` is not: PEFT matches the ends of names."""
    only = {"r": 2, "target_modules": r"out|first"}
    model = adapted(convolutions, only, only)
    fuse_adapters(model, "chef", "pirate")
    live = said(model)
    assert set(deltas(model.get_base_model(), "fused")) == {"out", "first"}
    model.save_pretrained(tmp_path, selected_adapters=["fused"])
    again = PeftModel.from_pretrained(convolutions(), tmp_path / "fused").eval()
    assert torch.equal(said(again), live)
    assert set(deltas(again.get_base_model(), "default")) == {"out", "first"}


def test_embeddings_are_fused(tmp_path):
    targets = {"target_modules": ["wte", "c_attn"], "fan_in_fan_out": True}
    model = adapted(gpt2, {"r": 4, "lora_alpha": 8, **targets}, {"r": 2, "lora_alpha": 3, **targets})
    model.base_model.set_adapter(["chef", "pirate"])
    both = said(model)
    fuse_adapters(model, "chef", "pirate", mu=1.0)
    assert_close(deltas(model.get_base_model(), "fused"), expected(model, 1.0))
    live = said(model)
    model.save_pretrained(tmp_path, selected_adapters=["fused"])
    again = PeftModel.from_pretrained(gpt2(), tmp_path / "fused").eval()
    assert torch.equal(said(again), live)
    set_mu(model, 0)
    torch.testing.assert_close(said(model), both, rtol=0, atol=2e-6 * float(both.abs().max()))


def test_the_scale_of_the_moment_counts():
    model = adapted(*PAIRS["llama"])
    for layer in model.modules():
        if hasattr(layer, "set_scale"):
            layer.set_scale("chef", 0.3)
    wanted = expected(model)
    fuse_adapters(model, "chef", "pirate")
    assert_close(deltas(model.get_base_model(), "fused"), wanted)


def test_a_bfloat16_model_keeps_what_its_adapters_have():
    """PEFT keeps adapters of a bfloat16 model in float32."""
    model = adapted(*PAIRS["llama"], dtype=torch.bfloat16)
    fuse_adapters(model, "chef", "pirate")
    assert_close(deltas(model.get_base_model(), "fused"), expected(model))
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert layer.lora_A["fused"].weight.dtype == layer.lora_A["chef"].weight.dtype
    assert torch.isfinite(said(model)).all()


def test_the_model_goes_on_as_a_peft_model():
    model = adapted(*PAIRS["llama"])
    before = said(model.get_base_model())
    fuse_adapters(model, "chef", "pirate", name="mix")
    mixed = said(model)
    assert model.active_adapters == ["mix"]
    assert not any(weight.requires_grad for weight in model.parameters())
    model.set_adapter("chef")
    assert not torch.equal(said(model), mixed)
    model.set_adapter("mix")
    model.delete_adapter("chef")
    model.delete_adapter("pirate")
    assert torch.equal(said(model), mixed)
    set_mu(model, 2.0, "mix")
    assert not torch.equal(said(model), mixed)
    merged = model.merge_and_unload()
    assert not torch.equal(said(merged), before)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_a_model_into_which_peft_has_injected_adapters():
    """As transformers' own `load_adapter` does, which asks for a later PEFT than is here."""
    model = llama()
    for name, config in zip(("chef", "pirate"), PAIRS["llama"][1:], strict=True):
        inject_adapter_in_model(LoraConfig(**config), model, name)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name)))
    fuse_adapters(model, "chef", "pirate", mu=0)
    mixed = said(model)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.set_adapter(["chef", "pirate"])
    torch.testing.assert_close(mixed, said(model), rtol=0, atol=2e-6 * float(mixed.abs().max()))


def test_parts_of_a_language_model_and_fewer_ranks(tmp_path):
    model = adapted(*PAIRS["llama"])
    rules = "pirate@model.layers.1=0.5,chef@*.down_proj=0"
    fuse_adapters(model, "chef", "pirate", rank=4, strengths=rules, overrides="mu@*.q_proj=1")
    found, chef, pirate = (deltas(model.get_base_model(), name) for name in ("fused", "chef", "pirate"))
    both, alone = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"
    wanted = {both: projected(chef[both], pirate[both], 1.0) + 0.5 * pirate[both], alone: pirate[alone]}
    for path, delta in wanted.items():
        U, s, Vt = np.linalg.svd(delta)
        assert_close({path: found[path]}, {path: (U[:, :4] * s[:4]) @ Vt[:4]}, 1e-6)
    config = model.peft_config["fused"]
    assert (config.r, config.lora_alpha, config.rank_pattern, config.alpha_pattern) == (4, 4, {}, {})
    live = said(model)
    model.save_pretrained(tmp_path, selected_adapters=["fused"])
    assert torch.equal(said(PeftModel.from_pretrained(llama(), tmp_path / "fused").eval()), live)
    set_mu(model, "inf", where="model.layers.0")
    turned = deltas(model.get_base_model(), "fused")
    assert np.array_equal(turned[both], found[both])
    assert not np.allclose(turned["model.layers.0.self_attn.q_proj"], found["model.layers.0.self_attn.q_proj"])


@pytest.mark.filterwarnings("ignore:Already unmerged:UserWarning")  # PEFT, of layers that the adapter has not
def test_merged_adapters_are_neither_fused_nor_turned():
    model = adapted(*PAIRS["llama"])
    model.merge_adapter(["chef"])
    with pytest.raises(UsageError, match="adapters are merged into the base weights: got chef"):
        fuse_adapters(model, "chef", "pirate")
    model.unmerge_adapter()
    fuse_adapters(model, "chef", "pirate")
    apart = said(model)
    model.merge_adapter(["fused"])
    with pytest.raises(UsageError, match="adapters are merged into the base weights: got fused"):
        set_mu(model, 1.0)
    model.unmerge_adapter()
    torch.testing.assert_close(said(model), apart, rtol=0, atol=1e-5 * float(apart.abs().max()))


def test_a_compiled_model_is_compiled_in_once():
    torch.compiler.reset()
    plain, model, made = adapted(*PAIRS["llama"]), adapted(*PAIRS["llama"]), []
    fast = torch.compile(model, backend=lambda graph, inputs: made.append(1) or graph)
    fuse_adapters(fast, "chef", "pirate")
    fuse_adapters(plain, "chef", "pirate")
    said(fast)
    count = len(made)
    assert count
    for mu in (2.0, "inf"):
        set_mu(fast, mu)
        set_mu(plain, mu)
        assert torch.equal(said(fast), said(plain))
    assert len(made) == count


# ------------------------------------------------------------------------------------------------------- messages


def refusal(model, *names) -> str:
    with pytest.raises(InputError) as caught:
        fuse_adapters(model, *names)
    return str(caught.value)


def added(config, name="odd", base=llama) -> PeftModel:
    model = adapted(base, {"r": 2, "target_modules": ["q_proj"]}, {"r": 2, "target_modules": ["q_proj"]})
    model.add_adapter(name, config)
    return model


def test_what_is_more_than_factors_is_refused_by_name():
    dora = added(LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    assert refusal(dora, "odd", "pirate") == (
        "model.layers.0.self_attn.q_proj: this layer cannot be fused in a model: DoRA is more than two factors: got "
        "adapter odd. Fuse the files with nplora.fuse, or train without it."
    )
    heads = added(LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert refusal(heads, "chef", "odd") == (
        "adapter odd: the adapter has whole modules of its own, of which a fusion can keep only one adapter's. Fuse "
        "adapters that hold LoRA factors alone."
    )
    biased = added(LoraConfig(r=2, target_modules=["q_proj"], bias="all"))
    assert "the adapter has trained biases of the base model" in refusal(biased, "odd", "pirate")
    tokens = added(LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[1]))
    assert "the adapter has trained tokens" in refusal(tokens, "odd", "pirate")
    with pytest.warns(UserWarning, match="lora_bias=True"):  # PEFT's own
        lora_bias = added(LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True))
    assert "its LoRA has a bias (lora_bias=True)" in refusal(lora_bias, "odd", "pirate")


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups:UserWarning")
def test_grouped_convolutions_are_refused():
    model = adapted(convolutions, {"r": 4, "target_modules": ["grouped"]}, {"r": 4, "target_modules": ["out"]})
    assert "grouped: this layer cannot be fused in a model: grouped convolutions" in refusal(model, "chef", "pirate")


def test_another_tuner_is_refused():
    model = get_peft_model(llama(), LoHaConfig(r=2, target_modules=["q_proj"]), adapter_name="loha")
    model.add_adapter("pirate", LoHaConfig(r=2, target_modules=["q_proj"]))
    assert refusal(model, "loha", "pirate") == (
        "adapter loha: only LoRA adapters can be fused in a model: expected LORA, got LOHA. Fuse its file with "
        "nplora.fuse, which reads more kinds, and load the result."
    )


def test_a_thing_without_adapters_is_refused():
    with pytest.raises(UsageError) as caught:
        fuse_adapters("model", "chef", "pirate")
    assert str(caught.value) == (
        "this is no model with adapters: got str. Give a peft.PeftModel; for a diffusers pipeline use "
        "nplora.diffusers.fuse_adapters."
    )
    with pytest.raises(UsageError, match="expected a model with adapters in it"):
        fuse_adapters(llama(), "chef", "pirate")


def test_a_failure_while_the_layers_are_made_leaves_the_model_as_it_was(monkeypatch):
    from nplora.live import injection

    model = adapted(*PAIRS["llama"])
    monkeypatch.setattr(injection, "_write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fuse_adapters(model, "chef", "pirate")
    assert list(model.peft_config) == ["chef", "pirate"]
    assert not [name for name, _ in model.named_modules() if "fused" in name]
