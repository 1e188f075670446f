"""The node pack against the stand-in of ComfyUI: schemas, values, patched models, files, messages."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

for _package in ("torch", "diffusers", "transformers", "matplotlib", "PIL"):
    pytest.importorskip(_package, reason=f"no {_package}: the nodes cannot be run")

import numpy as np

import nplora
from comfyui import standin
from consumers.harness import assert_deltas
from consumers.roundtrip import Input, dense
from nplora.fusion.options import numeric_options
from nplora.methods import find_method, known_methods

pytestmark = pytest.mark.consumer
PACK = Path(__file__).resolve().parents[2] / "comfyui"
SD15 = r"unet\.mid_block\.attentions\.0.*attn[12]\.to_[qv]|text_encoder\.text_model\.encoder\.layers\.0\.self_attn"
FLUX = r"transformer\.transformer_blocks\.0\.attn\.to_[qk]"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("comfy")
    with pytest.MonkeyPatch.context() as patch:
        for name, module in standin.modules(root).items():
            patch.setitem(sys.modules, name, module)
        loras = root / "loras"
        for seed, name in enumerate(("cat", "ink", "gold")):
            naming = "diffusers" if name == "ink" else "kohya"
            Input(naming, SD15, ((4,), (2, 8), (3,))[seed]).make(loras / name, "sd15-wide", seed)
        (loras / "flux").mkdir()
        for seed, name in enumerate(("dog", "oil")):
            Input("diffusers", FLUX).make(loras / "flux" / name, "flux1-wide", seed)
        yield root
        for name in [name for name in sys.modules if name.startswith("custom_nodes_nplora")]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def nodes(root):
    pack = standin.load_pack(PACK)
    extension = asyncio.run(pack.comfy_entrypoint())
    assert inspect.iscoroutinefunction(extension.get_node_list)
    return {standin.schema_of(node).node_id: node for node in asyncio.run(extension.get_node_list())}


def loras(root, *names):
    return [nplora.load(root / "loras" / f"{name}.safetensors") for name in names]


def assert_patched(model, clip, expected):
    found = {**model.deltas, **(clip.deltas if clip else {})}
    assert_deltas(found, expected, 2**-22)
    assert model.left == ()


# -------------------------------------------------------------------------------------------------------- schemas


def test_four_nodes_with_lasting_names(nodes):
    """Saved workflows hold these ids: they never change."""
    assert {name: standin.schema_of(node).display_name for name, node in nodes.items()} == {
        "NploraFuseTwo": "Fuse two LoRAs (NP)", "NploraFuseMany": "Fuse N LoRAs", "NploraCompare": "Compare LoRAs",
        "NploraSave": "Save fused LoRA",
    }  # fmt: skip


@pytest.mark.parametrize("node", ["NploraFuseTwo", "NploraFuseMany"])
def test_they_stand_where_a_lora_loader_would(nodes, node):
    schema = standin.schema_of(nodes[node])
    assert [socket.kind for socket in schema.outputs[:2]] == ["MODEL", "CLIP"]
    ids = {socket.id: socket for socket in schema.inputs}
    assert (ids["model"].kind, ids["clip"].kind) == ("MODEL", "CLIP")
    assert ids["clip"].settings["optional"]
    assert {"strength_model", "strength_clip"} <= set(ids)


def test_sockets_are_the_declared_parameters(nodes):
    ids = {socket.id: socket.settings for socket in standin.schema_of(nodes["NploraFuseTwo"]).inputs}
    shown = [p for p in numeric_options(find_method("np")) if p.name in ids]
    assert {"mu", "directions", "side", "subject_strength", "style_strength", "rank", "energy"} <= {
        p.name for p in shown
    }
    for parameter in shown:
        assert parameter.sentence in ids[parameter.name]["tooltip"]
        if parameter.kind == "number":
            assert ids[parameter.name]["default"] == (parameter.default or 0)
            assert ids[parameter.name]["min"] == max(parameter.low, -100)
        if parameter.kind == "choice":
            assert tuple(ids[parameter.name]["options"]) == parameter.choices
    assert ids["mu_unbounded"]["default"] is False


def test_every_method_brings_its_own_sockets(nodes):
    (method,) = [s for s in standin.schema_of(nodes["NploraFuseMany"]).inputs if s.id == "method"]
    options = dict(method.settings["options"])
    assert list(options) == list(known_methods())
    for name, inputs in options.items():
        ids = {socket.id for socket in inputs}
        assert {parameter.name for parameter in find_method(name).options} <= ids


# ------------------------------------------------------------------------------------------------------ what they do


def test_two_files_of_two_namings_patch_a_model_exactly(root, nodes):
    base = standin.Patched("sd15-wide")
    made = standin.run(
        nodes["NploraFuseTwo"], subject="cat.safetensors", style="ink.safetensors", mu=1.5, style_strength=0.5,
        model=base, clip=base, strength_model=1.0, strength_clip=1.0,
    )  # fmt: skip
    model, clip, fusion, report = made.args
    assert_patched(model, clip, dense(nplora.fuse(*loras(root, "cat", "ink"), mu=1.5, style_strength=0.5)))
    assert isinstance(fusion, nplora.Fusion)
    assert "mu = 1.5" in report
    assert "ComfyUI takes all" in report
    assert made.ui == {"text": (report,)}
    assert standin.ProgressBar.moved[-1][0] == standin.ProgressBar.moved[-1][1] > 0


def test_mu_may_be_infinite_and_strengths_act_on_the_patch(root, nodes):
    base = standin.Patched("sd15-wide")
    made = standin.run(
        nodes["NploraFuseTwo"], subject="cat.safetensors", style="ink.safetensors", mu_unbounded=True, model=base,
        clip=base, strength_model=0.5, strength_clip=0.0,
    )  # fmt: skip
    expected = dense(nplora.fuse(*loras(root, "cat", "ink"), mu="inf"))
    model, clip, _, _ = made.args
    assert not any(delta.any() for delta in clip.deltas.values())
    assert_patched(model, None, {name: 0.5 * d for name, d in expected.items() if name.startswith("unet")})


def test_strengths_in_parts_of_the_model(root, nodes):
    base, rules = standin.Patched("sd15-wide"), "style@text=0.5,subject@mid=0"
    only = {"subject": "cat.safetensors", "style": "ink.safetensors"}
    model, clip, _, _ = standin.run(nodes["NploraFuseTwo"], **only, strengths=rules, model=base, clip=base).args
    assert_patched(model, clip, dense(nplora.fuse(*loras(root, "cat", "ink"), strengths=rules)))


def test_a_result_of_a_smaller_rank(root, nodes):
    base = standin.Patched("sd15-wide")
    only = {"subject": "cat.safetensors", "style": "ink.safetensors"}
    fusion = standin.run(nodes["NploraFuseTwo"], **only, rank=3, model=base).args[2]
    assert fusion.parameters["rank"] == 3


def test_a_flux_pair_without_text_encoder(root, nodes):
    made = standin.run(
        nodes["NploraFuseTwo"], subject="flux/dog.safetensors", style="flux/oil.safetensors",
        model=standin.Patched("flux1-wide"),
    )  # fmt: skip
    model, clip, _, _ = made.args
    assert clip is None
    assert_patched(model, clip, dense(nplora.fuse(*loras(root, "flux/dog", "flux/oil"))))


@pytest.mark.parametrize("method", ["np", "linear", "ties"])
def test_three_files_by_a_method(root, nodes, method):
    made = standin.run(
        nodes["NploraFuseMany"], lora_1="cat.safetensors", strength_1=0.5, lora_2="ink.safetensors",
        lora_4="gold.safetensors", strength_4=-1.0, method={"method": method},
        model=(base := standin.Patched("sd15-wide")), clip=base,
    )  # fmt: skip
    rules = "1@*=0.5,2@*=1.0,3@*=-1.0"
    expected = nplora.fuse(*loras(root, "cat", "ink", "gold"), method=method, strengths=rules)
    assert_patched(*made.args[:2], dense(expected))


def test_parameters_in_parts_of_the_model(root, nodes):
    base, rules = standin.Patched("sd15-wide"), "mu@*.attn2.*=inf, directions@text=2"
    two = {"subject": "cat.safetensors", "style": "ink.safetensors", "overrides": rules}
    made = standin.run(nodes["NploraFuseTwo"], **two, model=base, clip=base)
    assert_patched(*made.args[:2], dense(nplora.fuse(*loras(root, "cat", "ink"), overrides=rules)))
    assert "mu = 0.5, inf in *.attn2.*" in made.args[3]
    many = {"lora_1": "cat.safetensors", "lora_2": "ink.safetensors", "method": {"method": "svd"}}
    made = standin.run(nodes["NploraFuseMany"], **many, overrides="rank@attention=1", model=base, clip=base)
    expected = nplora.fuse(*loras(root, "cat", "ink"), method="svd", overrides={"rank": {"attention": 1}})
    assert_patched(*made.args[:2], dense(expected))


def test_a_widget_that_came_later_stands_last(nodes):
    """Saved workflows hold widget values by position."""
    for node in ("NploraFuseTwo", "NploraFuseMany"):
        assert standin.schema_of(nodes[node]).inputs[-1].id == "overrides"


def test_the_picture_and_the_words_of_a_pair(nodes):
    made = standin.run(nodes["NploraCompare"], subject="cat.safetensors", style="ink.safetensors")
    picture, report = made.args
    assert picture.ndim == 4
    assert picture.shape[0] == 1
    assert picture.shape[3] == 3
    numbers = picture.numpy()
    assert 0 <= numbers.min() < 0.5 < numbers.max() <= 1
    assert np.ptp(numbers, axis=(1, 2)).min() > 0.5  # it is no blank page
    assert "overlap" in report
    assert made.ui == {"images": [picture.shape]}


@pytest.mark.parametrize(("folder", "format"), [("loras", "auto"), ("output", "diffusers"), ("output", "peft")])
def test_a_fusion_is_saved_and_listed(root, nodes, folder, format):
    base = standin.Patched("sd15-wide")
    only = {"subject": "cat.safetensors", "style": "gold.safetensors"}
    fusion = standin.run(nodes["NploraFuseTwo"], **only, model=base).args[2]
    if format == "peft":
        fusion = nplora.fuse(*loras(root, "cat", "gold"), components="unet")
    made = standin.run(nodes["NploraSave"], fusion=fusion, name=f"mix/{format}", folder=folder, format=format)
    path = Path(made.args[0])
    assert path.is_relative_to(root / folder / "mix")
    again = nplora.load(path)
    assert_deltas(dense(again), dense(fusion), 2**-22)
    if folder == "loras":
        assert "mix/auto.safetensors" in sys.modules["folder_paths"].get_filename_list("loras")
        (root / "loras" / "mix" / "auto.safetensors").unlink()


def test_the_fingerprint_follows_the_files(root, nodes):
    mark = nodes["NploraFuseTwo"].fingerprint_inputs
    path = root / "loras" / "gold.safetensors"
    before = mark("cat.safetensors", "gold.safetensors", mu=1.0)
    assert mark("cat.safetensors", "gold.safetensors", mu=1.0) == before
    content = path.read_bytes()
    path.write_bytes(content)
    assert mark("cat.safetensors", "gold.safetensors", mu=1.0) != before


# ------------------------------------------------------------------------------------------------------- messages


def test_messages(root, nodes):
    base = standin.Patched("sd15-wide")
    with pytest.raises(ValueError, match="Value not in list: subject"):
        standin.run(nodes["NploraFuseTwo"], subject="dog.safetensors", style="ink.safetensors", model=base)
    with pytest.raises(nplora.UsageError) as caught:
        standin.run(
            nodes["NploraFuseTwo"], subject="cat.safetensors", style="ink.safetensors", directions="few", model=base
        )
    assert str(caught.value).startswith("directions is out of range: expected")
    fusion = nplora.fuse(*loras(root, "cat", "ink"))
    with pytest.raises(nplora.UsageError) as caught:
        standin.run(nodes["NploraSave"], fusion=fusion, name="../../outside")
    assert str(caught.value) == (
        "../../outside: the name leads out of the folder: expected a name inside loras. Use no .. in it."
    )
    standin.run(nodes["NploraSave"], fusion=fusion, name="twice", folder="output")
    with pytest.raises(nplora.OutputError) as caught:
        standin.run(nodes["NploraSave"], fusion=fusion, name="twice", folder="output")
    assert str(caught.value).endswith("exists already. Choose another name, or add the node's overwrite.")
    standin.run(nodes["NploraSave"], fusion=fusion, name="twice", folder="output", overwrite=True)


# --------------------------------------------------------------------------------------------- the pack as a folder


def test_the_folder_is_what_the_registry_asks_for():
    project = tomllib.loads((PACK / "pyproject.toml").read_text())
    assert project["project"]["name"] == "nplora-nodes"
    assert "comfyui" not in project["project"]["name"].lower()
    assert project["project"]["version"] == nplora.__version__
    assert {"PublisherId", "DisplayName"} <= set(project["tool"]["comfy"])
    assert re.fullmatch(r"[A-Za-z](?:[-_.]?[A-Za-z0-9])*", project["project"]["name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["project"]["version"])
    addresses = [project["tool"]["comfy"].get("Icon"), *project["project"].get("urls", {}).values()]
    assert all(address.startswith("https://") for address in addresses if address is not None)  # none is left empty
    readme = (PACK / "README.md").read_text()
    assert 'Repository = "..."' in readme
    assert 'Icon = "..."' in readme
    assert project["project"]["dependencies"] == (PACK / "requirements.txt").read_text().split()
    assert 'width="400" height="400"' in (PACK / "icon.svg").read_text()  # square, and no larger


@pytest.mark.parametrize("path", sorted((PACK / "example_workflows").glob("*.json")), ids=lambda path: path.stem)
def test_example_workflows_fit_the_nodes(nodes, path):
    """Links join sockets of one type that are there, and every widget has a value."""
    flow = json.loads(path.read_text())
    by_id = {node["id"]: node for node in flow["nodes"]}
    assert len(by_id) == len(flow["nodes"])
    for link, source, out, target, into, kind in flow["links"]:
        assert by_id[source]["outputs"][out]["type"] == kind
        assert link in by_id[source]["outputs"][out]["links"]
        assert by_id[target]["inputs"][into]["type"] == kind
        assert by_id[target]["inputs"][into]["link"] == link
    ours = [node for node in flow["nodes"] if node["type"].startswith("Nplora")]
    assert ours
    for node in ours:
        schema = standin.schema_of(nodes[node["type"]])
        assert [(o["name"], o["type"]) for o in node["outputs"]] == [
            (o.settings["display_name"], o.kind) for o in schema.outputs
        ]
        wired = [(i["name"], i["type"]) for i in node["inputs"]]
        assert wired == [(i.id, i.kind) for i in schema.inputs if i.kind not in standin.WIDGETS]
        widgets = [i for i in schema.inputs if i.kind in standin.WIDGETS]
        if not any(i.kind == "DYNAMIC_COMBO" for i in widgets):
            assert len(node["widgets_values"]) == len(widgets)
            for socket, value in zip(widgets, node["widgets_values"], strict=True):
                if not (socket.kind == "COMBO" and str(value).endswith(".safetensors")):
                    standin._checked(socket, value)


@pytest.fixture(scope="module")
def pictures(root):
    spec = importlib.util.spec_from_file_location("comfy_pictures", PACK.parent / "tools" / "comfy_pictures.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_drawings_are_those_of_the_nodes(nodes, pictures):
    """After a change: .venv/bin/python tools/comfy_pictures.py."""
    drawings = pictures.drawings(standin, nodes)
    assert set(drawings) == {path.name for path in (PACK / "images").glob("*.svg")}
    for name, drawing in drawings.items():
        assert (PACK / "images" / name).read_text() == drawing, name
        assert f"images/{name}" in (PACK / "README.md").read_text()


@pytest.mark.parametrize("path", sorted((PACK / "example_workflows").glob("*.json")), ids=lambda path: path.stem)
def test_no_node_of_an_example_lies_on_another(nodes, pictures, path):
    flow = json.loads(path.read_text())
    boxes = pictures.workflow(standin, nodes, flow)
    places = []
    for node in flow["nodes"]:
        box, (width, height) = boxes[node["id"]], node["size"]
        if box.ours:
            assert height >= box.height, node["type"]
        places.append((box.x, box.y, box.x + width, box.y + max(height, box.height)))
    for place, (x, y, right, foot) in enumerate(places):
        assert not any(x < r and u < right and y < f and v < foot for u, v, r, f in places[:place]), place
