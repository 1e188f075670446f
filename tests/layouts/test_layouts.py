"""The layout tables: one-to-one both ways, in agreement with diffusers' model classes and with real files' names."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from math import prod
from pathlib import Path

import pytest

from nplora import layouts
from nplora.errors import UsageError
from nplora.layouts import Part, load, names, recognise
from nplora.layouts.layout import _text

REPOSITORY = Path(__file__).parents[2]
LORAS = REPOSITORY.parent / "shared" / "loras"
BASES = {
    "chroma", "flux1", "flux2-klein-4b", "hunyuan-video", "lumina2", "qwen-image", "sd15", "sd2", "sd3-medium",
    "sd35-large", "sd35-medium", "sdxl", "wan-1.3b", "wan-14b", "wan-5b", "z-image",
}  # fmt: skip
COMPONENTS = [(name, component) for name in sorted(BASES) for component in load(name).components]

each_layout = pytest.mark.parametrize("name", sorted(BASES))
each_component = pytest.mark.parametrize(("name", "component"), COMPONENTS)


def flat(name):
    return name.replace(".", "_")


def expand(pattern):
    """`a.{0..2}.b` -> a.0.b, a.1.b, a.2.b: the form that the tables of ../shared/loras/modules have too."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        return [pattern]
    return [pattern.replace(found[0], str(i)) for i in range(int(found[1]), int(found[2]) + 1)]


def spellings(layout, component):
    """Every name that a component answers to, flattened, once for every meaning."""
    for table in layout.tables[component]:
        for run, _ in table.spellings():
            yield from map(flat, map(run.at, range(run.length)))


def linears(layout, component):
    return [n for n in layout.modules(component) if len(layout.shape(component, n)) == 2 and "embedding." not in n]


# ------------------------------------------------------------------------------------------ the folder


def test_every_file_of_the_folder_is_a_layout_and_no_text_encoder_is_one():
    assert set(names()) == BASES
    assert {load(name).name for name in names()} == BASES


def test_an_unknown_layout_is_refused_with_the_known_ones():
    with pytest.raises(UsageError) as error:
        load("sd9")
    assert str(error.value) == (
        "no base model of this name is known: expected one of chroma, flux1, flux2-klein-4b, hunyuan-video, lumina2, "
        "qwen-image, sd15, sd2, sd3-medium, sd35-large, sd35-medium, sdxl, wan-1.3b, wan-14b, wan-5b, z-image, got sd9."
    )


def test_a_path_is_no_name():
    with pytest.raises(UsageError):
        load("text/clip-l")


@each_layout
def test_head_of_a_layout(name):
    layout = load(name)
    assert layout is load(name)
    assert set(layout.slots.values()) <= set(layout.components)
    assert set(layout.slots) <= {"denoiser", "te", "te1", "te2", "te3"}
    assert layout.slots["denoiser"] == layout.components[0]
    assert set(layout.kohya) == set(layout.components)
    assert set(layout.kohya.values()) <= {"canonical", "native"}
    with pytest.raises(TypeError):
        layout.slots["denoiser"] = "other"


def test_titles_and_order_are_unique():
    assert len({load(name).title for name in names()}) == len(BASES)
    assert sorted(load(name).order for name in names()) == list(range(1, len(BASES) + 1))


def test_slots():
    assert dict(load("sd15").slots) == {"denoiser": "unet", "te": "text_encoder", "te1": "text_encoder"}
    assert dict(load("sdxl").slots) == {"denoiser": "unet", "te1": "text_encoder", "te2": "text_encoder_2"}
    flux = {"denoiser": "transformer", "te1": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_2"}
    assert dict(load("flux1").slots) == flux
    assert [load("sd35-large").slots[f"te{i}"] for i in (1, 2, 3)] == [
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
    ]


def test_naming_of_kohya_files():
    native = {name for name in BASES if load(name).kohya[load(name).components[0]] == "native"}
    assert {"sdxl", "flux1", "sd35-medium", "wan-14b", "lumina2"} <= native
    assert native.isdisjoint({"sd15", "sd2", "qwen-image", "z-image"})
    assert all(load(n).kohya[c] == "canonical" for n, c in COMPONENTS if c.startswith("text_encoder"))


def test_importing_the_tables_imports_no_array_library():
    heavy = "{'numpy', 'torch', 'ml_dtypes'} & set(sys.modules)"
    code = f"import sys, nplora.layouts as l; l.recognise([('denoiser', 'conv_in', 320, 36)]); print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_that_test_can_fail():
    code = "import sys, numpy; print({'numpy', 'torch', 'ml_dtypes'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "numpy" in done.stdout


# ------------------------------------------------------------------------------------------ one-to-one


@each_component
def test_a_flattened_spelling_means_one_module(name, component):
    doubled = [word for word, count in Counter(spellings(load(name), component)).items() if count > 1]
    assert doubled == []


@each_component
def test_canonical_names_find_themselves(name, component):
    layout = load(name)
    modules = list(layout.modules(component))
    assert len(set(modules)) == len(modules)
    for module in modules:
        assert layout.find(component, module) == layout.find(component, flat(module)) == (Part(module),)


@each_component
def test_canonical_to_native_and_back(name, component):
    layout = load(name)
    natives = {}
    for module in layout.modules(component):
        native, parts = layout.native(component, module)
        assert [part.name for part in parts].count(module) == 1
        assert natives.setdefault(native, parts) == parts  # one native module, one list of parts
        if native != module:
            assert layout.find(component, native) == layout.find(component, flat(native)) == parts
    held = [part.name for parts in natives.values() for part in parts]
    assert sorted(held) == sorted(layout.modules(component))  # every canonical module lies in one native module


@each_component
def test_row_ranges_cover_the_fused_weight(name, component):
    layout = load(name)
    for native, parts in {layout.native(component, module) for module in layout.modules(component)}:
        shapes = [layout.shape(component, part.name) for part in parts]
        if len(parts) == 1:
            assert parts[0].rows is None
            continue
        assert len({shape[1:] for shape in shapes}) == 1, native  # parts of one weight see the same input
        ends = list(itertools.accumulate(shape[0] for shape in shapes))
        assert [part.rows for part in parts] == list(zip([0, *ends], ends, strict=False))


@each_component
def test_the_filters_of_recognition_let_every_module_through(name, component):
    layout = load(name)
    for word in spellings(layout, component):
        assert word.startswith(layout.marks)
        spelling, _ = layout.look_up(component, word)
        assert (spelling.out, spelling.inputs) in layout.sizes


@each_component
def test_other_names_are_not_found(name, component):
    layout = load(name)
    numbered = [module for module in layout.modules(component) if ".0." in module]
    strange = [
        flat(module).replace("_0_", number, 1) for module in numbered for number in ("_00_", "_-1_", "_#_", "_٠_")
    ]
    strange += [re.sub(r"\.0\.", ".999.", module, count=1) for module in numbered]
    for word in ["", "_", "weight", "{0..3}", "model.layers.0.self_attn.q_proj", "9" * 10_000, *strange]:
        assert layout.find(component, word) is None
        assert layout.shape(component, word) is None
        assert layout.native(component, word) == (word, (Part(word),))


def test_unknown_components_have_no_modules():
    layout = load("sd15")
    assert layout.find("unknown", "conv_in") is None
    assert layout.shape("transformer", "conv_in") is None
    assert layout.native("vae", "conv_in") == ("conv_in", (Part("conv_in"),))
    assert list(layout.modules("prior")) == []


def test_only_canonical_dotted_names_have_a_shape():
    layout = load("flux1")
    assert layout.shape("transformer", "transformer_blocks.0.attn.to_q") == (3072, 3072)
    assert layout.shape("transformer", "transformer_blocks_0_attn_to_q") is None
    assert layout.shape("transformer", "double_blocks.0.img_attn.qkv") is None


# ------------------------------------------------------------------------------------------ fused, swapped, renamed


def test_flux_single_block():
    q, k, v, mlp = load("flux1").find("transformer", "single_blocks_37_linear1")
    assert [part.rows for part in (q, k, v, mlp)] == [(0, 3072), (3072, 6144), (6144, 9216), (9216, 21504)]
    assert q.name == "single_transformer_blocks.37.attn.to_q"
    assert mlp.name == "single_transformer_blocks.37.proj_mlp"
    assert load("flux1").find("transformer", "single_blocks.37.linear1_qkv") == (q, k, v)


def test_flux_text_stream_is_split_in_the_order_q_k_v():
    parts = load("flux1").find("transformer", "double_blocks.3.txt_attn.qkv")
    assert [p.name.rsplit(".", 1)[1] for p in parts] == ["add_q_proj", "add_k_proj", "add_v_proj"]


def test_lumina_is_split_unequally():
    parts = load("lumina2").find("transformer", "layers_25_attention_qkv")
    assert [part.rows for part in parts] == [(0, 2304), (2304, 3072), (3072, 3840)]


def test_flux2_single_blocks_stay_fused():
    layout = load("flux2-klein-4b")
    module = "single_transformer_blocks.19.attn.to_qkv_mlp_proj"
    assert layout.native("transformer", module) == ("single_blocks.19.linear1", (Part(module),))
    assert layout.find("transformer", "sformer_blocks.4.attn.to_q") == (Part("transformer_blocks.4.attn.to_q"),)


def test_second_attention_of_sd35_medium():
    layout = load("sd35-medium")
    parts = layout.find("transformer", "joint_blocks_12_x_block_attn2_qkv")
    assert parts == tuple(
        Part(f"transformer_blocks.12.attn2.to_{w}", (i * 1536, i * 1536 + 1536)) for i, w in enumerate("qkv")
    )
    assert layout.find("transformer", "joint_blocks_13_x_block_attn2_qkv") is None
    assert layout.shape("transformer", "transformer_blocks.12.norm1.linear") == (13824, 1536)
    assert layout.shape("transformer", "transformer_blocks.13.norm1.linear") == (9216, 1536)


@each_layout
def test_swapped_halves(name):
    last_context = {"sd3-medium": 23, "sd35-medium": 23, "sd35-large": 37}
    expected = set()
    if name in last_context:
        expected = {"norm_out.linear", f"transformer_blocks.{last_context[name]}.norm1_context.linear"}
    elif name in ("flux1", "hunyuan-video", "flux2-klein-4b"):
        expected = {"norm_out.linear"}
    layout = load(name)
    found = set()
    for component in layout.components:
        for module in layout.modules(component):
            found |= {part.name for part in layout.native(component, module)[1] if part.swap}
    assert found == expected


def test_a_swap_is_told_only_of_the_native_spelling():
    layout = load("flux1")
    assert layout.find("transformer", "final_layer_adaLN_modulation_1") == (Part("norm_out.linear", swap=True),)
    assert layout.find("transformer", "norm_out.linear") == (Part("norm_out.linear"),)


def test_hunyuan_refiner_is_not_swapped_and_the_other_spellings_are_read():
    layout = load("hunyuan-video")
    refiner = "context_embedder.token_refiner.refiner_blocks.1"
    native = "txt_in.individual_token_refiner.blocks.1"
    assert layout.find("transformer", f"{native}.adaLN_modulation.1") == (Part(f"{refiner}.norm_out.linear"),)
    assert layout.find("transformer", "double_blocks.0.img_attn.qkv") == layout.find(
        "transformer", "double_blocks.0.img_attn_qkv"
    )
    for one, other in (("img_mlp.fc1", "img_mlp.0"), ("txt_mlp.fc2", "txt_mlp.2"), ("img_mod.linear", "img_mod.lin")):
        assert layout.find("transformer", f"double_blocks.19.{one}") == layout.find(
            "transformer", f"double_blocks.19.{other}"
        )
    assert layout.native("transformer", "transformer_blocks.0.ff.net.0.proj")[0] == "double_blocks.0.img_mlp.fc1"


def test_wan_numbers_its_norms_otherwise():
    layout = load("wan-14b")
    assert layout.native("transformer", "blocks.0.norm2")[0] == "blocks.0.norm3"
    assert layout.find("transformer", "blocks.0.norm1") is None  # has no weight
    assert list(layout.modules("transformer_2")) == list(layout.modules("transformer"))


def test_wan_image_to_video():
    for name in ("wan-14b", "wan-1.3b"):
        assert load(name).find("transformer", "blocks_0_cross_attn_k_img") == (Part("blocks.0.attn2.add_k_proj"),)
        assert load(name).find("transformer", "img_emb.proj.3") == (Part("condition_embedder.image_embedder.ff.net.2"),)


@pytest.mark.parametrize(
    ("name", "ldm", "canonical"),
    [
        ("sd15", "input_blocks.0.0", "conv_in"),
        ("sd15", "input_blocks.1.1.proj_in", "down_blocks.0.attentions.0.proj_in"),
        ("sd15", "input_blocks.9.0.op", "down_blocks.2.downsamplers.0.conv"),
        ("sd15", "input_blocks.11.0.in_layers.2", "down_blocks.3.resnets.1.conv1"),
        ("sd15", "middle_block.2.out_layers.3", "mid_block.resnets.1.conv2"),
        ("sd15", "output_blocks.2.1.conv", "up_blocks.0.upsamplers.0.conv"),
        ("sd15", "output_blocks.2.2.conv", "up_blocks.0.upsamplers.0.conv"),
        ("sd15", "output_blocks.5.1.transformer_blocks.0.norm1", "up_blocks.1.attentions.2.transformer_blocks.0.norm1"),
        ("sd2", "output_blocks.8.2.conv", "up_blocks.2.upsamplers.0.conv"),
        ("sdxl", "output_blocks.2.2.conv", "up_blocks.0.upsamplers.0.conv"),
        ("sdxl", "output_blocks.2.1.proj_out", "up_blocks.0.attentions.2.proj_out"),
        ("sdxl", "input_blocks.7.1.proj_in", "down_blocks.2.attentions.0.proj_in"),
        ("sdxl", "output_blocks.6.0.skip_connection", "up_blocks.2.resnets.0.conv_shortcut"),
        ("sdxl", "label_emb.0.2", "add_embedding.linear_2"),
        ("sdxl", "time_embed.0", "time_embedding.linear_1"),
        ("sdxl", "out.2", "conv_out"),
        ("sdxl", "middle_block.1.norm", "mid_block.attentions.0.norm"),
    ],
)  # fmt: skip
def test_names_of_the_original_unet(name, ldm, canonical):
    assert load(name).find("unet", ldm) == load(name).find("unet", flat(ldm)) == (Part(canonical),)


def test_projections_are_convolutions_in_sd1_only():
    proj = "mid_block.attentions.0.proj_in"
    assert load("sd15").shape("unet", proj) == (1280, 1280, 1, 1)
    assert load("sd2").shape("unet", proj) == load("sdxl").shape("unet", proj) == (1280, 1280)


def test_clip_with_and_without_its_first_level():
    for name, component in (("sd15", "text_encoder"), ("sdxl", "text_encoder_2"), ("sd35-large", "text_encoder")):
        layout = load(name)
        full = "text_model.encoder.layers.0.self_attn.q_proj"
        for body in (full, full.removeprefix("text_model."), flat(full), flat(full.removeprefix("text_model."))):
            assert layout.find(component, body) == (Part(full),)
    for name, component in (
        ("sdxl", "text_encoder_2"),
        ("sd35-large", "text_encoder"),
        ("sd3-medium", "text_encoder_2"),
    ):
        assert load(name).find(component, "text_projection") == (Part("text_projection"),)
    assert load("sdxl").find("text_encoder_2", "text_model_text_projection") == (Part("text_projection"),)
    assert load("sd15").find("text_encoder", "text_projection") is None


def test_shapes_of_norms_and_embeddings():
    layout = load("sdxl")
    assert layout.shape("text_encoder_2", "text_model.embeddings.token_embedding") == (49408, 1280)
    assert layout.shape("text_encoder", "text_model.final_layer_norm") == (768,)
    assert layout.shape("unet", "conv_norm_out") == (320,)
    assert load("wan-14b").shape("transformer", "patch_embedding") == (5120, 16, 1, 2, 2)


# ------------------------------------------------------------------------------------------ counts of the facts


def test_counts():
    def count(name, component, pattern, natives=False):
        layout = load(name)
        found = [m for m in layout.modules(component) if re.search(pattern, m) and len(layout.shape(component, m)) > 1]
        return len({layout.native(component, m)[0] for m in found} if natives else found)

    blocks = r"(transformer_)?blocks\.\d"
    assert count("sd15", "unet", r"\.attentions\.") == 192
    assert count("sd2", "unet", r"\.attentions\.") == 192
    assert count("sd15", "text_encoder", r"\.layers\.") == 72
    assert count("sd2", "text_encoder", r"\.layers\.") == 23 * 6
    assert count("sdxl", "unet", r"\.attentions\.") == 722
    assert count("sdxl", "unet", r"\.(attentions|resnets|downsamplers|upsamplers)\.") == 788
    assert count("sdxl", "text_encoder", r"\.layers\.") == 72
    assert count("sdxl", "text_encoder_2", r"\.layers\.") == 192
    assert count("flux1", "transformer", blocks) == 494
    assert count("flux1", "transformer", blocks, natives=True) == 304
    assert count("sd35-large", "transformer", blocks) == 529
    assert count("sd35-medium", "transformer", blocks) == 385
    assert count("qwen-image", "transformer", blocks) == 840
    assert count("wan-14b", "transformer", r"blocks\.\d+\.(attn\d\.to|ffn)") == 400


# ------------------------------------------------------------------------------------------ ../shared/loras

TABLES = {  # file: (layout, component, slot)
    "sd15-unet": ("sd15", "unet", "denoiser"), "sd15-unet-conv": ("sd15", "unet", "denoiser"),
    "sdxl-unet": ("sdxl", "unet", "denoiser"), "sdxl-unet-conv": ("sdxl", "unet", "denoiser"),
    "sdxl-unet-ldm": ("sdxl", "unet", "denoiser"), "sdxl-unet-ldm-conv": ("sdxl", "unet", "denoiser"),
    "flux": ("flux1", "transformer", "denoiser"), "flux-bfl": ("flux1", "transformer", "denoiser"),
    "sd35-large": ("sd35-large", "transformer", "denoiser"),
    "sd35-large-mmdit": ("sd35-large", "transformer", "denoiser"),
    "sd35-medium": ("sd35-medium", "transformer", "denoiser"),
    "sd35-medium-mmdit": ("sd35-medium", "transformer", "denoiser"),
    "qwen-image": ("qwen-image", "transformer", "denoiser"),
    "wan21-14b": ("wan-14b", "transformer", "denoiser"), "wan21-14b-original": ("wan-14b", "transformer", "denoiser"),
    "clip-l": ("sdxl", "text_encoder", "te1"), "clip-g": ("sdxl", "text_encoder_2", "te2"),
}  # fmt: skip
each_table = pytest.mark.parametrize("table", TABLES)


def shared_table(file):
    """Name -> (out, in) or (out, in, k, k) of a table of ../shared/loras/modules."""
    path = LORAS / "modules" / f"{file}.json"
    if not path.is_file():
        pytest.skip("no folder ../shared/loras beside the repository")
    rows = json.loads(path.read_text())["modules"]
    return {name: (out, inputs, *k, *k) for pattern, out, inputs, *k in rows for name in expand(pattern)}


def asked(table, slot):
    return [(slot, flat(name), shape[0], prod(shape[1:])) for name, shape in table.items()]


def test_every_table_is_compared():
    folder = LORAS / "modules"
    if not folder.is_dir():
        pytest.skip("no folder ../shared/loras beside the repository")
    assert {path.stem for path in folder.glob("*.json")} == set(TABLES)


@each_table
def test_agreement_with_the_tables_that_diffusers_gave(table):
    name, component, _ = TABLES[table]
    layout = load(name)
    for module, shape in shared_table(table).items():
        parts = layout.find(component, flat(module))
        shapes = [layout.shape(component, part.name) for part in parts]
        assert (sum(s[0] for s in shapes), *shapes[0][1:]) == shape
        if parts[0].name != module:
            assert layout.native(component, parts[0].name) == (module, parts)


@each_table
def test_tables_are_recognised(table):
    name, _, slot = TABLES[table]
    modules = asked(shared_table(table), slot)
    recognition = recognise(modules)
    if table == "clip-l":
        assert (recognition.layout.name, len(recognition.rivals)) == ("sd15", 5)
    else:
        assert recognition.layout.name == name
    assert recognition.matched == recognition.total == len(modules)
    assert recognition.evidence.startswith(f"{len(modules)} of {len(modules)} modules are {recognition.layout.title}'s")


def key_list(file, pattern):
    """(prefix, body, out, in) of each module of a real file's key list."""
    path = LORAS / file
    if not path.is_file():
        pytest.skip("no folder ../shared/loras beside the repository")
    shapes = {key: entry["shape"] for key, entry in json.loads(path.read_text()).items() if "shape" in entry}
    for key, down in shapes.items():
        if match := re.fullmatch(pattern, key):
            up = shapes[key.replace("lora_down", "lora_up").replace("lora_A", "lora_B")]
            yield match[1], match[2], up[0], prod(down[1:])


def test_real_keys_of_an_sd15_kohya_file():
    slots = {"lora_te_": "te", "lora_unet_": "denoiser"}
    keys = key_list("headers-only-sd15-kohya-r128-te.json", r"(lora_te_|lora_unet_)(.+)\.lora_down\.weight")
    modules = [(slots[prefix], *rest) for prefix, *rest in keys]
    recognition = recognise(modules)
    assert (recognition.layout.name, recognition.matched, recognition.total) == ("sd15", 264, 264)
    assert recognition.evidence == "264 of 264 modules are Stable Diffusion 1.x's"
    assert recognition.rivals == ()


@pytest.mark.parametrize("slot", ["denoiser", None])
def test_real_keys_of_a_flux_peft_file(slot):
    keys = key_list("headers-only-flux-peft-r4.json", r"(base_model\.model\.)(.+)\.lora_A\.weight")
    modules = [(slot, *rest) for _, *rest in keys]
    recognition = recognise(modules)
    assert recognition.layout.name == "flux1"
    assert recognition.matched == recognition.total == len(modules) == 381
    assert recognition.rivals == ("Chroma",)  # modulation is not trained, the rest is equal


# ------------------------------------------------------------------------------------------ recognition


def own(name, component=None, *, slot="denoiser", pattern="", native=False):
    """What a file would be asked about that holds the linears of a layout."""
    layout = load(name)
    component = component or layout.components[0]
    found = {}
    for module in linears(layout, component):
        if re.search(pattern, module):
            spelled, parts = layout.native(component, module) if native else (module, (Part(module),))
            shapes = [layout.shape(component, part.name) for part in parts]
            found[spelled] = (slot, flat(spelled), sum(shape[0] for shape in shapes), shapes[0][1])
    return list(found.values())


@pytest.mark.parametrize("native", [False, True])
@each_layout
def test_every_layout_recognises_itself(name, native):
    recognition = recognise(own(name, native=native))
    assert recognition.layout is load(name)
    assert recognition.matched == recognition.total
    assert recognition.rivals == ()


def test_widths_decide():
    for name, width in (("sd15", 768), ("sd2", 1024), ("sdxl", 2048)):
        body = "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
        recognition = recognise([("denoiser", body, 640, width)])
        assert (recognition.layout.name, recognition.rivals) == (name, ())
    for name, width in (("wan-14b", 5120), ("wan-5b", 3072), ("wan-1.3b", 1536)):
        assert recognise([("denoiser", "blocks.3.self_attn.q", width, width)]).layout.name == name
    for name, width in (("sd35-large", 2432), ("sd35-medium", 1536)):
        assert recognise([("denoiser", "transformer_blocks.0.attn.add_k_proj", width, width)]).layout.name == name


def test_self_attention_of_sd1_and_sd2_is_the_same():
    recognition = recognise(own("sd2", pattern=r"attn1"))
    assert recognition.layout.name == "sd15"
    assert recognition.rivals == ("Stable Diffusion 2.x",)
    assert recognition.evidence == (
        f"{recognition.total} of {recognition.total} modules are Stable Diffusion 1.x's, and equally "
        "Stable Diffusion 2.x's: same shapes, base not proven"
    )


def test_flux_without_modulation_could_be_chroma():
    recognition = recognise(own("flux1", pattern=r"blocks\.\d+\.(attn|ff|proj)", native=True))
    assert (recognition.layout.name, recognition.rivals) == ("flux1", ("Chroma",))


def test_attention_of_klein_is_told_from_flux_by_the_number_of_blocks():
    klein = own("flux2-klein-4b", pattern=r"transformer_blocks\.\d+\.attn\.(to_[qkv]|add)")
    recognition = recognise(klein)
    assert (recognition.layout.name, recognition.rivals) == ("flux2-klein-4b", ())
    recognition = recognise(klein[:6])  # a block or two prove nothing
    assert recognition.layout.name == "flux1"
    assert "FLUX.2 Klein 4B" in recognition.rivals


def test_hunyuan_video_is_told_from_flux_by_the_number_of_blocks():
    flux, hunyuan = own("flux1", pattern="blocks"), own("hunyuan-video", pattern=r"^(single_)?transformer_blocks")
    assert recognise(flux).rivals == recognise(hunyuan).rivals == ()
    assert recognise(flux).layout.name == "flux1"
    assert recognise(hunyuan).layout.name == "hunyuan-video"


def test_a_text_encoder_alone():
    assert recognise(own("sd2", "text_encoder", slot="te")).layout.name == "sd2"
    clip_g = recognise(own("sdxl", "text_encoder_2", slot="te2", pattern="layers"))
    assert (clip_g.layout.name, len(clip_g.rivals)) == ("sdxl", 3)
    anywhere = recognise(own("sd15", "text_encoder", slot=None, pattern="layers"))
    assert anywhere.layout.name == "sd15"
    assert "Stable Diffusion XL" in anywhere.rivals


def test_names_alone_are_enough():
    modules = [(slot, body, None, None) for slot, body, _, _ in own("sdxl", native=True, pattern="attentions")]
    assert recognise(modules).layout.name == "sdxl"
    modules = [(slot, body, None, None) for slot, body, _, _ in own("sd15", pattern="attentions")]
    assert (recognise(modules).layout.name, recognise(modules).rivals) == ("sd15", ("Stable Diffusion 2.x",))


def test_a_slot_points_to_one_component():
    modules = own("sdxl", "text_encoder_2", slot="te2", pattern="layers")
    assert recognise([("te1", *rest) for _, *rest in modules]).layout is None
    assert recognise([("denoiser", *rest) for _, *rest in modules]).layout is None
    assert recognise([(None, *rest) for _, *rest in modules]).layout.name == "sdxl"


def test_sizes_must_agree():
    wide = [(slot, body, out, inputs + 1) for slot, body, out, inputs in own("sd15", pattern="attentions")]
    recognition = recognise(wide)
    assert (recognition.layout, recognition.matched, recognition.rivals) == (None, 0, ())
    assert recognition.evidence == f"none of {len(wide)} modules has the name and the sizes of a known base model's"


def test_a_4d_factor_of_a_1x1_convolution_counts_like_a_linear_one():
    assert recognise([("denoiser", "mid_block_attentions_0_proj_in", 1280, 1280)]).layout is not None
    assert recognise([("denoiser", "mid_block_resnets_0_conv1", 1280, 1280 * 9)]).layout is not None


def test_a_language_model_is_not_recognised():
    llm = [(None, f"model.layers.{i}.self_attn.{p}_proj", 3072, 3072) for i in range(28) for p in "qkvo"]
    recognition = recognise(llm)
    assert (recognition.layout, recognition.matched, recognition.total) == (None, 0, 112)
    assert recognition.evidence == "none of 112 modules has the name and the sizes of a known base model's"


def test_less_than_half_is_too_little():
    known = own("sd15", pattern=r"mid_block\.attentions\.0")
    strangers = [("denoiser", f"motion_modules.{i}.proj", 320, 320) for i in range(len(known) + 1)]
    recognition = recognise([*known, *strangers])
    assert (recognition.layout, recognition.matched) == (None, len(known))
    assert recognition.evidence == f"only {len(known)} of {recognition.total} modules could be Stable Diffusion 1.x's"
    assert recognise([*known, *strangers[1:]]).layout.name == "sd15"


def test_nothing_is_nothing():
    recognition = recognise([])
    assert (recognition.layout, recognition.matched, recognition.total) == (None, 0, 0)
    assert recognition.evidence == "none of 0 modules has the name and the sizes of a known base model's"


def test_only_the_layouts_that_can_win_are_expanded():
    modules = own("sdxl", native=True, pattern="attentions")
    for cached in (layouts.names, layouts.load, _text):
        cached.cache_clear()
    assert recognise(modules).layout.name == "sdxl"
    expanded = {name for name in names() for tables in load(name).tables.values() for table in tables if table._index}
    assert expanded == {"sdxl"}


# ------------------------------------------------------------------------------------------ where the files come from


@pytest.mark.consumer
@pytest.mark.slow
def test_the_files_are_what_the_tool_derives_and_diffusers_converters_agree():
    if not find_spec("diffusers"):
        pytest.skip("diffusers is not installed")
    command = [sys.executable, str(REPOSITORY / "tools" / "derive_layouts.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
