"""Random small pairs of files, fused to a file, read back, and compared with dense float64."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import nplora
from laws.making import NAMES, Factors, allowed, factors, kohya_tensors, read, reference, write
from laws.tables import flattened

# Names of SD 1.5 with sizes that it does not have, so that the numbers stay few: the base is unknown.
MODULES = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_2": (),
    "lora_unet_mid_block_attentions_0_proj_in": (1, 1),
    "lora_unet_up_blocks_1_resnets_0_conv1": (3, 3),
    "lora_te_text_model_encoder_layers_1_mlp_fc1": (),
}
CANONICAL = {name: name.replace("lora_unet_", "unknown.").replace("lora_te_", "text_encoder.") for name in MODULES}
# float32 arithmetic where all numbers have 16 bits, float64 elsewhere
ARITHMETIC = {"F16": 2.0**-15, "BF16": 2.0**-15, "F32": 2.0**-22}


@dataclass
class Drawn:
    """Two files by module, and how to fuse them."""

    subject: dict[str, Factors] = field(default_factory=dict)
    style: dict[str, Factors] = field(default_factory=dict)
    parameters: dict[str, object] = field(default_factory=dict)

    def dtype(self, name: str) -> str:
        """The type that holds every number of a module's sides."""
        kinds = {NAMES[modules[name].up.dtype] for modules in (self.subject, self.style) if name in modules}
        return kinds.pop() if len(kinds) == 1 else "F32"

    def sides(self, name: str) -> list[tuple[Factors, float]]:
        pairs = ((self.subject, "subject_strength"), (self.style, "style_strength"))
        return [(modules[name], self.parameters[strength]) for modules, strength in pairs if name in modules]

    def wanted(self, name: str) -> np.ndarray:
        w_c, w_s = self.parameters["subject_strength"], self.parameters["style_strength"]
        if name not in self.style:
            return w_c * self.subject[name].dense()
        if name not in self.subject:
            return w_s * self.style[name].dense()
        dW_c, dW_s = self.subject[name].dense(), self.style[name].dense()
        return reference(dW_c, dW_s, self.parameters["mu"], w_c=w_c, w_s=w_s, side=self.parameters["side"])


@st.composite
def pairs(draw):
    kinds = draw(st.sampled_from([("F16", "F16"), ("BF16", "BF16"), ("F32", "F32"), ("F16", "F32"), ("BF16", "F32")]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    drawn = Drawn()
    for name, kernel in MODULES.items():
        out, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
        for modules, dtype in zip((drawn.subject, drawn.style), draw(st.permutations(kinds)), strict=True):
            if draw(st.integers(0, 4)):
                module = factors(
                    rng, out, width, draw(st.integers(1, 6)), dtype=dtype, kernel=kernel,
                    scale=draw(st.sampled_from([1.0, 0.5, 0.3, 2.0, -1.0])), size=draw(st.sampled_from([1.0, 1e-3])),
                )  # fmt: skip
                module.up[:, : draw(st.sampled_from([0, 0, 0, 1, 9]))] = 0  # dead ranks, dead modules
                modules[name] = module
    strengths = st.sampled_from([1.0, 0.8, -1.0, 1.7, 3.0])
    drawn.parameters = {
        "mu": draw(st.sampled_from([0.0, 0.5, 1.0, 10.0, inf])), "side": draw(st.sampled_from(["input", "input", "output"])),
        "subject_strength": draw(strengths), "style_strength": draw(strengths),
    }  # fmt: skip
    return drawn


def fused(drawn: Drawn, **parameters):
    """The written tensors, the adapter read from them, and the report."""
    with tempfile.TemporaryDirectory() as place:
        paths = [
            write(Path(place, f"{role}.safetensors"), kohya_tensors(modules))
            for role, modules in (("c", drawn.subject), ("s", drawn.style))
        ]  # fmt: skip
        out = Path(place, "f.safetensors")
        report = nplora.fuse(*map(nplora.load, paths), **drawn.parameters, **parameters).save(out)
        return read(out)[0], nplora.load(out), report


@given(pairs())
def test_a_fused_file_is_the_formula_within_the_rounding_of_its_numbers(drawn):
    if not (drawn.subject and drawn.style):
        return
    tensors, adapter, report = fused(drawn)
    names = drawn.subject.keys() | drawn.style.keys()
    assert set(adapter) == {CANONICAL[name] for name in names}
    for name in names:
        got = flattened(adapter[CANONICAL[name]].delta())
        bound = allowed(drawn.sides(name), drawn.dtype(name), ARITHMETIC[drawn.dtype(name)])
        assert np.linalg.norm(got - drawn.wanted(name)) <= bound, name
    assert {float(array) > 0 for key, array in tensors.items() if key.endswith(".alpha")} == {True}
    assert report["keys"] == {
        "read": 3 * (len(drawn.subject) + len(drawn.style)),
        "used": report["keys"]["read"],
        "copied": 0,
        "left out": 0,
    }


@given(pairs(), st.sampled_from(["fp32", "fp16", "bf16"]))
def test_an_asked_number_type_costs_its_own_rounding_and_no_more(drawn, dtype):
    if not (drawn.subject and drawn.style):
        return
    tensors, adapter, _ = fused(drawn, dtype=dtype)
    name = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}[dtype]
    assert {array.dtype.name for key, array in tensors.items() if not key.endswith(".alpha")} == {
        {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[name]
    }
    for key in drawn.subject.keys() | drawn.style.keys():
        got = flattened(adapter[CANONICAL[key]].delta())
        bound = 2.1 * allowed(drawn.sides(key), name, ARITHMETIC[drawn.dtype(key)])  # the ups are rounded too
        # ups of fp16 have a smallest step as well
        bound += sum(2.0**-25 * abs(w * m.scale) * m.down.astype(np.float64).size for m, w in drawn.sides(key)) * (
            name == "F16"
        )
        assert np.linalg.norm(got - drawn.wanted(key)) <= bound, key


@given(pairs())
def test_fusing_is_the_same_every_time_and_whichever_copy_of_a_file_is_read(drawn):
    if not (drawn.subject and drawn.style):
        return
    one, two = fused(drawn)[0], fused(drawn)[0]
    assert {key: array.tobytes() for key, array in one.items()} == {key: array.tobytes() for key, array in two.items()}
