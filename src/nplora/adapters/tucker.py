"""Tucker (CP) LoCon: ``dW[o,c,kl] = sum_ij up[o,i] mid[i,j,kl] down[j,c]``, contracted to a plain LoCon exactly."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage import Tensor, wider
from . import Factor, Group, Kind, LowRank, Update, lora


@dataclass(frozen=True, slots=True)
class Contracted:
    """The down factor ``A[i,(c,kl)] = sum_j mid[i,j,kl] down[j,c]`` of a Tucker module, computed in float64.

    Its type is float32 at least, since the products do not fit the stored 16 bits.
    """

    mid: Tensor
    down: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.mid.shape[0], prod(self.down.shape[1:]) * prod(self.mid.shape[2:])

    @property
    def dtype(self) -> str:
        return wider([self.mid.dtype, self.down.dtype, "F32"])

    @property
    def keys(self) -> tuple[str, ...]:
        return self.mid.key, self.down.key

    def read(self) -> NDArray[Any]:
        mid, down = self.mid.read().astype(np.float64), self.down.read().astype(np.float64)
        flat = mid.reshape(*mid.shape[:2], -1)
        contracted: NDArray[Any] = np.einsum("ijk,jc->ick", flat, down.reshape(down.shape[0], -1)).reshape(self.shape)
        return contracted


def _checked(group: Group) -> tuple[Factor, Contracted]:
    for role in ("up", "down"):
        if role not in group.tensors:
            raise group.error("half of the module is missing", "mid", expected=f"its {role} factor beside it")
    up, mid, down = Factor(group.tensors["up"]), group.tensors["mid"], group.tensors["down"]
    if len(mid.shape) < 3 or mid.shape[0] != up.shape[1] or mid.shape[1] != down.shape[0] or prod(down.shape[2:]) != 1:
        raise group.error(
            "the core does not fit the factors", "mid", expected=f"shape ({up.shape[1]}, {down.shape[0]}, k, k)",
            got=f"shape {mid.shape}",
        )  # fmt: skip
    return up, Contracted(mid, down)


def size(group: Group) -> tuple[int, int] | None:
    up, down = _checked(group)
    return up.shape[0], down.shape[1]


def read(group: Group, scale: float, scale_from: str) -> Update:
    up, down = _checked(group)
    return LowRank(up, down, scale, scale_from, tuple(group.tensors["mid"].shape[2:]), kind="LoCon (Tucker)")


KINDS = (Kind("LoCon (Tucker)", frozenset({"mid"}), size, read, priority=1, alpha_rank=lora.alpha_rank),)
