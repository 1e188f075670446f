"""The documented part of ComfyUI that the node pack stands on, as plain as it can be: test code only.

Written from the public documentation of the V3 schema (docs.comfy.org, "V3 migration") and from facts about the
loader, never from ComfyUI's source, which is GPL. Where ComfyUI would refuse something, so does this.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file

from consumers import comfy_rules
from consumers.harness import Deltas


class Socket:
    """An input or output; inputs have an id, the name of the argument of `execute`."""

    def __init__(self, kind: str, id: str | None = None, **settings: Any) -> None:
        self.kind, self.id, self.settings = kind, id, settings
        unknown = set(settings) - ALLOWED[kind] - COMMON
        assert not unknown, f"{kind} has no {unknown}"


COMMON = {"display_name", "optional", "tooltip", "lazy", "raw_link", "advanced", "default", "socketless", "force_input"}
NUMBER = {"min", "max", "step", "display_mode", "control_after_generate"}
ALLOWED: dict[str, set[str]] = {
    "FLOAT": NUMBER | {"round"}, "INT": NUMBER, "BOOLEAN": {"label_on", "label_off"}, "COMBO": {"options"},
    "STRING": {"multiline", "placeholder", "dynamic_prompts"}, "DYNAMIC_COMBO": {"options"},
    **{kind: set() for kind in ("MODEL", "CLIP", "IMAGE", "NPLORA_FUSION")},
}  # fmt: skip
WIDGETS = ("FLOAT", "INT", "BOOLEAN", "COMBO", "STRING", "DYNAMIC_COMBO")


class _Type:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def Input(self, id: str, **settings: Any) -> Socket:
        return Socket(self.kind, id, **settings)

    def Output(self, **settings: Any) -> Socket:
        return Socket(self.kind, None, **settings)


class _DynamicCombo(_Type):
    @staticmethod
    def Option(key: str, inputs: list[Socket]) -> tuple[str, list[Socket]]:
        return key, inputs


@dataclass
class Schema:
    node_id: str
    display_name: str | None = None
    category: str = "sd"
    description: str = ""
    inputs: list[Socket] = field(default_factory=list)
    outputs: list[Socket] = field(default_factory=list)
    hidden: list[Any] = field(default_factory=list)
    search_aliases: list[str] = field(default_factory=list)
    is_output_node: bool = False
    is_experimental: bool = False
    not_idempotent: bool = False


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.args, self.ui = args, ui


class ComfyNode:
    pass


class ComfyExtension:
    pass


def schema_of(node: type) -> Schema:
    """A node's schema, checked as ComfyUI does, and against `execute`."""
    schema = node.define_schema()
    ids = [socket.id for socket in schema.inputs]
    assert len(set(ids)) == len(ids), "two inputs have one id"
    parameters = inspect.signature(node.execute).parameters
    assert all(name in ids for name, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD)
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        assert set(ids) == set(parameters)
    for socket in every_socket(schema.inputs):
        check_default(socket)
    return schema


def every_socket(sockets: list[Socket]) -> list[Socket]:
    """The sockets and those inside dynamic combos."""
    found = []
    for socket in sockets:
        found.append(socket)
        if socket.kind == "DYNAMIC_COMBO":
            found += [inner for _, inputs in socket.settings["options"] for inner in every_socket(inputs)]
    return found


def check_default(socket: Socket) -> None:
    default = socket.settings.get("default")
    if socket.kind in ("FLOAT", "INT"):
        low, high = socket.settings["min"], socket.settings["max"]
        assert abs(low) < float("inf") and abs(high) < float("inf"), f"{socket.id}: a widget needs an end"  # noqa: PT018
        assert low <= default <= high
        assert isinstance(default, float if socket.kind == "FLOAT" else int)
    if socket.kind == "COMBO" and default is not None:
        assert default in socket.settings["options"]


def run(node: type, **given: Any) -> NodeOutput:
    """Execute a node as ComfyUI would: what is not given has its widget's default, and values are checked."""
    arguments = {}
    for socket in schema_of(node).inputs:
        if socket.id in given:
            arguments[socket.id] = _checked(socket, given.pop(socket.id))
        elif socket.kind == "DYNAMIC_COMBO" or "default" in socket.settings:
            arguments[socket.id] = _checked(socket, socket.settings.get("default"))
        else:
            assert socket.settings.get("optional"), f"{socket.id} is required"
    assert not given, f"no input is called {given}"
    if hasattr(node, "fingerprint_inputs"):
        node.fingerprint_inputs(**arguments)
    return node.execute(**arguments)


def _checked(socket: Socket, value: Any) -> Any:
    settings = socket.settings
    if socket.kind == "DYNAMIC_COMBO":
        chosen = value or {socket.id: settings["options"][0][0]}
        inputs = dict(settings["options"])[chosen[socket.id]]
        inner = {s.id: _checked(s, chosen.get(s.id, s.settings.get("default"))) for s in inputs}
        return {socket.id: chosen[socket.id], **inner}
    if socket.kind == "COMBO" and value not in settings["options"]:
        raise ValueError(f"Value not in list: {socket.id}: {value!r}")
    if socket.kind in ("FLOAT", "INT"):
        if not settings["min"] <= value <= settings["max"]:
            raise ValueError(f"Value {value} is out of range: {socket.id}")
        return (float if socket.kind == "FLOAT" else int)(value)
    return value


@dataclass(frozen=True)
class Patched:
    """A model of the stand-in: which pipeline of `consumers.tiny` it is, and what patches add to its weights."""

    kind: str
    deltas: Deltas = field(default_factory=dict)
    left: tuple[str, ...] = ()


def load_lora_for_models(
    model: Patched, clip: Patched | None, lora: dict[str, torch.Tensor], strength_model: float, strength_clip: float
) -> tuple[Patched, Patched | None]:
    """What ComfyUI's loader adds, by its rules on keys; keys that nobody takes are kept in `left`."""
    deltas, left = comfy_rules.read(model.kind, lora)
    text = {name: delta for name, delta in deltas.items() if name.startswith("text_encoder")}
    rest = {name: delta for name, delta in deltas.items() if name not in text}

    def scaled(found: Deltas, strength: float) -> Deltas:
        return {name: delta.__class__(strength * delta.up, delta.down) for name, delta in found.items()}

    patched = Patched(model.kind, scaled(rest, strength_model), tuple(left))
    return patched, clip and Patched(clip.kind, scaled(text, strength_clip), tuple(left))


class ProgressBar:
    moved: list[tuple[int, int]] = []  # noqa: RUF012 - of all bars, for the tests

    def __init__(self, total: int) -> None:
        self.total = total

    def update_absolute(self, value: int, total: int | None = None) -> None:
        self.moved.append((value, total or self.total))


def modules(root: Path) -> dict[str, ModuleType | SimpleNamespace]:
    """What `import` finds: comfy_api.latest, comfy.sd, comfy.utils and folder_paths over folders under `root`."""
    loras, temp, output = (root / name for name in ("loras", "temp", "output"))
    for folder in (loras, temp, output):
        folder.mkdir()

    def full_path(kind: str, name: str) -> str:
        assert kind == "loras"
        if not (loras / name).is_file():
            raise FileNotFoundError(name)
        return str(loras / name)

    io = SimpleNamespace(
        Schema=Schema, ComfyNode=ComfyNode, NodeOutput=NodeOutput, Custom=_Type, Model=_Type("MODEL"),
        Clip=_Type("CLIP"), Image=_Type("IMAGE"), Float=_Type("FLOAT"), Int=_Type("INT"), Boolean=_Type("BOOLEAN"),
        String=_Type("STRING"), Combo=_Type("COMBO"), DynamicCombo=_DynamicCombo("DYNAMIC_COMBO"),
    )  # fmt: skip
    ui = SimpleNamespace(
        PreviewText=lambda text: {"text": (text,)}, PreviewImage=lambda image, cls=None: {"images": [image.shape]}
    )
    latest = _module("comfy_api.latest", io=io, ui=ui, ComfyExtension=ComfyExtension)
    sd = _module("comfy.sd", load_lora_for_models=load_lora_for_models)
    utils = _module("comfy.utils", load_torch_file=_load_torch_file, ProgressBar=ProgressBar)
    paths = _module(
        "folder_paths",
        get_filename_list=lambda kind: sorted(p.relative_to(loras).as_posix() for p in loras.rglob("*.safetensors")),
        get_full_path_or_raise=full_path,
        get_folder_paths=lambda kind: [str(loras)],
        get_temp_directory=lambda: str(temp),
        get_output_directory=lambda: str(output),
    )
    return {
        "comfy_api": _module("comfy_api", latest=latest), "comfy_api.latest": latest, "folder_paths": paths,
        "comfy": _module("comfy", sd=sd, utils=utils), "comfy.sd": sd, "comfy.utils": utils,
    }  # fmt: skip


def _load_torch_file(path: str, safe_load: bool = False) -> dict[str, torch.Tensor]:
    assert safe_load, "pickle must stay out"
    return load_file(path)


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module


def load_pack(folder: Path) -> ModuleType:
    """The node pack, as ComfyUI loads a folder of custom_nodes: by its path, under a name of its own."""
    from importlib.util import module_from_spec, spec_from_file_location

    name = "custom_nodes_nplora"
    spec = spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Call = Callable[..., Any]
