"""LoHa and LoKr: exact low-rank factors of a Hadamard or Kronecker product, against the dense product written out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import pytest

import nplora
from laws.making import DTYPES, Factors, factors, kohya_tensors, protected, read, relative, write

LINEAR = ("down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", (320, 320))
WIDE = ("down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v", (320, 768))
CONV = ("down_blocks_0_resnets_0_conv1", (320, 320, 3, 3))
QKV = ("double_blocks_0_img_attn_qkv", (9216, 3072))
CANONICAL = {
    LINEAR: "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    WIDE: "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v",
    CONV: "unet.down_blocks.0.resnets.0.conv1",
}
# kind -> the layer it is made for
LOHA = {"plain": WIDE, "conv": CONV, "conv, 4-D": CONV, "tucker": CONV}
SIDES = ("full", "factored")
LOKR = [(one, two, WIDE) for one in SIDES for two in SIDES]
LOKR += [(one, two, CONV) for one in SIDES for two in (*SIDES, "tucker")]
Layer = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Product:
    """Stored tensors of one module by suffix, and the dense update (out, in*kernel) that they mean at scale 1."""

    tensors: dict[str, np.ndarray]
    dense: np.ndarray
    scale: float = 1.0

    def at(self, alpha: float, rank: int | None) -> Product:
        """With an alpha beside it; without a rank it means nothing."""
        tensors = {**self.tensors, ".alpha": np.array(alpha, np.float32)}
        return replace(self, tensors=tensors, scale=1.0 if rank is None else alpha / rank)

    @property
    def wanted(self) -> np.ndarray:
        return self.scale * self.dense


def numbers(rng: np.random.Generator, *shape: int, dtype: str = "F32") -> np.ndarray:
    return (rng.standard_normal(shape) / 4).astype(DTYPES[dtype])


def tucker(core: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """LyCORIS' rebuild: axes of the result are out, in, kernel; then flattened."""
    dense = np.einsum("ijkl,io,jc->ockl", *(x.astype(np.float64) for x in (core, a, b)))
    return dense.reshape(dense.shape[0], -1)


def wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64).reshape(array.shape[0], -1)


def loha(seed: int, kind: str, dtype: str = "F32", ranks: tuple[int, int] = (2, 3)) -> Product:
    """A LoHa of unequal ranks; each kind as programs store it."""
    rng = np.random.default_rng(seed)
    out, width, *kernel = LOHA[kind][1]
    tensors: dict[str, np.ndarray] = {}
    dense = np.ones((), np.float64)
    for side, rank in zip(("w1", "w2"), ranks, strict=True):
        if kind == "tucker":
            a, b, core = (numbers(rng, *s, dtype=dtype) for s in ((rank, out), (rank, width), (rank, rank, *kernel)))
            tensors[f".hada_t{side[1]}"] = core
            matrix = tucker(core, a, b)
        else:
            four = kind.endswith("4-D")
            a = numbers(rng, out, rank, *((1, 1) if four else ()), dtype=dtype)
            b = numbers(rng, rank, *((width, *kernel) if four else (width * prod(kernel),)), dtype=dtype)
            matrix = wide(a) @ wide(b)
        tensors |= {f".hada_{side}_a": a, f".hada_{side}_b": b}
        dense = dense * matrix
    return Product(tensors, dense).at(1.5, ranks[0])  # rows of w1_b


def lokr(seed: int, one: str, two: str, layer: Layer, dtype: str = "F32", block: tuple[int, int] = (8, 4)) -> Product:
    """A LoKr with w1 of the block's shape; w2 covers the rest of the layer."""
    rng = np.random.default_rng(seed)
    out, width, *kernel = layer[1]
    small = (out // block[0], width // block[1])
    tensors: dict[str, np.ndarray] = {}
    w1 = _kronecker_side(rng, tensors, "w1", one, block, dtype)
    w2 = _kronecker_side(rng, tensors, "w2", two, (*small, *kernel), dtype)
    full4 = w1.reshape(*block, *(1 for _ in kernel)), w2.reshape(*small, *kernel)
    dense = np.kron(*full4).reshape(out, -1)
    rank = next((tensors[f".lokr_{side}_b"].shape[0] for side in ("w2", "w1") if f".lokr_{side}_b" in tensors), None)
    return Product(tensors, dense).at(6.0, rank)


def _kronecker_side(
    rng: np.random.Generator, tensors: dict[str, np.ndarray], side: str, form: str, shape: tuple[int, ...], dtype: str
) -> np.ndarray:
    out, width, *kernel = shape
    rank = {"w1": 2, "w2": 3}[side]
    if form == "full":
        tensors[f".lokr_{side}"] = numbers(rng, *shape, dtype=dtype)
        return wide(tensors[f".lokr_{side}"])
    if form == "tucker":
        a, b, core = (numbers(rng, *s, dtype=dtype) for s in ((rank, out), (rank, width), (rank, rank, *kernel)))
        tensors |= {f".lokr_{side}_a": a, f".lokr_{side}_b": b, ".lokr_t2": core}
        return tucker(core, a, b)
    a, b = numbers(rng, out, rank, dtype=dtype), numbers(rng, rank, width * prod(kernel), dtype=dtype)
    tensors |= {f".lokr_{side}_a": a, f".lokr_{side}_b": b}
    return wide(a) @ wide(b)


def put(path: Path, layer: Layer, product: Product, prefix: str = "lora_unet_") -> Path:
    """A file with this module, beside an ordinary one that shows the base."""
    rng = np.random.default_rng(0)
    out, width, *kernel = (LINEAR if layer != LINEAR else WIDE)[1]
    other = "lora_unet_" + (LINEAR if layer != LINEAR else WIDE)[0]
    beside = kohya_tensors({other: factors(rng, out, width, 2, kernel=tuple(kernel))})
    if layer == QKV:
        beside = {}
    return write(path, {**beside, **{prefix + layer[0] + suffix: array for suffix, array in product.tensors.items()}})


def flat(delta: np.ndarray) -> np.ndarray:
    return delta.reshape(delta.shape[0], -1)


def plain(seed: int, layer: Layer, rank: int = 3) -> Factors:
    out, width, *kernel = layer[1]
    return factors(np.random.default_rng(seed), out, width, rank, scale=0.5, kernel=tuple(kernel))


def put_plain(path: Path, layer: Layer, module: Factors) -> Path:
    return write(path, kohya_tensors({"lora_unet_" + layer[0]: module}))


def formula(subject: np.ndarray, style: np.ndarray, mu: float) -> np.ndarray:
    V = protected(style)
    return style + subject - mu / (1 + mu) * (subject @ V) @ V.T


def written(path: Path, layer: Layer) -> np.ndarray:
    """The dense update in a kohya file, without nplora."""
    tensors, _ = read(path)
    name = "lora_unet_" + layer[0]
    if name + ".diff" in tensors:
        return wide(tensors[name + ".diff"])
    up, down = wide(tensors[name + ".lora_up.weight"]), wide(tensors[name + ".lora_down.weight"])
    return float(tensors[name + ".alpha"]) / down.shape[0] * (up @ down)


def fused(tmp_path: Path, subject: Path, style: Path, **parameters: object) -> Path:
    out = tmp_path / "fused.safetensors"
    nplora.fuse(nplora.load(subject), nplora.load(style), **parameters).save(out)
    return out


# ------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("kind", LOHA)
def test_a_loha_means_the_hadamard_product(kind: str, dtype: str, tmp_path: Path) -> None:
    layer, product = LOHA[kind], loha(1, kind, dtype)
    module = nplora.load(put(tmp_path / "a.safetensors", layer, product))[CANONICAL[layer]]
    assert module.delta().shape == layer[1]
    assert relative(flat(module.delta()), product.wanted) < 1e-12


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(("one", "two", "layer"), LOKR)
def test_a_lokr_means_the_kronecker_product(one: str, two: str, layer: Layer, dtype: str, tmp_path: Path) -> None:
    product = lokr(1, one, two, layer, dtype)
    module = nplora.load(put(tmp_path / "a.safetensors", layer, product))[CANONICAL[layer]]
    assert module.delta().shape == layer[1]
    assert relative(flat(module.delta()), product.wanted) < 1e-12


@pytest.mark.parametrize("block", [(2, 64), (64, 2), (4, 4)])
def test_a_full_side_is_never_decomposed_whichever_way_it_is_longer(block: tuple[int, int], tmp_path: Path) -> None:
    product = lokr(1, "full", "factored", WIDE, block=block)
    module = nplora.load(put(tmp_path / "a.safetensors", WIDE, product))[CANONICAL[WIDE]]
    assert relative(flat(module.delta()), product.wanted) < 1e-12
    assert module.update.rank == min(block) * 3


@pytest.mark.parametrize("kind", LOHA)
def test_the_rank_of_a_loha_is_the_product_of_its_ranks(kind: str, tmp_path: Path) -> None:
    update = nplora.load(put(tmp_path / "a.safetensors", LOHA[kind], loha(1, kind)))[CANONICAL[LOHA[kind]]].update
    assert (update.kind, update.rank, update.scale) == ("LoHa", 6, 0.75)
    assert update.up.shape == update.up.read().shape
    assert update.down.shape == update.down.read().shape


@pytest.mark.parametrize(("one", "two", "layer"), LOKR)
def test_shapes_are_known_without_reading(one: str, two: str, layer: Layer, tmp_path: Path) -> None:
    update = nplora.load(put(tmp_path / "a.safetensors", layer, lokr(1, one, two, layer)))[CANONICAL[layer]].update
    for matrix in (update.diff,) if one == two == "full" else (update.up, update.down):
        assert matrix.shape == matrix.read().shape


@pytest.mark.parametrize(
    ("one", "two", "rank"), [("factored", "factored", 3), ("full", "factored", 3), ("factored", "full", 2)]
)
def test_alpha_of_a_lokr_is_divided_by_the_rows_of_w2_b_else_w1_b(
    one: str, two: str, rank: int, tmp_path: Path
) -> None:
    update = nplora.load(put(tmp_path / "a.safetensors", WIDE, lokr(1, one, two, WIDE)))[CANONICAL[WIDE]].update
    assert (update.scale, update.scale_from) == (6.0 / rank, "alpha")


@pytest.mark.parametrize("alpha", [1e10, 0.5, -3.0])
def test_alpha_means_nothing_where_both_sides_of_a_lokr_are_full(alpha: float, tmp_path: Path) -> None:
    product = lokr(1, "full", "full", WIDE).at(alpha, None)
    module = nplora.load(put(tmp_path / "a.safetensors", WIDE, product))[CANONICAL[WIDE]]
    assert relative(flat(module.delta()), product.dense) < 1e-12


def test_a_whole_side_counts_before_factors_that_are_left_beside_it(tmp_path: Path) -> None:
    product = lokr(1, "full", "full", WIDE)
    stray = {".lokr_w2_a": np.ones((40, 2), np.float32), ".lokr_w2_b": np.ones((2, 192), np.float32)}
    adapter = nplora.load(put(tmp_path / "a.safetensors", WIDE, replace(product, tensors={**product.tensors, **stray})))
    assert relative(flat(adapter[CANONICAL[WIDE]].delta()), product.dense) < 1e-12
    assert sorted(key.rpartition(".")[2] for key in adapter.unread) == ["lokr_w2_a", "lokr_w2_b"]


# ------------------------------------------------------------------------------------------ fusing

PRODUCTS = {f"loha {kind}": (layer, lambda seed, kind=kind: loha(seed, kind)) for kind, layer in LOHA.items()} | {
    f"lokr {one} x {two}, {len(layer[1])}-D": (layer, lambda seed, o=one, t=two, at=layer: lokr(seed, o, t, at))
    for one, two, layer in LOKR
}
LOW_RANK = [name for name in PRODUCTS if "full x full" not in name]
FULL = [name for name in PRODUCTS if "full x full" in name]


@pytest.mark.parametrize("name", LOW_RANK)
@pytest.mark.parametrize("mu", [0.5, np.inf])
def test_a_product_as_the_style_of_a_plain_lora(name: str, mu: float, tmp_path: Path) -> None:
    layer, make = PRODUCTS[name]
    product, module = make(3), plain(4, layer)
    out = fused(
        tmp_path,
        put_plain(tmp_path / "c.safetensors", layer, module),
        put(tmp_path / "s.safetensors", layer, product),
        mu=mu,
    )
    share = 1e18 if mu == np.inf else mu
    assert relative(written(out, layer), formula(module.dense(), product.wanted, share)) < 1e-6


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_as_the_subject_of_a_plain_lora(name: str, tmp_path: Path) -> None:
    layer, make = PRODUCTS[name]
    product, module = make(3), plain(4, layer)
    out = fused(
        tmp_path, put(tmp_path / "c.safetensors", layer, product), put_plain(tmp_path / "s.safetensors", layer, module)
    )
    assert relative(written(out, layer), formula(product.wanted, module.dense(), 0.5)) < 1e-6


@pytest.mark.parametrize("style", ["loha plain", "lokr full x factored, 2-D", "lokr factored x factored, 2-D"])
@pytest.mark.parametrize("subject", ["loha plain", "lokr factored x full, 2-D", "lokr full x full, 2-D"])
def test_products_with_each_other(subject: str, style: str, tmp_path: Path) -> None:
    one, two = PRODUCTS[subject][1](5), PRODUCTS[style][1](6)
    out = fused(
        tmp_path, put(tmp_path / "c.safetensors", WIDE, one), put(tmp_path / "s.safetensors", WIDE, two), mu=1.0
    )
    assert relative(written(out, WIDE), formula(one.wanted, two.wanted, 1.0)) < 1e-6


@pytest.mark.parametrize(
    ("subject", "style"), [("loha tucker", "lokr full x tucker, 4-D"), ("lokr factored x tucker, 4-D", "loha conv")]
)
def test_products_of_convolutions_with_each_other(subject: str, style: str, tmp_path: Path) -> None:
    one, two = PRODUCTS[subject][1](5), PRODUCTS[style][1](6)
    out = fused(
        tmp_path, put(tmp_path / "c.safetensors", CONV, one), put(tmp_path / "s.safetensors", CONV, two), mu=1.0
    )
    assert relative(written(out, CONV), formula(one.wanted, two.wanted, 1.0)) < 1e-6


@pytest.mark.parametrize("name", FULL)
def test_a_style_that_is_full_needs_a_share_of_its_directions(name: str, tmp_path: Path) -> None:
    layer, make = PRODUCTS[name]
    style, subject = (
        put(tmp_path / "s.safetensors", layer, make(3)),
        put_plain(tmp_path / "c.safetensors", layer, plain(4, layer)),
    )
    with pytest.raises(nplora.InputError) as caught:
        fused(tmp_path, subject, style)
    assert caught.value.hint == "Protect a share of its energy instead: --directions 0.9, or --directions 8."
    out = fused(tmp_path, subject, style, directions=8)
    V = protected(make(3).wanted, 8)
    dense = plain(4, layer).dense()
    assert relative(written(out, layer), make(3).wanted + dense - (dense @ V) @ V.T / 3) < 1e-6


@pytest.mark.parametrize("name", PRODUCTS)
def test_strengths_mean_what_they_say(name: str, tmp_path: Path) -> None:
    layer, make = PRODUCTS[name]
    product, module = make(3), plain(4, layer)
    subject, style = (
        put(tmp_path / "c.safetensors", layer, product),
        put_plain(tmp_path / "s.safetensors", layer, module),
    )
    out = fused(tmp_path, subject, style, mu=0, subject_strength=-0.5, style_strength=2.0)
    assert relative(written(out, layer), 2 * module.dense() - 0.5 * product.wanted) < 1e-6


# ------------------------------------------------------------------------------------------ FLUX.1's fused projections


def flux_loha(seed: int) -> Product:
    rng = np.random.default_rng(seed)
    a1, b1, a2, b2 = (numbers(rng, *shape) for shape in ((9216, 2), (2, 3072), (9216, 2), (2, 3072)))
    tensors = {".hada_w1_a": a1, ".hada_w1_b": b1, ".hada_w2_a": a2, ".hada_w2_b": b2}
    return Product(tensors, (wide(a1) @ wide(b1)) * (wide(a2) @ wide(b2)))


FUSED_QKV = {
    "LoHa": flux_loha,
    "LoKr": lambda seed: lokr(seed, "full", "factored", QKV, block=(4, 4)),
    "full LoKr": lambda seed: lokr(seed, "full", "full", QKV, block=(96, 96)),
}  # fmt: skip


@pytest.mark.parametrize("kind", FUSED_QKV)
def test_a_product_on_a_fused_projection_is_split_exactly(kind: str, tmp_path: Path) -> None:
    product = FUSED_QKV[kind](1)
    adapter = nplora.load(put(tmp_path / "a.safetensors", QKV, product))
    for index, part in enumerate(("to_q", "to_k", "to_v")):
        rows = product.wanted[3072 * index : 3072 * (index + 1)]
        assert relative(adapter[f"transformer.transformer_blocks.0.attn.{part}"].delta(), rows) < 1e-12


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_a_product_on_a_fused_projection_meets_a_split_lora(kind: str, tmp_path: Path) -> None:
    product, rng = FUSED_QKV[kind](1), np.random.default_rng(2)
    style = factors(rng, 3072, 3072, 2)
    names = [f"transformer.transformer_blocks.0.attn.{part}" for part in ("to_q", "to_k", "to_v")]
    tensors = {names[1] + ".lora_A.weight": style.down, names[1] + ".lora_B.weight": style.up}
    subject = put(tmp_path / "c.safetensors", QKV, product)
    fusion = nplora.fuse(nplora.load(subject), nplora.load(write(tmp_path / "s.safetensors", tensors)), mu=1.0)
    V = np.linalg.qr(style.down.T.astype(np.float64))[0]
    for index, name in enumerate(names):
        wanted = product.wanted[3072 * index : 3072 * (index + 1)]
        if index == 1:
            wanted = wanted - (wanted @ V) @ V.T / 2 + style.dense()
        assert relative(fusion[name].delta(), wanted) < 1e-12


# ------------------------------------------------------------------------------------------ what is refused


def refusal(path: Path) -> tuple[str, str]:
    with pytest.raises(nplora.InputError) as caught:
        nplora.load(path)
    return caught.value.problem, str(caught.value)


@pytest.mark.parametrize("missing", [".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b", ".hada_t1", ".hada_t2"])
def test_a_loha_without_one_of_its_parts_is_refused_by_name(missing: str, tmp_path: Path) -> None:
    tensors = {suffix: array for suffix, array in loha(1, "tucker").tensors.items() if suffix != missing}
    problem, message = refusal(put(tmp_path / "a.safetensors", CONV, Product(tensors, np.zeros(0))))
    assert problem == "the LoHa module is incomplete"
    assert f"expected a float matrix {missing[1:]} beside it" in message


@pytest.mark.parametrize("missing", [".lokr_w1_a", ".lokr_w1_b", ".lokr_w2_a", ".lokr_w2_b"])
def test_a_lokr_without_one_of_its_parts_is_refused_by_name(missing: str, tmp_path: Path) -> None:
    tensors = {s: array for s, array in lokr(1, "factored", "factored", WIDE).tensors.items() if s != missing}
    problem, message = refusal(put(tmp_path / "a.safetensors", WIDE, Product(tensors, np.zeros(0))))
    assert problem == "the LoKr module is incomplete"
    side = missing[1:-2]
    assert f"expected {side}, or {side}_a and {side}_b, of floats" in message


LOHA_PARTS = [(kind, suffix) for kind in LOHA for suffix in loha(1, kind).tensors if suffix != ".alpha"]
LOKR_PARTS = [("factored", WIDE, ".lokr_w1_b"), ("factored", WIDE, ".lokr_w2_b"), ("tucker", CONV, ".lokr_w2_b")]
LOKR_PARTS += [("tucker", CONV, ".lokr_t2"), ("tucker", CONV, ".lokr_w2_a")]


@pytest.mark.parametrize(("kind", "suffix"), LOHA_PARTS)
def test_loha_factors_that_do_not_fit_are_refused(kind: str, suffix: str, tmp_path: Path) -> None:
    tensors = loha(1, kind).tensors
    tensors[suffix] = np.concatenate([tensors[suffix]] * 2)  # twice the rows
    problem, _ = refusal(put(tmp_path / "a.safetensors", LOHA[kind], Product(tensors, np.zeros(0))))
    assert problem == "the LoHa factors do not fit each other"


@pytest.mark.parametrize(("two", "layer", "suffix"), LOKR_PARTS)
def test_lokr_factors_that_do_not_fit_are_refused(two: str, layer: Layer, suffix: str, tmp_path: Path) -> None:
    tensors = lokr(1, "factored", two, layer).tensors
    tensors[suffix] = np.concatenate([tensors[suffix]] * 2)
    problem, _ = refusal(put(tmp_path / "a.safetensors", layer, Product(tensors, np.zeros(0))))
    assert problem == "the LoKr factors do not fit each other"


# ------------------------------------------------------------------------------------------ real files


def real_pairs(loras: Path) -> list[tuple[Path, Path]]:
    found = sorted(loras.glob("*lokr*.safetensors"))
    if len(found) < 2:
        pytest.skip("no real LoKr files")
    style = loras / "sd15-diffusers-attn-r4-style-pokemon.safetensors"
    return [(path, style) for path in found if nplora.load(path).layout and "sd15" in path.name]


def test_real_lokr_files_fuse_with_a_plain_lora(loras: Path, tmp_path: Path) -> None:
    pairs = real_pairs(loras)
    assert pairs
    for number, (subject, style) in enumerate(pairs):
        fusion = nplora.fuse(nplora.load(subject), nplora.load(style))
        out = tmp_path / f"{number}.safetensors"
        fusion.save(out)
        back = nplora.load(out)
        common = [name for name, module in fusion.items() if module.subject and module.style]
        assert len(common) == 128
        for name in common[::16]:
            wanted = formula(flat(fusion[name].subject.delta()), flat(fusion[name].style.delta()), 0.5)
            assert relative(flat(fusion[name].delta()), wanted) < 1e-9
            assert relative(flat(back[name].delta()), wanted) < 1e-3
