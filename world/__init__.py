"""A miniature Stable Diffusion ("the world"): its drawings, its training and its judges.

Nothing here is needed to use the shipped pipeline in `world/model`; it is the recipe that made it.
"""
