"""A small Wan pipeline with a subject "cat" and a style "ink", and what their fusion should be."""

from __future__ import annotations

import numpy as np
import pytest

from live.dense import deltas, projected
from live.pictures import PAIRS
from nplora import UsageError

MARKS = [
    pytest.mark.consumer,
    pytest.mark.filterwarnings(
        "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
    ),  # peft, of transformers
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),  # two adapters are what is meant
]
WAN = PAIRS["Wan"]
BOTH = "blocks.0.attn1.to_q"  # a layer that both change
STYLE_ALONE = "blocks.0.attn1.to_k"


def expected(pipe, mu=0.5, side="input", strengths=(1.0, 1.0)) -> dict[str, np.ndarray]:
    """The dense fusion of what the two adapters are at the moment."""
    cat, ink = (deltas(pipe.transformer, name) for name in ("cat", "ink"))
    w_c, w_s = strengths
    subjects = {path: projected(d, ink[path], mu, side) if path in ink else d for path, d in cat.items()}
    return {
        path: w_c * subjects.get(path, 0) + w_s * ink.get(path, 0) for path in (*cat, *(p for p in ink if p not in cat))
    }


def message(call, kind=UsageError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)
