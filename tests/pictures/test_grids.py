"""What a grid shows is settled before a pipeline is opened: axes, adapters, labels; sheets and pages need no torch."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("PIL", reason="Pillow is not installed (make venv installs it)")
pytest.importorskip("jinja2", reason="jinja2 is not installed")

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nplora import UsageError
from nplora.parameters import FUSE
from nplora.pictures import VARIANTS, Asked, Picture, Section, Sheet, arrange, axes, draw, page, parse_axis

CAT, INK, DUST = Path("cat.safetensors"), Path("ink.safetensors"), Path("dust.peft")
PROMPT = ["a sks in stl style"]

# ------------------------------------------------------------------------------------------ what a grid shows


def sources(grid) -> list[list[tuple]]:
    return [[cell.source(2) for cell in row] for row in grid.cells]


def test_two_files_are_a_subject_and_a_style() -> None:
    grid = arrange(Asked(PROMPT), [CAT, INK])
    assert grid.columns == (
        "subject alone",
        "style alone",
        "addition",
        "addition at 0.67",
        "NP soft, mu 0.5",
        "NP hard",
    )
    assert grid.rows == ("",)
    subject, style, addition, matched, soft, hard = sources(grid)[0]
    assert (subject.files, style.files) == ((0,), (1,))
    assert dict(addition.parameters) == {"method": "np", "mu": 0.0}
    assert dict(matched.parameters) == {"method": "np", "mu": 0.0, "subject_strength": pytest.approx(2 / 3)}
    assert dict(soft.parameters) == {"method": "np"}
    assert dict(hard.parameters) == {"method": "np", "mu": math.inf}


@given(st.floats(0, 1e6), st.floats(-4, 4))
def test_the_matched_strength_is_what_mu_does_to_a_pair_of_one_seed(mu: float, strength: float) -> None:
    asked = Asked(PROMPT, columns=["adapter=matched"], parameters={"mu": mu, "subject_strength": strength})
    (found,) = sources(arrange(asked, [CAT, INK]))[0]
    assert dict(found.parameters) == {"method": "np", "mu": 0.0, "subject_strength": pytest.approx(strength / (1 + mu))}


def test_strengths_hold_for_a_file_alone_too() -> None:
    asked = Asked(PROMPT, parameters={"subject_strength": 0.5, "style_strength": 0.8}, strength=0.5)
    subject, style = sources(arrange(asked, [CAT, INK]))[0][:2]
    assert (subject.strength, style.strength) == (0.25, 0.4)


def test_one_file_stands_beside_the_bare_base() -> None:
    grid = arrange(Asked(PROMPT, seeds=[3, 4]), [CAT])
    assert (grid.rows, grid.columns) == (("seed = 3", "seed = 4"), ("no adapter", "cat"))
    assert [cell.source(1).files for cell in grid.cells[0]] == [(), (0,)]


def test_several_files_stand_side_by_side() -> None:
    assert arrange(Asked(PROMPT), [CAT, INK, DUST]).columns == ("no adapter", "cat", "ink", "dust.peft", "fused")
    assert arrange(Asked(PROMPT), [CAT, INK, DUST]).cells[0][4].source(3).files == (0, 1, 2)


def test_axes_of_one_side_are_multiplied() -> None:
    asked = Asked(PROMPT, rows=["seed=1,2"], columns=["mu=0,inf", "style-strength=0.5,1"])
    grid = arrange(asked, [CAT, INK])
    assert grid.columns == (
        "mu = 0, style strength = 0.5", "mu = 0, style strength = 1", "mu = inf, style strength = 0.5",
        "mu = inf, style strength = 1",
    )  # fmt: skip
    last = grid.cells[1][3]
    assert (last.seed, last.adapter, dict(last.parameters)) == (2, "fused", {"mu": math.inf, "style_strength": 1.0})


def test_prompts_and_seeds_may_stand_on_either_side() -> None:
    grid = arrange(Asked(["a cat", "a dog, asleep"], seeds=[1, 2], columns=["prompt"]), [CAT])
    assert (grid.rows, grid.columns) == (("seed = 1", "seed = 2"), ("a cat", "a dog, asleep"))
    assert grid.cells[1][1].prompt == "a dog, asleep"


def test_a_file_alone_may_have_its_own_prompt() -> None:
    grid = arrange(Asked(PROMPT, alone={"subject": "a sks in flat style"}), [CAT, INK])
    assert [cell.prompt for cell in grid.cells[0]] == ["a sks in flat style", *PROMPT * 5]


def test_every_number_of_fuse_is_an_axis() -> None:
    wanted = {p.name for p in FUSE if p.kind in ("number", "choice", "directions")} - {
        "format",
        "dtype",
        "device",
        "base",
        "dora",
    }
    assert wanted < set(axes())


def test_all_of_an_axis() -> None:
    assert parse_axis("method=all").values == axes()["method"].choices
    assert "np" in axes()["method"].choices
    assert parse_axis("side=all").values == ("input", "output")


def test_a_method_takes_the_parameters_that_it_knows() -> None:
    grid = arrange(Asked(PROMPT, parameters={"mu": 0.7}, columns=["method=all"]), [CAT, INK])
    for name, source in zip(axes()["method"].choices, sources(grid)[0], strict=True):
        values = dict(source.parameters)
        assert values.pop("method") == name
        assert values in ({}, {"mu": 0.7})
    assert dict(sources(grid)[0][grid.columns.index("np")].parameters) == {"method": "np", "mu": 0.7}
    assert dict(sources(grid)[0][grid.columns.index("ties")].parameters) == {"method": "ties"}


def test_plain_addition_stays_plain_where_parts_of_the_model_have_their_own_mu() -> None:
    rules = ("mu@up=2.0", "rank@up=8")
    grid = arrange(
        Asked(PROMPT, parameters={"overrides": rules}, columns=["adapter=addition,matched,soft,hard"]), [CAT, INK]
    )
    found = [dict(source.parameters)["overrides"] for source in sources(grid)[0]]
    assert found == [("rank@up=8",), ("rank@up=8",), rules, ("rank@up=8",)]
    grid = arrange(Asked(PROMPT, parameters={"overrides": "mu@up=2"}, columns=["method=np,linear,svd"]), [CAT, INK])
    assert [dict(source.parameters).get("overrides") for source in sources(grid)[0]] == [("mu@up=2",), None, None]


def test_a_merge_has_its_own_axes() -> None:
    grid = arrange(Asked(PROMPT, parameters={"method": "ties"}, columns=["density=0.1,1"]), [CAT, INK])
    assert grid.columns == ("density = 0.1", "density = 1")
    usual = arrange(Asked(PROMPT, parameters={"method": "ties"}), [CAT, INK])
    assert usual.columns[-2:] == ("NP hard", "fused by ties")
    with pytest.raises(UsageError, match="density is out of range"):
        arrange(Asked(PROMPT, parameters={"method": "ties", "density": 2}), [CAT, INK])


WRONG = {
    "colour=red": "unknown axis 'colour': expected adapter, prompt, seed, ",
    "mu": "the axis mu has no values: got 'mu'. Write NAME=VALUE,VALUE.",
    "mu=0,,1": "the axis mu has an empty value: got 'mu=0,,1'. Write NAME=VALUE,VALUE.",
    "mu=1,1": "the axis mu has one value twice: got 'mu=1,1'.",
    "mu=-1": "mu is out of range: expected a number from 0 to inf, got '-1'. ",
    "seed=x": "seed is out of range: expected a whole number from 0 on, got 'x'.",
    "steps=0": "steps is out of range: expected a whole number from 1 on, got '0'.",
    "strength=inf": "strength is out of range: expected a finite number, got 'inf'.",
    "adapter=subject,dog": "no adapter is called 'dog': expected none, subject, style, addition, matched, soft, hard, "
    "fused. Two files are a subject and a style; of another number each has its own.",
    "method=magic": "no method is called magic: expected one of np",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_axis(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        arrange(Asked(PROMPT, columns=[text]), [CAT, INK])
    assert str(caught.value).startswith(WRONG[text])


def test_an_axis_stands_on_one_side() -> None:
    with pytest.raises(UsageError, match="the axis mu is given twice"):
        arrange(Asked(PROMPT, rows=["mu=0"], columns=["mu=1"]), [CAT, INK])


# ------------------------------------------------------------------------------------------ sheets and pages

RED, BLUE = (200, 30, 40), (20, 60, 210)


def sheet(side: int = 16) -> Sheet:
    red, blue = (Image.new("RGB", (side, side), colour) for colour in (RED, BLUE))
    return Sheet(
        ("seed = 1", "<b>seed</b> & 2"), ("subject alone", "both"),
        ((Picture(red, {"fox": 0.91}), None), (Picture(blue), Picture(red, text="as it should be"))),
    )  # fmt: skip


@pytest.mark.parametrize("side", [16, 64, 300])
def test_a_sheet_shows_every_picture_where_it_belongs(side: int) -> None:
    image = draw(sheet(side), "A title", "a foot line")
    shown = {side: 128, 300: 256}[side] if side != 64 else 128
    found = {colour: sum(pixel == colour for pixel in image.get_flattened_data()) for colour in (RED, BLUE)}
    assert found == {RED: 2 * shown**2, BLUE: shown**2}
    left = image.width - 2 * shown
    reds = [x for x in range(image.width) for y in range(0, image.height, 8) if image.getpixel((x, y)) == RED]
    assert min(reds) < left + shown // 2 < max(reds)


def test_long_labels_are_wrapped() -> None:
    wide = Sheet(
        ("a sks in stl style " * 3,),
        ("addition at matched strength, mu = 0.5",),
        ((Picture(Image.new("RGB", (64, 64))),),),
    )
    assert draw(wide).width < 500


def test_sheets_are_put_together() -> None:
    both = sheet().above(sheet()).with_column("true", [None] * 4)
    assert both.columns == ("true", "subject alone", "both")
    assert [len(row) for row in both.pictures] == [3] * 4
    with pytest.raises(ValueError, match="columns"):
        both.above(sheet())


class Links(HTMLParser):
    """What a page would fetch, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object", "embed")
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "poster", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_holds_everything_itself() -> None:
    text = page("Turtle & <gold>", [Section("A pair", ("It is said that 1 < 2.",), sheet(), (("base", "world"),))])
    links = Links(text)
    assert len(links.found) == 3
    assert all(link.startswith("data:image/png;base64,") for link in links.found)
    assert not re.search(r"https?:|url\(|@import", text)
    for words in ("Turtle & <gold>", "1 < 2", "<b>seed</b> & 2", "fox 0.91", "as it should be", "world"):
        assert words in links.text


def test_large_pictures_are_embedded_small() -> None:
    noise = Image.effect_noise((512, 512), 60).convert("RGB")
    text = page("", [Section(sheet=Sheet(("",), ("",), ((Picture(noise),),)))])
    assert "data:image/jpeg;base64," in text
    assert len(text) < 512 * 512 * 3


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_shows_the_pictures(tmp_path: Path) -> None:
    file, shot = tmp_path / "page.html", tmp_path / "shot.png"
    file.write_text(page("Two colours", [Section("", (), sheet())]), encoding="utf-8")
    subprocess.run(
        ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--window-size=900,700", f"--screenshot={shot}", file.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    with Image.open(shot) as image:
        colours = {colour: number for number, colour in image.convert("RGB").getcolors(1 << 24)}
    assert colours[RED] > 1.5 * colours[BLUE] > 5000


def test_every_variant_is_told() -> None:
    for variant in VARIANTS.values():
        assert variant.sentence
        assert variant.title(None)
        assert variant.title(0.5)
