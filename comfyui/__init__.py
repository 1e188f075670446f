"""nplora for ComfyUI: fuse, compare and save LoRAs (V3 nodes; the work is done by the nplora package)."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
