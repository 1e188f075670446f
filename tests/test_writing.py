"""The output is whole or not there: kills, full disks, wrong paths, raises, and bytes that are copies."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import nplora
from laws.making import write as write_large
from making import SD15, TEXT, make
from nplora.cli import main
from nplora.storage import TensorWriter, writing

NPLORA = [sys.executable, "-m", "nplora"]
BLOCK = "unet.{}_blocks.{}.attentions.{}.transformer_blocks.0.{}"
DOWN = [("down", block, index) for block in range(3) for index in range(2)]
WIDTHS = (320, 640, 1280)
# A hundred modules of Stable Diffusion 1.5, a pair of which takes a moment to fuse.
MANY = {
    BLOCK.format(side, block, index, layer): (WIDTHS[block], WIDTHS[block])
    for side, block, index in DOWN
    for layer in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_out.0")
}
KILLS = 15
Pair = tuple[Path, Path]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """A subject in kohya's naming and a style in diffusers', of different ranks."""
    subject = make(tmp_path / "cat.safetensors", modules={**SD15, **TEXT}, seed=1, rank=4, alpha=2)
    return subject, make(tmp_path / "ink.safetensors", "diffusers", SD15, seed=2, rank=8)


def fused(pair: Pair, **parameters: object) -> nplora.Fusion:
    return nplora.fuse(*(nplora.load(path) for path in pair), **parameters)


def save_folder(pair: Pair, path: Path, overwrite: bool = False, **parameters: object) -> None:
    """A PEFT folder, which holds one component."""
    fused(pair, components=["unet"], **parameters).save(path, format="peft", overwrite=overwrite)


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by its bytes."""
    return {os.fspath(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_two_numbers(path: Path, metadata: dict[str, str], overwrite: bool = False) -> None:
    """A whole file through the writer alone; its metadata comes at the end."""
    with TensorWriter(path, [("a", "F32", (2,))], {}, overwrite=overwrite) as writer:
        writer.write("a", np.zeros(2, np.float32))
        writer.finish(metadata)


def parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.nplora-*"))


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*NPLORA, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120, **options
    )


# ------------------------------------------------------------------------------------------ kills


@pytest.fixture(scope="module")
def large_pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """About 20 MB each."""
    folder = tmp_path_factory.mktemp("large")
    subject = make(folder / "cat.safetensors", modules=MANY, seed=1, rank=64, alpha=32, dtype="F32")
    return subject, make(folder / "ink.safetensors", modules=MANY, seed=2, rank=64, alpha=64, dtype="F32")


def killed_after(delay: float, *arguments: object) -> bool:
    """Kill a command that late, unless it has ended."""
    process = subprocess.Popen([*NPLORA, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def killed_while_writing(out: Path, progress: float, *arguments: object) -> bool:
    """Kill a command once its temporary file has stood there that long: no instant of the writing is too short."""
    process = subprocess.Popen([*NPLORA, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not parts(out.parent):
        time.sleep(0.001)
    time.sleep(progress)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def duration(large_pair: Pair, out: Path) -> float:
    begin = time.monotonic()
    assert run("fuse", *large_pair, "-o", out, "-q").returncode == 0
    return time.monotonic() - begin


def test_a_kill_at_any_instant_leaves_the_old_file_or_the_new_one_whole(large_pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    whole = duration(large_pair, out)
    new, old = out.read_bytes(), make(tmp_path / "old.safetensors").read_bytes()
    killed = 0
    for step in range(KILLS):
        out.write_bytes(old)
        killed += killed_after(whole * (step + 1) / (KILLS + 1), "fuse", *large_pair, "-o", out, "-q", "--overwrite")
        assert out.read_bytes() in (old, new)
    assert killed > KILLS // 2
    assert run("fuse", *large_pair, "-o", out, "-q", "--overwrite").returncode == 0
    assert listing(tmp_path) == {"old.safetensors": old, "out.safetensors": new}


def test_a_kill_while_it_writes_leaves_a_stray_that_the_next_run_removes(large_pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    killed = sum(killed_while_writing(out, wait, "fuse", *large_pair, "-o", out, "-q") for wait in (0, 0.003, 0.01))
    assert not out.exists()
    assert killed == 3
    assert parts(tmp_path)  # of the last one killed: each run removed those before it
    assert len(parts(tmp_path)) == 1
    assert run("fuse", *large_pair, "-o", out, "-q").returncode == 0
    assert list(listing(tmp_path)) == ["out.safetensors"]


def test_a_kill_never_pairs_an_old_model_with_a_new_config(large_pair: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    old = make(folder, "peft", {"unet.mid_block.attentions.0.proj_in": (1280, 1280)})
    before = listing(old)
    line = ("fuse", *large_pair, "-o", folder, "-q", "--overwrite", "--format", "peft")
    assert killed_while_writing(folder / "adapter_model.safetensors", 0.003, *line)
    assert {name: data for name, data in listing(folder).items() if "nplora" not in name} == before
    assert run(*line).returncode == 0
    assert sorted(listing(folder)) == ["adapter_config.json", "adapter_model.safetensors"]
    assert len(nplora.load(folder)) == len(MANY)


def test_strays_of_other_names_and_of_living_processes_stay(pair: Pair, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        number = dead.pid
    kept = [f".other.safetensors.{number}.nplora-part", f".out.safetensors.{os.getppid()}.nplora-part"]
    kept += [f".out.safetensors.{10**30}.nplora-part", ".out.safetensors.x.nplora-part", ".out.safetensors.nplora-part"]
    strays = [f".out.safetensors.{number}.nplora-part", f".out.safetensors.{number}.nplora-old"]
    for name in (*kept, *strays):
        (tmp_path / name).touch()
    fused(pair).save(tmp_path / "out.safetensors")
    assert parts(tmp_path) == sorted(kept)


# ------------------------------------------------------------------------------------------ no room, no rights


@pytest.mark.parametrize("limit", [1000, 20_000, 60_000])
def test_a_file_that_may_not_grow_leaves_nothing(limit: int, pair: Pair, tmp_path: Path) -> None:
    before = listing(tmp_path)
    ran = run(
        "fuse", *pair, "-o", tmp_path / "out.safetensors", "-q",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (4, "")
    assert (
        ran.stderr == f"nplora: {tmp_path}/out.safetensors: cannot be written (File too large). Nothing was changed.\n"
    )
    assert listing(tmp_path) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a few kilobytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_leaves_nothing(small_disk: Path, pair: Pair) -> None:
    ran = run("fuse", *pair, "-o", small_disk / "new" / "out.safetensors", "-q")
    assert ran.returncode == 4
    assert ran.stderr == (
        f"nplora: {small_disk}/new/out.safetensors: cannot be written (No space left on device). "
        "The disk is full: free some space. Nothing was changed.\n"
    )
    assert list(small_disk.iterdir()) == []


FAILURES = {
    "the disk fills up while it computes": ("pwritev", errno.ENOSPC, 3, "No space left on device"),
    "the disk is full from the start": ("posix_fallocate", errno.ENOSPC, 0, "No space left on device"),
    "the quota is used up": ("posix_fallocate", errno.EDQUOT, 0, "Disk quota exceeded"),
    "the last flush fails": ("fsync", errno.EIO, 0, "Input/output error"),
    "the folder turns read-only": ("replace", errno.EROFS, 0, "Read-only file system"),
    "the file cannot be opened": ("open", errno.EACCES, 0, "Permission denied"),
}


def failing(monkeypatch: pytest.MonkeyPatch, call: str, code: int, after: int = 0) -> None:
    """Let a system call of the writer fail after so many successes."""
    real, left = getattr(os, call), [after]

    def fail(*arguments: object, **options: object) -> object:
        if left[0] == 0:
            raise OSError(code, os.strerror(code))
        left[0] -= 1
        return real(*arguments, **options)

    monkeypatch.setattr(f"nplora.storage.writing.os.{call}", fail)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("story", FAILURES)
def test_a_failing_system_call_changes_nothing(
    story: str, overwrite: bool, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, code, after, words = FAILURES[story]
    out = tmp_path / "made" / "out.safetensors"
    if overwrite:
        out.parent.mkdir()
        out.write_bytes(b"old")
    before = listing(tmp_path)
    fusion = fused(pair)
    failing(monkeypatch, call, code, after)
    with pytest.raises(nplora.OutputError) as caught:
        fusion.save(out, overwrite=overwrite)
    assert caught.value.problem == f"cannot be written ({words})"
    assert str(caught.value).endswith("Nothing was changed.")
    assert listing(tmp_path) == before
    assert out.parent.exists() == overwrite


def test_an_error_of_a_flush_beside_the_computation_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "FLUSH_EVERY", 0)
    real, calls = os.fsync, []

    def fail_once(file: int) -> None:
        calls.append(file)
        if len(calls) == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(file)

    monkeypatch.setattr("nplora.storage.writing.os.fsync", fail_once)
    with pytest.raises(nplora.OutputError) as caught:
        write_two_numbers(tmp_path / "out", {})
    assert caught.value.problem == "cannot be written (Input/output error)"
    assert listing(tmp_path) == {}


def test_a_write_that_the_system_cuts_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev
    monkeypatch.setattr(
        "nplora.storage.writing.os.pwritev", lambda file, data, at: real(file, [b"".join(map(bytes, data))[:5]], at)
    )
    numbers = np.arange(12, dtype=np.float32).reshape(3, 4)
    with TensorWriter(tmp_path / "out", [("a", "F32", (3, 4))], {}) as writer:
        writer.write("a", numbers)
        monkeypatch.undo()
        writer.finish({})
    assert (tmp_path / "out").read_bytes().endswith(numbers.tobytes())


def test_a_file_where_a_folder_should_be_is_one_message(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    before = listing(tmp_path)
    for place in ("file/out.safetensors", "file/deep/out.safetensors"):
        ran = run("fuse", *pair, "-o", tmp_path / place)
        assert (ran.returncode, ran.stderr.count("\n")) == (4, 1)
        assert "cannot be written (" in ran.stderr
        assert listing(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_closed_folder_is_one_message(pair: Pair, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    ran = run("fuse", *pair, "-o", closed / "out.safetensors")
    assert ran.returncode == 4
    assert ran.stderr.endswith(
        "(Permission denied). The folder is not yours to write: choose another. Nothing was changed.\n"
    )


# ------------------------------------------------------------------------------------------ paths


def test_an_output_that_exists_is_kept_without_overwrite(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    before = listing(tmp_path)
    with pytest.raises(nplora.OutputError) as caught:
        fused(pair).save(out)
    assert str(caught.value) == f"{out}: the output exists already. Choose another name, or add --overwrite."
    assert listing(tmp_path) == before
    fused(pair).save(out, overwrite=True)
    assert len(nplora.load(out)) == 5


def test_a_config_that_exists_is_kept_without_overwrite(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "adapter_config.json").write_text("{}")
    before = listing(tmp_path)
    with pytest.raises(nplora.OutputError) as caught:
        save_folder(pair, tmp_path / "out")
    assert caught.value.problem == "the output exists already"
    assert listing(tmp_path) == before


def test_a_link_to_nowhere_is_kept_without_overwrite(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(nplora.OutputError):
        fused(pair).save(out)
    assert out.is_symlink()


WAYS: dict[str, Callable[[Path, Path], object]] = {
    "its own name": lambda _, __: None,
    "a symbolic link": lambda source, out: out.symlink_to(source),
    "a hard link": lambda source, out: out.hardlink_to(source),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("role", [0, 1])
def test_an_input_is_never_replaced(role: int, way: str, overwrite: bool, pair: Pair, tmp_path: Path) -> None:
    out = pair[role] if way == "its own name" else tmp_path / "out.safetensors"
    WAYS[way](pair[role], out)
    before = listing(tmp_path)
    for place in (out, tmp_path / "." / out.name, Path(os.path.relpath(out))):
        with pytest.raises(nplora.UsageError) as caught:
            fused(pair).save(place, overwrite=overwrite)
        assert caught.value.problem == "the output would replace an input"
        assert listing(tmp_path) == before


def test_an_input_folder_is_never_replaced(tmp_path: Path) -> None:
    pair = [make(tmp_path / name, "peft", {"unet.proj": (64, 32)}, seed=seed) for seed, name in enumerate("ab")]
    before = listing(tmp_path)
    for place in (pair[0], pair[0] / "adapter_model.safetensors"):
        with pytest.raises(nplora.UsageError):
            fused(pair).save(place, format="peft", overwrite=True)
        assert listing(tmp_path) == before


def test_missing_folders_are_made(pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out.safetensors"
    fused(pair).save(out)
    assert len(nplora.load(out)) == 5


def test_folders_that_were_made_go_again_when_the_run_fails(tmp_path: Path) -> None:
    subject = make(tmp_path / "cat.safetensors", size=np.nan)
    style = make(tmp_path / "ink.safetensors", seed=2)
    (tmp_path / "there").mkdir()
    assert main(["fuse", str(subject), str(style), "-o", str(tmp_path / "there" / "a" / "b" / "out.safetensors")]) == 3
    assert list((tmp_path / "there").iterdir()) == []
    assert main(["fuse", str(subject), str(style), "-o", str(tmp_path / "there" / "out"), "--format", "peft"]) == 3
    assert list((tmp_path / "there").iterdir()) == []


# ------------------------------------------------------------------------------------------ folders


@pytest.fixture
def folder(pair: Pair, tmp_path: Path) -> Path:
    """An earlier PEFT output with files of the user's beside it."""
    path = tmp_path / "out"
    save_folder(pair, path, subject_strength=0.5)
    (path / "README.md").write_text("mine")
    (path / "images").mkdir()
    (path / "images" / "one.png").write_bytes(b"png")
    return path


def test_overwriting_a_folder_replaces_model_and_config_and_nothing_else(
    folder: Path, pair: Pair, tmp_path: Path
) -> None:
    before = listing(folder)
    save_folder(pair, folder, overwrite=True, mu=2.0)
    after = listing(folder)
    assert after.keys() == before.keys()
    save_folder(pair, tmp_path / "fresh", mu=2.0)
    assert {name for name in after if after[name] != before[name]} >= {"adapter_model.safetensors"}
    assert json.loads(after["adapter_config.json"]) == json.loads(
        (tmp_path / "fresh" / "adapter_config.json").read_text()
    )
    assert (after["README.md"], after["images/one.png"]) == (b"mine", b"png")


@pytest.mark.parametrize("step", range(5))
def test_a_raise_at_any_rename_of_a_folder_brings_the_old_files_back(
    step: int, folder: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listing(folder)
    fusion = fused(pair, mu=2.0, components=["unet"])
    real, calls = os.replace, []

    def interrupted(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == step + 1:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr("nplora.storage.writing.os.replace", interrupted)
    if step == 4:  # four renames in all: both old files aside, both new ones in place
        fusion.save(folder, format="peft", overwrite=True)
        assert listing(folder).keys() == before.keys()
        return
    with pytest.raises(KeyboardInterrupt):
        fusion.save(folder, format="peft", overwrite=True)
    assert listing(folder) == before


@pytest.mark.parametrize("step", range(2))
def test_a_raise_between_the_renames_of_a_new_folder_leaves_nothing(
    step: int, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = listing(tmp_path)
    failing(monkeypatch, "replace", errno.EIO, step)
    with pytest.raises(nplora.OutputError):
        save_folder(pair, tmp_path / "out")
    assert listing(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_an_interrupt_while_it_computes_leaves_nothing(pair: Pair, tmp_path: Path) -> None:
    before = listing(tmp_path)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    fusion = nplora.fuse(*map(nplora.load, pair), progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        fusion.save(tmp_path / "new" / "out.safetensors")
    assert listing(tmp_path) == before
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------ checks before the rename


def test_a_header_that_outgrows_its_room_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    metadata = {"words": "x" * (2 * writing.HEADER_SLACK)}
    with pytest.raises(nplora.OutputError) as caught:
        write_two_numbers(out, metadata, overwrite=True)
    assert str(caught.value) == f"{out}: the header outgrew the room reserved for it. Please report this."
    assert listing(tmp_path) == {"out.safetensors": b"old"}


def damage_length(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def damage_header(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(8)
        stream.write(b"[")


def damage_name(path: Path) -> None:
    blob = path.read_bytes()
    path.write_bytes(blob.replace(b"lora_down", b"lora_dawn", 1))


@pytest.mark.parametrize("damage", [damage_length, damage_header, damage_name])
def test_a_file_that_does_not_read_back_is_not_put_in_place(
    damage: Callable[[Path], None], pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    before = listing(tmp_path)
    real = TensorWriter._read_back

    def damaged(writer: TensorWriter, beginning: bytes) -> None:
        damage(writer._temporary)
        real(writer, beginning)

    monkeypatch.setattr(TensorWriter, "_read_back", damaged)
    with pytest.raises(nplora.OutputError) as caught:
        fused(pair).save(out, overwrite=True)
    assert str(caught.value) == f"{out}: the written file does not read back as intended. Check the disk."
    assert listing(tmp_path) == before


# ------------------------------------------------------------------------------------------ bytes


def stored(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor as dtype, shape and raw bytes, read by hand."""
    blob = path.read_bytes()
    base = 8 + int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8:base])
    header.pop("__metadata__", None)
    ranges = {key: [base + offset for offset in entry["data_offsets"]] for key, entry in header.items()}
    return {k: (e["dtype"], tuple(e["shape"]), blob[slice(*ranges[k])]) for k, e in header.items()}


def test_factors_that_need_not_change_are_copied_bit_for_bit(pair: Pair, tmp_path: Path) -> None:
    subject, style = (nplora.load(path) for path in pair)
    out = tmp_path / "out.safetensors"
    fused(pair, format="kohya").save(out)
    after = nplora.load(out)
    for name in SD15:
        one, two, both = subject[name].update, style[name].update, after[name].update
        assert both.up.read()[:, :4].tobytes() == one.up.read().tobytes()
        assert both.up.read()[:, 4:].tobytes() == two.up.read().tobytes()
    # A module of one adapter alone keeps its bytes in the file, through other bytes around it.
    alone, before = stored(out), stored(pair[0])
    text = [key for key in before if key.startswith("lora_te_") and "lora" in key.partition(".")[2]]
    assert len(text) == 2
    assert all(alone[key] == before[key] for key in text)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_a_fusion_rewrites_the_subjects_down_factors_alone(dtype: str, tmp_path: Path) -> None:
    pair = tuple(make(tmp_path / f"{seed}.safetensors", seed=seed, alpha=4, dtype=dtype) for seed in (1, 2))
    fused(pair).save(tmp_path / "out.safetensors")
    (subject, style), after = (stored(path) for path in pair), stored(tmp_path / "out.safetensors")
    downs = [key for key in after if key.endswith("lora_down.weight")]
    assert len(downs) == len(SD15)
    for key in downs:
        half = len(style[key][2])
        assert after[key][2][half:] == style[key][2]
        assert after[key][2][:half] != subject[key][2]


def test_the_written_file_opens_with_the_safetensors_library(pair: Pair, tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    out = tmp_path / "out.safetensors"
    fused(pair).save(out)
    theirs, ours = numpy.load_file(out), nplora.load(out).file.tensors
    assert theirs.keys() == ours.keys()
    for key, array in theirs.items():
        assert array.dtype == ours[key].read().dtype
        assert array.shape == ours[key].shape
        assert array.tobytes() == ours[key].read().tobytes()


def test_the_order_of_the_tensors_is_the_librarys(pair: Pair, tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    out = tmp_path / "out.safetensors"
    fused(pair).save(out)
    numpy.save_file(numpy.load_file(out), tmp_path / "theirs.safetensors")
    assert list(stored(out)) == list(stored(tmp_path / "theirs.safetensors"))


@pytest.mark.parametrize("cores", [1, 2, 3, 16, None])
def test_every_run_writes_the_same_bytes(
    cores: int | None, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused(pair).save(tmp_path / "one" / "out.safetensors")
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    fused(pair).save(tmp_path / "two" / "out.safetensors")
    assert (tmp_path / "one/out.safetensors").read_bytes() == (tmp_path / "two/out.safetensors").read_bytes()


def test_every_process_writes_the_same_bytes(large_pair: Pair, tmp_path: Path) -> None:
    for folder, threads in (("one", "1"), ("two", "4")):
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        assert (
            run("fuse", *large_pair, "-o", tmp_path / folder / "out.safetensors", "-q", env=environment).returncode == 0
        )
    assert (tmp_path / "one/out.safetensors").read_bytes() == (tmp_path / "two/out.safetensors").read_bytes()


# ------------------------------------------------------------------------------------------ memory


def anonymous(process: int) -> int:
    """Bytes of memory that are no pages of a file."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")), 0)


def peak_of(command: list[str]) -> int:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.002)
    assert process.returncode == 0
    return peak


LARGE = {f"model.layers.{index}.self_attn.q_proj": (2048, 2048) for index in range(150)}


def random_file(path: Path, seed: int, rank: int) -> Path:
    """Factors of random bytes, masked to be small finite float16 numbers: quick to make."""
    rng, arrays = np.random.default_rng(seed), {}
    for name, (out, width) in LARGE.items():
        for suffix, shape in ((".lora_B.weight", (out, rank)), (".lora_A.weight", (rank, width))):
            bits = rng.integers(0, 2**16, shape, np.uint16) & np.uint16(0b1_01011_1111111111)
            arrays[name + suffix] = bits.view(np.float16)
    return write_large(path, arrays)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell anonymous memory")
@pytest.mark.slow
def test_a_fuse_of_large_files_stays_under_200_mb(tmp_path: Path) -> None:
    pair = [random_file(tmp_path / f"{seed}.safetensors", seed, 128) for seed in (1, 2)]
    assert sum(path.stat().st_size for path in pair) > 250e6
    bare = peak_of([sys.executable, "-c", "import time; time.sleep(0.3)"])
    peak = peak_of([*NPLORA, "fuse", *map(str, pair), "-o", str(tmp_path / "out.safetensors"), "-q"])
    assert peak - bare < 200e6
