"""The pages say what the code does: commands and snippets run, tables and layers are the code's, links lead on."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import nplora
from making import SD15, make, numbers, write
from nplora import adapters, algebra, formats, layouts, methods
from nplora.checking import expectation
from nplora.formats import keys
from nplora.fusion import projection
from nplora.recipes import read_recipe_text, run_recipe

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {
    page.relative_to(REPOSITORY).as_posix(): page.read_text(encoding="utf-8")
    for page in (
        *REPOSITORY.glob("*.md"),
        *(REPOSITORY / "docs").rglob("*.md"),
        REPOSITORY / "benchmarks" / "README.md",
        REPOSITORY / "comfyui" / "README.md",
    )
}


def blocks(page: str, language: str) -> list[str]:
    """Fenced code of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    lines = "".join(blocks(page, "sh")).splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("nplora ")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files that the pages speak of: two adapters, and the weights of the base that they change."""
    make(tmp_path / "cat.safetensors", "kohya", seed=1, rank=4, alpha=2)
    make(tmp_path / "ink.safetensors", "diffusers", seed=2, rank=8)
    weights = {f"{name.removeprefix('unet.')}.weight": shape for name, shape in SD15.items()}
    (tmp_path / "base").mkdir()
    write(tmp_path / "base" / "model.safetensors", {key: numbers(3, key, shape) for key, shape in weights.items()})
    return tmp_path


# ------------------------------------------------------------------------------------------ what the pages show


PICTURES = "docs/pictures.md"  # its commands paint: tests/pictures runs them


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page) and page != PICTURES])
def test_every_command_runs(page: str, folder: Path) -> None:
    for words in commands(page):
        done = subprocess.run(
            [sys.executable, "-m", "nplora", *words], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"nplora {' '.join(words)}\n{done.stderr}"
        assert done.stdout


def test_the_readme_opens_with_three_commands_and_three_lines_of_python() -> None:
    assert [words[0] for words in commands("README.md")] == ["compare", "fuse", "verify"]
    (snippet,) = blocks("README.md", "python")
    assert len([line for line in snippet.splitlines() if line and not line.startswith("import ")]) == 3


def test_the_readme_snippet_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for snippet in blocks("README.md", "python"):
        exec(compile(snippet, "README.md", "exec"), {})  # noqa: S102 - our own page
    assert "overlap" in capsys.readouterr().out
    assert len(nplora.load("fused.safetensors")) == len(SD15)


def test_the_snippet_on_looking_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (snippet,) = blocks("docs/inspect.md", "python")
    exec(compile(snippet, "docs/inspect.md", "exec"), {})  # noqa: S102 - our own page
    assert "ComfyUI takes 2 of 8 keys and drops 6." in capsys.readouterr().out


def test_the_recipes_run(folder: Path) -> None:
    for seed, name in ((3, "dog"), (4, "oil")):
        make(folder / f"{name}.safetensors", "kohya", seed=seed, rank=4, alpha=2)
    shown = blocks("docs/recipes.md", "yaml")
    assert any("overrides:" in text for text in shown)
    for text in shown:
        recipe, marks = read_recipe_text(text)
        assert all(outcome.made for outcome in run_recipe(recipe, folder, marks=marks))


@pytest.mark.consumer
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # of theirs
@pytest.mark.parametrize("page", ["docs/diffusers.md", "docs/peft.md"])
def test_the_how_to_pages_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page, one after the other, in a folder that has the world beside it."""
    for package in ("torch", "diffusers", "transformers", "peft"):
        pytest.importorskip(package, reason=f"no {package}: the page cannot be run")
    world = REPOSITORY / "world"
    if not (world / "model").is_dir():
        pytest.skip("the folder world/model is missing")
    (tmp_path / "world").symlink_to(world)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for snippet in blocks(page, "python"):
        exec(compile(snippet, page, "exec"), names)  # noqa: S102 - our own page
    assert [*tmp_path.glob("*.png")] or (tmp_path / "out" / "fused" / "adapter_config.json").exists()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", PAGES[page]):
        if "://" not in target:
            assert (REPOSITORY / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_no_page_knows_one_machine(page: str) -> None:
    assert not re.search(r"(?<![\w.])/(?:home|root|work|tmp|Users)/", PAGES[page])


# ------------------------------------------------------------------------------------------ what the pages claim


def test_the_tables_of_formats_are_the_code_s() -> None:
    spec = importlib.util.spec_from_file_location("docs_tables", REPOSITORY / "tools" / "docs_tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    page = PAGES["docs/formats.md"]
    assert page == tables.filled(page), "run .venv/bin/python tools/docs_tables.py"
    names = [*formats.all_formats(), *layouts.names()]
    assert all(f"| `{name}` |" in page for name in names)
    assert all(f"| {kind.name} |" in page for kind in adapters.all_kinds())


@pytest.mark.parametrize(
    ("page", "claim", "value"),
    [
        ("docs/numbers.md", "condition number below 300", algebra.MAX_DOWN_CONDITION == 300),
        ("docs/numbers.md", "condition number below 1e7", algebra.MAX_SPECTRUM_CONDITION == 1e7),
        ("docs/numbers.md", "adds `3 * 2^-24`", expectation.ARITHMETIC["scale"] == 3 * 2.0**-24),
        ("docs/numbers.md", "about `u (1 + g sqrt(r n) / s_min)`", expectation.ARITHMETIC["projection"] == 1.0),
        ("docs/architecture.md", "2^21 numbers a factor are in work", projection.ELEMENTS_IN_WORK == 2**21),
    ],
)
def test_numbers_on_pages_are_the_code_s(page: str, claim: str, value: bool) -> None:
    assert claim in " ".join(PAGES[page].split())
    assert value, f"{page} says: {claim}"


@pytest.mark.parametrize(("w_c", "w_s"), [(1.0, 1.0), (0.7, 0.4), (0.5, 0.0)])
def test_strength_means_strength(w_c: float, w_s: float, tmp_path: Path) -> None:
    """The rows of docs/strength.md that are ours: a module of 64 x 48, rank 4, alpha 4, read back with NumPy alone."""
    paths = [
        make(
            tmp_path / f"{seed}.safetensors", "kohya", {"unet.layer": (64, 48)}, rank=4, alpha=4, dtype="F32", seed=seed
        )
        for seed in (1, 2)
    ]
    fused = nplora.fuse(*map(nplora.load, paths), mu=0, subject_strength=w_c, style_strength=w_s)
    fused.save(tmp_path / "out.safetensors")
    subject, style, got = map(product, (*paths, tmp_path / "out.safetensors"))
    wanted = w_c * subject + w_s * style
    assert np.linalg.norm(got - wanted) < 1e-6 * np.linalg.norm(wanted)
    assert f"{np.linalg.norm(got) / np.linalg.norm(wanted):.3f}" == "1.000"


def test_the_table_of_other_tools_is_what_the_script_measures() -> None:
    spec = importlib.util.spec_from_file_location("strength", REPOSITORY / "benchmarks" / "strength.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    pages = {
        "docs/strength.md": {
            ("kohya `merge_lora.py`, `flux_merge_lora.py`, ratios 1 1", (1.0, 1.0), script.kohya),
            ("the same, ratios 0.7 0.4", (0.7, 0.4), script.kohya),
            ("the same, one file, ratio 0.5", (0.5,), script.kohya),
            ("the same, `--concat`, ratios 1 1", (1.0, 1.0), script.kohya_concat),
            ("the same, `--concat`, ratios 0.5 0.5", (0.5, 0.5), script.kohya_concat),
            ("ai-toolkit `merge_loras.py`, strengths 1 1", (1.0, 1.0), script.ai_toolkit),
            ("the same, one file, strength 0.5", (0.5,), script.ai_toolkit),
        },
        "README.md": {
            ("kohya `merge_lora.py`", (1.0, 1.0), script.kohya),
            ("kohya `merge_lora.py --concat`", (1.0, 1.0), script.kohya_concat),
            ("ai-toolkit `merge_loras.py`", (1.0, 1.0), script.ai_toolkit),
        },
    }
    for page, rows in pages.items():
        for name, weights, merge in rows:
            error, size = script.measure(weights, merge)
            assert f"| {name} | {error:.2f} | {size:.2f} |" in PAGES[page], (name, error, size)


def product(path: Path) -> np.ndarray:
    file = {key.partition(".")[2]: value.astype(np.float64) for key, value in load_file(path).items()}
    up, down = file["lora_up.weight"], file["lora_down.weight"]
    return file["alpha"] / down.shape[0] * up @ down


# ------------------------------------------------------------------------------------------ who imports whom


def layers() -> dict[str, int]:
    """Room -> layer, as docs/architecture.md lists them; 1 is the lowest."""
    listed = PAGES["docs/architecture.md"].partition("<!-- layers -->")[2].partition("<!-- end of layers -->")[0]
    found = {}
    for number, names in re.findall(r"^(\d+)\. (.+)$", listed, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", names):
            assert found.setdefault(name, int(number)) == int(number), f"{name} stands in two layers"
    return found


def rooms() -> dict[str, list[Path]]:
    """Room (a module, or a folder of them) -> its files."""
    found: dict[str, list[Path]] = {}
    package = REPOSITORY / "src" / "nplora"
    for file in package.rglob("*.py"):
        found.setdefault(file.relative_to(package).with_suffix("").parts[0], []).append(file)
    return found


def imported(file: Path) -> Iterator[str]:
    """Rooms that a file imports when it is loaded; not those of `if TYPE_CHECKING` or of a function."""
    depth = len(file.relative_to(REPOSITORY / "src" / "nplora").parts)
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            yield from [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]


def test_every_room_has_a_layer() -> None:
    assert layers().keys() == rooms().keys()


@pytest.mark.parametrize("room", rooms())
def test_imports_point_downwards(room: str) -> None:
    table = layers()
    for file in rooms()[room]:
        for other in imported(file):
            assert table[other] <= table[room], f"{file.name} ({room}, {table[room]}) imports {other} ({table[other]})"


# ---------------------------------------------------------------------------------------- the examples of CONTRIBUTING


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The three files of CONTRIBUTING.md, put where the page puts them (seen from the package, not in it)."""
    pattern = r"One file, say `src/nplora/(\w+)/(\w+)\.py`:\n\n```python\n(.*?)^```"
    found = re.findall(pattern, PAGES["CONTRIBUTING.md"], re.DOTALL | re.MULTILINE)
    assert [room for room, _, _ in found] == ["formats", "adapters", "methods"]
    assert '`".gate": "gate"`' in PAGES["CONTRIBUTING.md"]
    monkeypatch.setitem(keys.SUFFIXES, ".gate", "gate")
    for room, name, code in found:
        package: ModuleType = importlib.import_module(f"nplora.{room}")
        (tmp_path / room).mkdir()
        (tmp_path / room / f"{name}.py").write_text(code, encoding="utf-8")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / room)])
    forget()
    yield
    for room, name, _ in found:
        sys.modules.pop(f"nplora.{room}.{name}", None)
    monkeypatch.undo()
    forget()


def forget() -> None:
    importlib.invalidate_caches()
    for cached in (formats.all_formats, adapters.all_kinds, adapters._kind_for, methods.all_methods):
        cached.cache_clear()


def as_quill(path: Path) -> Path:
    """A diffusers file under the example trainer's names."""
    renamed = path.with_name("quill.safetensors")
    save_file({key.replace("unet.", "quill/unet/", 1): value for key, value in load_file(path).items()}, renamed)
    return renamed


def assert_same(one: nplora.Adapter, two: nplora.Adapter) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert np.allclose(one[name].delta(), two[name].delta(), rtol=0, atol=1e-6), name


def test_a_new_format_is_one_file(example: None, folder: Path) -> None:
    ink = nplora.load(folder / "ink.safetensors")
    quill = nplora.load(as_quill(folder / "ink.safetensors"))
    assert (quill.format.name, quill.base) == ("quill", ink.base)
    assert_same(quill, ink)
    cat = nplora.load(folder / "cat.safetensors")
    nplora.convert(cat, folder / "cat-quill.safetensors", format="quill", dtype="fp32")
    assert_same(nplora.load(folder / "cat-quill.safetensors"), cat)


def test_a_new_kind_is_one_file(example: None, folder: Path) -> None:
    tensors = load_file(folder / "cat.safetensors")
    stems = {key.partition(".")[0] for key in tensors}
    save_file(tensors | {f"{stem}.gate": np.array(0.25, np.float32) for stem in stems}, folder / "gated.safetensors")
    cat, gated = (nplora.load(folder / f"{name}.safetensors") for name in ("cat", "gated"))
    for name in cat:
        assert gated[name].update.kind == "gated LoRA"
        assert np.array_equal(gated[name].delta(), 0.25 * cat[name].delta())
    nplora.fuse(gated, nplora.load(folder / "ink.safetensors")).save(folder / "out.safetensors")


@pytest.mark.parametrize("mu", [0.0, 0.5, float("inf")])
def test_a_new_method_is_one_file(example: None, mu: float) -> None:
    rng = np.random.default_rng(1)
    B_c, A_c, B_s, A_s = (rng.standard_normal(shape) for shape in ((1, 9, 3), (1, 3, 12), (1, 9, 2), (1, 2, 12)))
    graded = methods.all_methods()["graded"]
    down, (_, found) = projection.project(B_c, A_c, B_s, A_s, graded, {"mu": mu})
    _, s, vt = np.linalg.svd(B_s[0] @ A_s[0], full_matrices=False)
    share = s[:2] ** 2 / np.sum(s**2)
    taken = np.ones(2) if mu == float("inf") else mu * share / (1 + mu * share)
    dense = B_c[0] @ A_c[0]
    V = vt[:2].T
    assert np.allclose(B_c[0] @ down[0], dense - dense @ V @ np.diag(taken) @ V.T)
    assert np.isclose(found.inside[0], np.linalg.norm(dense @ V) ** 2)
    assert found.protected[0] == 2
