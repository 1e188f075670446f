"""One training loop for all networks of the world: data-parallel on CPU by accelerate, resumable, logged.

Two processes of one thread each are faster here than one process of two threads; batches are drawn from a generator
seeded by (seed, rank, step), so a resumed run sees what an unbroken one would have seen.
"""

import json
import math
import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch.multiprocessing import start_processes

LossOf = Callable[[torch.nn.Module, np.random.Generator], torch.Tensor]


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    Attributes
    ----------
    steps : int
        Optimiser steps in all; may be changed when a run is resumed.
    rate : float
        Learning rate while it is flat.
    flat : float
        Share of the steps before the cosine to zero begins.
    folder : pathlib.Path
        Where `log.jsonl` and `checkpoint/` go.
    seed : int
        Of the weights and the batches.
    average : float
        Decay of the moving average of the weights; 0 keeps none.
    clip : float
        Largest norm of the gradient.
    warmup : int
        Steps of linear warm-up.
    checkpoint_seconds : float
        Time between checkpoints.
    seconds : float
        If given, the run ends after so much time, whatever `steps` says, and the cosine ends with it: on a busy machine
        nobody knows how many steps there will be.
    """

    steps: int
    rate: float
    flat: float
    folder: Path
    seed: int = 0
    average: float = 0.0
    clip: float = 1.0
    warmup: int = 50
    checkpoint_seconds: float = 180.0
    seconds: float | None = None

    def factor(self, step: int, steps: int) -> float:
        """Learning-rate factor at a step of `steps`: warm-up, flat for a share of them, cosine to zero."""
        flat = self.flat * steps
        if step <= flat:
            return min(1.0, (step + 1) / self.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - flat) / max(1.0, steps - flat))))


def accelerator() -> Accelerator:
    """Return bf16 autocast on CPU; the timeout lets a process be paused for long."""
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=3))
    return Accelerator(cpu=True, mixed_precision="bf16", kwargs_handlers=[patience])


def train(model: torch.nn.Module, loss_of: LossOf, plan: Plan) -> torch.nn.Module:
    """Train `model` on `loss_of(model, rng)` by `plan`, going on from the last checkpoint; return the (averaged) model."""
    acc = accelerator()
    optimiser = torch.optim.AdamW(model.parameters(), plan.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    average = EMAModel(model.parameters(), decay=plan.average, foreach=True) if plan.average else None
    wrapped, optimiser = acc.prepare(model, optimiser)
    progress = _Progress()
    acc.register_for_checkpointing(progress, *([average] if average else []))
    if (plan.folder / "checkpoint").exists():
        acc.load_state(str(plan.folder / "checkpoint"))
    plan.folder.mkdir(parents=True, exist_ok=True)
    log, losses = _Log(plan.folder / "log.jsonl", acc.is_main_process), []
    started = saved = time.monotonic()
    first, steps = progress.step, plan.steps
    while progress.step < steps:
        for group in optimiser.param_groups:
            group["lr"] = plan.rate * plan.factor(progress.step, steps)
        rng = np.random.default_rng([plan.seed, acc.process_index, progress.step])
        torch.manual_seed(int(rng.integers(2**62)))
        with acc.autocast():
            loss = loss_of(wrapped, rng)
        acc.backward(loss)
        acc.clip_grad_norm_(model.parameters(), plan.clip)
        optimiser.step()
        optimiser.zero_grad()
        progress.step += 1
        if average and acc.is_main_process:
            average.step(model.parameters())
        losses.append(loss.item())
        if progress.step % 50 == 0 or progress.step == steps:
            log.write(progress.step, steps, float(np.mean(losses)))
            losses.clear()
        if progress.step % 10 == 0:  # rank 0 decides for all, for clocks differ
            now = time.monotonic()
            wish = _steps_in_time(plan, started, now, first, progress.step), int(now - saved > plan.checkpoint_seconds)
            steps, due = _agreed(acc, wish)
            if due:
                _checkpoint(acc, plan.folder)
                saved = time.monotonic()
    _checkpoint(acc, plan.folder)
    if average:
        average.copy_to(model.parameters())
    acc.wait_for_everyone()
    return model.eval()


def weights(model: torch.nn.Module, folder: Path, averaged: bool) -> torch.nn.Module:
    """Load the weights of the last checkpoint (its moving average if `averaged`) into `model`, for a look between."""
    model.load_state_dict(load_file(folder / "checkpoint" / "model.safetensors"))
    if averaged:
        state = torch.load(folder / "checkpoint" / "custom_checkpoint_1.pkl", weights_only=True)
        for parameter, value in zip(model.parameters(), state["shadow_params"], strict=True):
            parameter.data.copy_(value)
    return model.eval()


class _Progress:
    """The step count, in the form accelerate checkpoints."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict:
        return {"step": self.step}

    def load_state_dict(self, state: dict) -> None:
        self.step = state["step"]


class _Log:
    """Appends one JSON line per report and prints it."""

    def __init__(self, path: Path, active: bool) -> None:
        self.path, self.active, self.last = path, active, (time.monotonic(), None)

    def write(self, step: int, steps: int, loss: float) -> None:
        if not self.active:
            return
        now, (then, before) = time.monotonic(), self.last
        self.last = (now, step)
        pace = (step - before) / (now - then) if before is not None else float("nan")
        line = {
            "step": step,
            "steps": steps,
            "loss": round(loss, 5),
            "steps_per_s": round(pace, 3),
            "time": round(time.time()),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def _steps_in_time(plan: Plan, started: float, now: float, first: int, step: int) -> int:
    """Return how many steps there will be at the pace so far, if the plan has an end in time; else those planned."""
    if plan.seconds is None:
        return plan.steps
    pace = (step - first) / (now - started)
    return step + max(0, round(pace * (plan.seconds - (now - started))))


def _agreed(acc: Accelerator, wish: tuple[int, ...]) -> tuple[int, ...]:
    """Return rank 0's numbers on every rank."""
    if acc.num_processes == 1:
        return wish
    numbers = torch.tensor(wish)
    torch.distributed.broadcast(numbers, 0)
    return tuple(numbers.tolist())


def _checkpoint(acc: Accelerator, folder: Path) -> None:
    """Write a checkpoint beside the old one and swap, so that a kill never leaves half of one."""
    fresh, kept = folder / "checkpoint.new", folder / "checkpoint"
    if acc.is_main_process:
        shutil.rmtree(fresh, ignore_errors=True)
    acc.wait_for_everyone()
    acc.save_state(str(fresh))
    acc.wait_for_everyone()
    if acc.is_main_process:
        shutil.rmtree(kept, ignore_errors=True)
        fresh.rename(kept)
    acc.wait_for_everyone()


def _worker(rank: int, work: Callable[[], None], workers: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(workers),
        LOCAL_WORLD_SIZE=str(workers),
        MASTER_ADDR="localhost",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    work()


def in_parallel(work: Callable[[], None], workers: int) -> None:
    """Run `work` in `workers` forked processes of one thread each, joined for data-parallel training."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    if workers == 1:
        torch.set_num_threads(1)
        return work()
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    start_processes(_worker, (work, workers, port), nprocs=workers, start_method="fork")
    return None
