"""The nodes. Each one is a schema made from nplora's declared parameters, and one call of the library."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ComfyExtension, io, ui

from nplora import Fusion, OutputError, compare, fuse
from nplora.fusion.options import numeric_options
from nplora.methods import find_method, known_methods
from nplora.parameters import DTYPE, FORMAT, MU, OVERRIDES, STRENGTHS

from . import files
from .sockets import sockets, values

CATEGORY = "loaders/nplora"
MOST = 6  # LoRAs of one node; a chain of nodes takes more
FUSION = io.Custom("NPLORA_FUSION")
# Saved workflows hold widget values by position: a new name goes to the end, after the loader's own sockets.
SHOWN = ("mu", "directions", "side", "subject_strength", "style_strength", "calibrate", "rank", "energy")
_OPTIONS = {parameter.name: parameter for parameter in numeric_options(find_method("np"), 2)}
PAIR = tuple(_OPTIONS[name] for name in SHOWN)
PARTS = (STRENGTHS, OVERRIDES)  # rules for parts of the model


def _loader_sockets() -> list[Any]:
    """As on ComfyUI's own LoRA loader, so that the node takes its place."""
    tips = "How strongly the fused LoRA acts on the {}; 1 is the fusion as it is."
    return [
        io.Model.Input("model", tooltip="The diffusion model, from a checkpoint or another LoRA loader."),
        *(
            io.Float.Input(f"strength_{part}", default=1.0, min=-100.0, max=100.0, step=0.05, tooltip=tips.format(name))
            for part, name in (("model", "diffusion model"), ("clip", "text encoders"))
        ),
        io.Clip.Input("clip", optional=True, tooltip="The text encoders; may be left open."),
    ]


def _outputs() -> list[Any]:
    return [
        io.Model.Output(display_name="MODEL"), io.Clip.Output(display_name="CLIP"),
        FUSION.Output(display_name="fusion"), io.String.Output(display_name="report"),
    ]  # fmt: skip


def _choice(id: str, tip: str, optional: bool = False) -> Any:
    options = [files.NONE, *files.names()] if optional else files.names()
    return io.Combo.Input(id, options=options, default=files.NONE if optional else None, tooltip=tip)


def _fused(
    chosen: list[str], method: str, given: dict[str, Any], model: Any, clip: Any, strengths: tuple[float, float]
) -> io.NodeOutput:
    fusion = fuse(*files.load(chosen), method=method, progress=files.progress(), **given)
    path, report = files.written(fusion, files.fingerprint(chosen, method, sorted(given.items())))
    patched = files.apply(path, model, clip, *strengths)
    text = files.told(path, report)
    return io.NodeOutput(*patched, fusion, text, ui=ui.PreviewText(text))


class FuseTwo(io.ComfyNode):
    """A subject and a style by NP-LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NploraFuseTwo", display_name="Fuse two LoRAs (NP)", category=CATEGORY,
            description="Fuse a subject and a style exactly; the style's directions are protected from the subject "
            "(NP-LoRA). Stands where a LoRA loader would.",
            search_aliases=["np-lora", "merge lora", "null space projection"],
            inputs=[
                _choice("subject", "The LoRA of the subject: a person, an animal, a thing."),
                _choice("style", "The LoRA of the style, whose directions are protected."),
                *sockets(PAIR),
                *_loader_sockets(),
                *sockets(PARTS),
            ],
            outputs=_outputs(),
        )  # fmt: skip

    @classmethod
    def execute(
        cls, subject: str, style: str, model: Any, strength_model: float, strength_clip: float, clip: Any = None,
        **given: Any,
    ) -> io.NodeOutput:  # fmt: skip
        asked = values((*PAIR, *PARTS), given)
        return _fused([subject, style], "np", asked, model, clip, (strength_model, strength_clip))

    @classmethod
    def fingerprint_inputs(cls, subject: str, style: str, **_given: Any) -> str:
        return files.fingerprint([subject, style])


class FuseMany(io.ComfyNode):
    """Two LoRAs or more, by any method."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        methods = [io.DynamicCombo.Option(name, sockets(m.options)) for name, m in known_methods().items()]
        loras = []
        for index in range(1, MOST + 1):
            loras.append(_choice(f"lora_{index}", f"LoRA number {index}; each gives way to those after it.", index > 2))
            loras.append(
                io.Float.Input(
                    f"strength_{index}", default=1.0, min=-100.0, max=100.0, step=0.05,
                    tooltip=f"Strength of LoRA number {index}, on its product; 0 leaves it out.",
                )
            )  # fmt: skip
        return io.Schema(
            node_id="NploraFuseMany", display_name="Fuse N LoRAs", category=CATEGORY,
            description="Fuse two to six LoRAs by any method of nplora. Stands where a LoRA loader would.",
            search_aliases=["merge lora", "ties", "dare", "svd", "lora sum"],
            inputs=[
                *loras,
                io.DynamicCombo.Input("method", options=methods, tooltip="How to fuse: see `nplora methods`."),
                *_loader_sockets(),
                *sockets((OVERRIDES,)),
            ],
            outputs=_outputs(),
        )  # fmt: skip

    @classmethod
    def execute(
        cls, method: dict[str, Any], model: Any, strength_model: float, strength_clip: float, clip: Any = None,
        **given: Any,
    ) -> io.NodeOutput:  # fmt: skip
        chosen, strengths = cls._chosen(given)
        name = method["method"]
        rules = ",".join(f"{place}@*={strength!r}" for place, strength in enumerate(strengths, 1))
        asked = {**values(find_method(name).options, method), **values((OVERRIDES,), given), STRENGTHS.name: rules}
        return _fused(chosen, name, asked, model, clip, (strength_model, strength_clip))

    @classmethod
    def fingerprint_inputs(cls, **given: Any) -> str:
        return files.fingerprint(cls._chosen(given)[0])

    @classmethod
    def _chosen(cls, given: dict[str, Any]) -> tuple[list[str], list[float]]:
        numbers = [n for n in range(1, MOST + 1) if given.get(f"lora_{n}", files.NONE) != files.NONE]
        return [given[f"lora_{n}"] for n in numbers], [float(given.get(f"strength_{n}", 1.0)) for n in numbers]


class Compare(io.ComfyNode):
    """What two LoRAs have to do with each other."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NploraCompare", display_name="Compare LoRAs", category=CATEGORY, is_output_node=True,
            description="How much of the subject lies in the style's directions, module by module, what that means for "
            "mu, and a picture of it. Nothing is written.",
            inputs=[
                _choice("subject", "The LoRA of the subject."),
                _choice("style", "The LoRA of the style."),
                *sockets((MU,)),
            ],
            outputs=[io.Image.Output(display_name="picture"), io.String.Output(display_name="report")],
        )  # fmt: skip

    @classmethod
    def execute(cls, subject: str, style: str, **given: Any) -> io.NodeOutput:
        found = compare(*files.load([subject, style]), **values((MU,), given), progress=files.progress())
        picture = files.picture_of(found)
        text = "\n".join([found["sentence"], found["suggestion"]["reason"], *found["findings"]])
        return io.NodeOutput(picture, text, ui=ui.PreviewImage(picture, cls=cls))

    @classmethod
    def fingerprint_inputs(cls, subject: str, style: str, **_given: Any) -> str:
        return files.fingerprint([subject, style])


class Save(io.ComfyNode):
    """A fusion as a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NploraSave", display_name="Save fused LoRA", category=CATEGORY, is_output_node=True,
            description="Write a fusion as one LoRA file, whole or not at all, with its recipe in the header.",
            inputs=[
                FUSION.Input("fusion", tooltip="From a node that fuses."),
                io.String.Input("name", default="nplora/fused", tooltip="File name; folders are made as needed."),
                io.Combo.Input("folder", options=["loras", "output"], default="loras",
                               tooltip="ComfyUI's LoRA folder, whose files its loaders list, or its output folder."),
                *sockets((FORMAT, DTYPE)),
                io.Boolean.Input("overwrite", default=False, tooltip="Replace a file of that name."),
            ],
            outputs=[io.String.Output(display_name="path")],
        )  # fmt: skip

    @classmethod
    def execute(cls, fusion: Fusion, name: str, folder: str, format: str, dtype: str, overwrite: bool) -> io.NodeOutput:
        path = files.save_target(folder, name, format)
        asked = files.safest_format(tuple(fusion.inputs.values())) if format == FORMAT.default else format
        try:
            fusion.save(path, format=asked, dtype=dtype, overwrite=overwrite)
        except OutputError as error:
            error.hint = error.hint and error.hint.replace("--overwrite", "the node's overwrite")
            raise
        return io.NodeOutput(str(path), ui=ui.PreviewText(f"Saved {path}"))


class NploraExtension(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [FuseTwo, FuseMany, Compare, Save]


async def comfy_entrypoint() -> ComfyExtension:
    """What ComfyUI calls to find the nodes."""
    return NploraExtension()
