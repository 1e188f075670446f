"""Styles: each is one pure function from a `Drawing` to an RGB picture, registered by the decorator `style`.

To add one, write the function in the file of its kind; nothing else lists it.
"""

from world.styles.registry import Style, all_styles, style, style_named

__all__ = ["Style", "all_styles", "style", "style_named"]
