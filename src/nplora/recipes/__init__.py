"""Recipes: a fusion, or many, as a YAML value that a person writes, a fused file carries, and a run reproduces."""

from .making import Outcome
from .reading import read_recipe_file, read_recipe_text
from .running import run_recipe
from .schema import recipe_schema
from .value import Input, Output, Recipe
from .written import recipe_of, recipe_yaml

__all__ = [
    "Input",
    "Outcome",
    "Output",
    "Recipe",
    "read_recipe_file",
    "read_recipe_text",
    "recipe_of",
    "recipe_schema",
    "recipe_yaml",
    "run_recipe",
]  # fmt: skip
