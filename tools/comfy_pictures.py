"""Draw the pictures of comfyui/README.md: `.venv/bin/python tools/comfy_pictures.py`.

The nodes are drawn from their own definitions and the workflow from its file, through the stand-in of ComfyUI that the
tests use; no ComfyUI takes part. The picture of "Compare LoRAs" is what that node gives for two LoRAs of this
repository.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACK = ROOT / "comfyui"
SUBJECT, STYLE = "subject-fox-r4-own.safetensors", "style-gold-r4-shared.safetensors"
TITLE, SLOT, WIDGET, EDGE = 30, 20, 24, 8  # heights of rows as ComfyUI lays them out, in pixels
COLOURS = {
    "MODEL": "#B39DDB", "CLIP": "#FFD500", "VAE": "#FF6E6E", "CONDITIONING": "#FFA931", "LATENT": "#FF9CF9",
    "IMAGE": "#64B5F6", "NPLORA_FUSION": "#56B4E9", "STRING": "#77DD88",
}  # fmt: skip
WIDGETS = {  # of ComfyUI's own nodes in the example workflows
    "CheckpointLoaderSimple": ["ckpt_name"], "LoraLoader": ["lora_name", "strength_model", "strength_clip"],
    "CLIPTextEncode": ["text"], "EmptyLatentImage": ["width", "height", "batch_size"],
    "KSampler": ["seed", "control after generate", "steps", "cfg", "sampler_name", "scheduler", "denoise"],
    "VAEDecode": [], "SaveImage": ["filename_prefix"], "PreviewImage": [], "PreviewAny": [], "Note": [],
}  # fmt: skip


@dataclass(frozen=True)
class Box:
    """A node as it is drawn: sockets are (name, type), widgets (name, value)."""

    title: str
    x: int
    y: int
    width: int
    inputs: Sequence[tuple[str, str]]
    outputs: Sequence[tuple[str, str]]
    widgets: Sequence[tuple[str, str]]
    ours: bool

    @property
    def height(self) -> int:
        """What its rows need."""
        return TITLE + SLOT * max(len(self.inputs), len(self.outputs)) + WIDGET * len(self.widgets) + EDGE

    def slot(self, index: int, out: bool) -> tuple[int, int]:
        """Where a link begins or ends."""
        return self.x + (self.width if out else 0), self.y + TITLE + SLOT * index + SLOT // 2


def load_nodes(root: Path) -> tuple[ModuleType, dict[str, Any]]:
    """The stand-in and the pack's nodes by id, with ComfyUI's folders under `root`."""
    sys.path.insert(0, str(ROOT / "tests"))
    from comfyui import standin

    sys.modules.update(standin.modules(root))  # type: ignore[arg-type]
    extension = asyncio.run(standin.load_pack(PACK).comfy_entrypoint())
    return standin, {node.define_schema().node_id: node for node in asyncio.run(extension.get_node_list())}


def rows_of(standin: ModuleType, sockets: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """The widgets of a node as ComfyUI shows them at first, those of the first choice of a dynamic combo too."""
    for socket in sockets:
        if socket.kind == "DYNAMIC_COMBO":
            name, inner = socket.settings["options"][0]
            yield socket.id, name
            yield from rows_of(standin, inner)
        elif socket.kind in standin.WIDGETS:
            default = socket.settings.get("default")
            yield socket.id, "(a file)" if default is None else _shown(default)


def _shown(value: object) -> str:
    return {"": "(empty)", "True": "yes", "False": "no"}.get(str(value), str(value))


def definitions(standin: ModuleType, nodes: Mapping[str, Any]) -> list[Box]:
    """Every node of the pack, side by side."""
    boxes, x = [], 20
    for node in nodes.values():
        schema, width = standin.schema_of(node), 330
        inputs = [(s.id, s.kind) for s in schema.inputs if s.kind not in standin.WIDGETS]
        outputs = [(s.settings["display_name"], s.kind) for s in schema.outputs]
        rows = list(rows_of(standin, schema.inputs))
        boxes.append(Box(schema.display_name, x, 20, width, inputs, outputs, rows, True))
        x += width + 30
    return boxes


def workflow(standin: ModuleType, nodes: Mapping[str, Any], flow: Mapping[str, Any]) -> dict[int, Box]:
    """The nodes of a workflow file, by their ids in it."""
    boxes = {}
    for node in flow["nodes"]:
        ours = nodes.get(node["type"])
        schema = standin.schema_of(ours) if ours else None
        names = [name for name, _ in rows_of(standin, schema.inputs)] if schema else WIDGETS[node["type"]]
        values = [_shown(value) for value in node.get("widgets_values", ())]
        boxes[node["id"]] = Box(
            schema.display_name if schema else node["type"], *node["pos"], node["size"][0],
            [(i["name"], i["type"]) for i in node.get("inputs", ())],
            [(o["name"], o["type"]) for o in node.get("outputs", ())],
            list(zip(names, values, strict=True)) if names else [], ours is not None,
        )  # fmt: skip
    return boxes


def svg(boxes: Sequence[Box], links: Sequence[tuple[Box, int, Box, int, str]] = ()) -> str:
    """A drawing of nodes and links."""
    width = max(box.x + box.width for box in boxes) + 20
    height = max(box.y + box.height for box in boxes) + 20
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        ' font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#1e1e22"/>',
    ]
    for source, out, target, into, kind in links:
        (x, y), (u, v) = source.slot(out, True), target.slot(into, False)
        bend = max(40, abs(u - x) // 2)
        path = f"M{x} {y} C{x + bend} {y} {u - bend} {v} {u} {v}"
        lines.append(f'<path d="{path}" fill="none" stroke="{COLOURS[kind]}" stroke-width="2.5"/>')
    for box in boxes:
        lines += _drawn(box)
    return "\n".join([*lines, "</svg>", ""])


def _drawn(box: Box) -> Iterator[str]:
    edge = 'stroke="#56B4E9" stroke-width="3"' if box.ours else 'stroke="#55555c"'
    yield f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="8" fill="#35353b" {edge}/>'
    yield _text(box.x + 12, box.y + 20, box.title, 'fill="#fff" font-weight="bold"')
    for out, sockets in ((False, box.inputs), (True, box.outputs)):
        for index, (name, kind) in enumerate(sockets):
            x, y = box.slot(index, out)
            yield f'<circle cx="{x}" cy="{y}" r="5" fill="{COLOURS[kind]}"/>'
            yield _text(x + (-12 if out else 12), y + 4, name, 'fill="#ccc"' + (' text-anchor="end"' if out else ""))
    top = box.y + TITLE + SLOT * max(len(box.inputs), len(box.outputs))
    for index, (name, value) in enumerate(box.widgets):
        y = top + WIDGET * index
        at = f'x="{box.x + 10}" y="{y + 1}" width="{box.width - 20}" height="{WIDGET - 4}"'
        yield f'<rect {at} rx="9" fill="#222226"/>'
        yield _text(box.x + 20, y + 15, name, 'fill="#999"')
        yield _text(box.x + box.width - 20, y + 15, _short(value), 'fill="#ddd" text-anchor="end"')


def _short(value: str, most: int = 34) -> str:
    return value if len(value) <= most else value[: most - 3] + "..."


def _text(x: int, y: int, text: str, style: str) -> str:
    return f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>'


def drawings(standin: ModuleType, nodes: Mapping[str, Any]) -> dict[str, str]:
    """File name -> drawing."""
    flow = json.loads((PACK / "example_workflows" / "fuse_two_and_save.json").read_text())
    boxes = workflow(standin, nodes, flow)
    links = [(boxes[a], out, boxes[b], into, kind) for _, a, out, b, into, kind in flow["links"]]
    shown = [boxes[node["id"]] for node in flow["nodes"] if node["type"] != "Note"]
    return {"workflow.svg": svg(shown, links), "nodes.svg": svg(definitions(standin, nodes))}


def compared(standin: ModuleType, nodes: Mapping[str, Any], path: Path) -> None:
    """The picture that the node gives for two LoRAs of this repository."""
    from PIL import Image

    picture = standin.run(nodes["NploraCompare"], subject=SUBJECT, style=STYLE).args[0]
    Image.fromarray((picture[0].numpy() * 255).round().astype("uint8")).save(path, optimize=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        standin, nodes = load_nodes(Path(folder))
        loras = Path(folder) / "loras"
        for name in (SUBJECT, STYLE):
            (loras / name).symlink_to(ROOT / "world" / "loras" / name)
        for name, drawing in drawings(standin, nodes).items():
            (PACK / "images" / name).write_text(drawing, encoding="utf-8")
        compared(standin, nodes, PACK / "images" / "compare.png")


if __name__ == "__main__":
    main()
