"""What PEFT merges into a weight for its adapter kinds is what nplora says that they add, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

for _package in ("torch", "peft"):
    pytest.importorskip(_package, reason=f"no {_package}: what it merges cannot be seen")

import numpy as np
import peft
import torch
from safetensors.torch import save_file

import nplora

pytestmark = [
    pytest.mark.consumer,
    pytest.mark.filterwarnings("ignore:.*:UserWarning"),  # of OFT's and BOFT's missing CUDA kernels
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning"),
]

LINEARS, CONV = ["first", "second"], ["conv"]


class Model(torch.nn.Module):
    """Two linear layers and a convolution, of unequal sides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 12), torch.nn.Linear(12, 16, bias=False)
        self.conv = torch.nn.Conv2d(4, 6, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # PEFT wants one; nothing is run
        return self.second(self.first(x))


def boft_of_two_stages(model: peft.PeftModel) -> None:
    """Without CUDA PEFT makes one stage only: give the layers the second one, whose permutation PEFT's own code makes."""
    for layer in model.modules():
        if isinstance(layer, peft.tuners.boft.layer.BOFTLayer):
            (turns,) = layer.boft_R.values()
            blocks, size = turns.shape[1:3]
            stages = [layer.block_butterfly_perm(layer.in_features, blocks // 2**i, size // 2, 1) for i in range(2)]
            layer.boft_P = torch.stack([layer.perm2mat(stage) for stage in stages]).double()
            layer.boft_R["default"] = torch.nn.Parameter(torch.randn(2, *turns.shape[1:]).double() / 4)
            layer.fbd_cuda_available = True


def block_diagonal(blocks: torch.Tensor) -> torch.Tensor:
    """What PEFT's CUDA kernel does."""
    return torch.stack([torch.block_diag(*stage) for stage in blocks])


KINDS: dict[str, Callable[[], peft.PeftConfig]] = {
    "LoHa": lambda: peft.LoHaConfig(r=3, alpha=5, target_modules=LINEARS + CONV),
    "LoHa, effective conv": lambda: peft.LoHaConfig(r=3, alpha=5, target_modules=CONV, use_effective_conv2d=True),
    "LoKr": lambda: peft.LoKrConfig(r=2, alpha=5, target_modules=LINEARS + CONV),
    "LoKr, both factored": lambda: peft.LoKrConfig(r=1, alpha=5, target_modules=LINEARS, decompose_both=True),
    "LoKr, both full": lambda: peft.LoKrConfig(r=16, alpha=5, target_modules=LINEARS),
    "LoKr, effective conv": lambda: peft.LoKrConfig(r=1, alpha=5, target_modules=CONV, use_effective_conv2d=True),
    "LoKr, rank pattern": lambda: peft.LoKrConfig(
        r=16, alpha=5, target_modules=LINEARS, rank_pattern={"second": 20}, alpha_pattern={"first": 7}
    ),
    "DoRA": lambda: peft.LoraConfig(r=3, lora_alpha=5, target_modules=LINEARS + CONV, use_dora=True),
    "DoRA, rsLoRA": lambda: peft.LoraConfig(r=3, target_modules=LINEARS, use_dora=True, use_rslora=True),
    "OFT": lambda: peft.OFTConfig(r=0, oft_block_size=4, target_modules=LINEARS + CONV, use_cayley_neumann=False),
    "OFT, Neumann": lambda: peft.OFTConfig(r=0, oft_block_size=4, target_modules=LINEARS),
    "OFT, 3 terms": lambda: peft.OFTConfig(
        r=0, oft_block_size=2, target_modules=LINEARS, num_cayley_neumann_terms=3
    ),
    "OFT, shared": lambda: peft.OFTConfig(r=0, oft_block_size=4, target_modules=LINEARS, block_share=True),
    "OFT, constrained": lambda: peft.OFTConfig(r=0, oft_block_size=4, target_modules=LINEARS, coft=True, eps=1e-2),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=LINEARS + CONV),
    "BOFT, two stages": lambda: peft.BOFTConfig(boft_block_size=2, target_modules=LINEARS),
    "IA3": lambda: peft.IA3Config(target_modules=LINEARS + CONV, feedforward_modules=["second"]),
    "IA3, conv input": lambda: peft.IA3Config(target_modules=CONV, feedforward_modules=CONV),
}  # fmt: skip
NEED_NO_BASE = ("LoHa", "LoKr")


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_adds_what_peft_merges(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    base = Model().double()
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    before = {name: weight.numpy().copy() for name, weight in base.state_dict().items()}
    model = peft.get_peft_model(base, KINDS[kind]()).double()
    if kind == "BOFT, two stages":
        monkeypatch.setattr(peft.tuners.boft.layer, "FastBlockDiag", type("", (), {"apply": block_diagonal}))
        boft_of_two_stages(model)
    with torch.no_grad():  # away from the identity, whatever PEFT begins with
        for weight in (weight for name, weight in model.named_parameters() if weight.requires_grad):
            weight.add_(torch.randn_like(weight) / 4)
    model.save_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload().state_dict()

    adapter = nplora.load(tmp_path / "adapter")
    if not kind.startswith(NEED_NO_BASE):
        adapter = nplora.expand(adapter, nplora.BaseModel(tmp_path / "base.safetensors"))
    changed = {
        f"unknown.{name}": name
        for name in (*LINEARS, *CONV)
        if not np.allclose(merged[f"{name}.weight"], before[f"{name}.weight"])
    }
    assert set(adapter) == set(changed)
    for name, path in changed.items():
        wanted = merged[f"{path}.weight"].numpy() - before[f"{path}.weight"]
        got = adapter[name].delta().reshape(wanted.shape)
        # PEFT's own float32 steps: Cayley's identity, a scale held as a float32 tensor.
        assert np.linalg.norm(got - wanted) <= 1e-6 * np.linalg.norm(wanted), name
        assert adapter[name].update.kind in kind or kind.startswith(("LoHa", "LoKr"))
