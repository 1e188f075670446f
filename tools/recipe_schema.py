"""Write docs/recipe.schema.json from the code: `.venv/bin/python tools/recipe_schema.py`.

`tests/recipes/test_schema.py` fails where the file says something else than the code.
"""

from __future__ import annotations

import json
from pathlib import Path

from nplora.recipes import recipe_schema

FILE = Path(__file__).resolve().parents[1] / "docs" / "recipe.schema.json"


def text() -> str:
    return json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
