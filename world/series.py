"""Which LoRAs the world's series holds, in the order of their worth, and which of them the repository ships.

Two arms are needed to show what a shared training seed does: `shared` trains with seed 0 whatever the content, `own`
with a seed derived from the content. Two `shared` files started from the same A; two `own` files did not.
"""

from dataclasses import dataclass

from world.styles import all_styles
from world.subjects import all_subjects

ARMS = ("shared", "own")
RANKS = (4, 8)  # of every subject and style
REPEATS = 3  # training seeds of every rank-4 LoRA
SHIPPED_SUBJECTS = ("fox", "turtle", "guitar", "owl", "rocket", "umbrella")
SHIPPED_STYLES = (
    "gold",
    "thermal",
    "wood",
    "spotlight",
    "crayon",
    "night",
    "papercut",
    "riso",
    "ink",
)  # all pass their gate
SHIPPED_IN_BOTH_ARMS = (*SHIPPED_SUBJECTS, "gold", "thermal")  # the other styles: own seed only
WIDER = ("fox", "turtle", "gold", "wood")  # also trained at ranks 16 and 32; the subjects ship at rank 8
IN_ALL_FORMS = ("fox", "gold")  # shipped in kohya and PEFT form too (rank 4, shared arm)


@dataclass(frozen=True)
class Job:
    """One LoRA to train.

    Attributes
    ----------
    kind, name : str
        "subject" or "style", and which.
    arm : str
        "shared" (seed 0) or "own" (seed from the content).
    rank : int
        Of the LoRA.
    repeat : int
        0, or a number added to the seed for a further training.
    """

    kind: str
    name: str
    arm: str = "own"
    rank: int = 4
    repeat: int = 0

    @property
    def file(self) -> str:
        """File name that says all of it."""
        return f"{self.kind}-{self.name}-r{self.rank}-{self.arm}{self.repeat or ''}.safetensors"

    @property
    def shipped(self) -> bool:
        """True when the repository carries this one."""
        if self.name in WIDER and self.rank == 8 and self.kind == "subject":
            return self.arm == "own" and self.repeat == 0
        carried = SHIPPED_IN_BOTH_ARMS if self.arm == "shared" else (*SHIPPED_SUBJECTS, *SHIPPED_STYLES)
        return self.name in carried and self.rank == 4 and self.repeat == 0

    @property
    def shipped_forms(self) -> tuple[str, ...]:
        """The file forms in which it is shipped."""
        whole = self.name in IN_ALL_FORMS and self.rank == 4 and self.arm == "shared"
        return ("diffusers", "kohya", "peft") if whole else ("diffusers",)


def held_out() -> list[tuple[str, str]]:
    """Return (kind, name) of everything the base has not seen, shipped ones first."""
    names = [("subject", s.name) for s in all_subjects() if s.held_out]
    names += [("style", s.name) for s in all_styles() if s.held_out]
    return sorted(names, key=lambda n: n[1] not in (*SHIPPED_SUBJECTS, *SHIPPED_STYLES))


def series() -> list[Job]:
    """Return every LoRA of the series: what ships, one of each for the gates, then ranks, arms and seeds."""
    names = held_out()
    wider = [name for name in names if name[1] in WIDER]
    every = [Job(*name, arm, rank) for rank in RANKS for arm in reversed(ARMS) for name in names]
    jobs = [
        *(job for job in every if job.shipped),
        *(Job(*name) for name in names),
        *every,
        *(Job(*name, arm, rank) for rank in (16, 32) for arm in ARMS for name in wider),
        *(Job(*name, arm, RANKS[0], repeat) for repeat in range(1, REPEATS) for arm in ARMS for name in names),
    ]
    return list(dict.fromkeys(jobs))
