"""The world's training code: its language, its series of LoRAs, its card; a training of two steps."""

import json
import re
import subprocess
import sys

import pytest

np = pytest.importorskip("numpy")
for package in ("torch", "scipy", "diffusers", "transformers", "peft", "accelerate"):
    pytest.importorskip(package, reason=f"{package} is not installed (make venv installs it)")

from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file
from world.places import LORAS, MODEL
from world.series import ARMS, Job, held_out, series
from world.styles import all_styles
from world.subjects import all_subjects

from world import adapters, card, judge, words

BASE_SUBJECTS = tuple(s for s in all_subjects() if not s.held_out)
BASE_STYLES = tuple(s.name for s in all_styles() if not s.held_out)


def captions(count=3000):
    drawn, rng = words.Captions(BASE_SUBJECTS, BASE_STYLES), np.random.default_rng(5)
    return [drawn.text(i % len(BASE_SUBJECTS), i % len(BASE_STYLES), rng) for i in range(count)]


def test_training_captions_never_use_a_loras_words_or_what_is_held_out():
    used = set(re.findall(r"\w+", " ".join(captions())))
    assert not used & set(words.RARE)
    assert not used & {name for _, name in held_out()}
    assert {s.name for s in BASE_SUBJECTS} | set(BASE_STYLES) <= used


def test_a_word_of_a_caption_has_no_place_of_its_own():
    cats = [
        text.split()
        for text in (
            words.Captions(BASE_SUBJECTS[:1], BASE_STYLES[:1]).text(0, 0, rng)
            for rng in [np.random.default_rng(1)] * 400
        )
    ]
    subject, style = BASE_SUBJECTS[0].name, BASE_STYLES[0]
    for word in (subject, style):
        assert len({c.index(word) for c in cats if word in c}) > 2


def test_every_word_is_one_token_and_every_caption_fits():
    assert all(len(words.tokenizer().tokenize(word)) == 1 for word in words.vocabulary())
    ids = words.token_ids(captions())
    assert (ids[:, -1] == words.tokenizer().eos_token_id).all(), "a caption was cut off"


def test_the_shipped_tokenizer_knows_every_word_of_the_tables():
    from transformers import CLIPTokenizer

    shipped = CLIPTokenizer.from_pretrained(MODEL, subfolder="tokenizer")
    assert all(len(shipped.tokenize(word)) == 1 for word in words.vocabulary())
    assert shipped.get_vocab().keys() == words.tokenizer().get_vocab().keys()


def test_every_process_numbers_the_words_alike():
    """The numbers once followed the order of a hash table: a run that was resumed had other words than before."""
    ask = "from world import words; print(sorted(words.tokenizer().get_vocab().items()))"
    there = subprocess.run(
        [sys.executable, "-c", ask], cwd=MODEL.parents[1], capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == str(sorted(words.tokenizer().get_vocab().items()))


def test_the_series_holds_what_it_promises():
    jobs = series()
    assert len({job.file for job in jobs}) == len(jobs)
    for kind, name in held_out():
        for rank in (4, 8):
            assert {(j.arm) for j in jobs if (j.kind, j.name, j.rank) == (kind, name, rank)} == set(ARMS)
        assert {j.repeat for j in jobs if j.name == name and j.rank == 4} == {0, 1, 2}
    assert {16, 32} <= {j.rank for j in jobs}
    assert sum(kind == "subject" for kind, _ in held_out()) >= 12
    assert sum(kind == "style" for kind, _ in held_out()) >= 16


def test_the_folder_of_loras_holds_only_what_the_series_ships():
    shipped = {job.file: job for job in series() if job.shipped}
    for file in LORAS.glob("*.safetensors"):
        if not file.name.endswith(".kohya.safetensors"):
            facts = json.loads(file.with_suffix(".json").read_text())
            assert (facts["kind"], facts["name"]) == (shipped[file.name].kind, shipped[file.name].name)
            assert (facts["seed"] == 0) == (facts["arm"] == "shared")


def row_space_share(subject, style):
    """Share of the subject's energy in the style's row space, over all modules."""
    inside = whole = 0.0
    for key in (k for k in subject if k.endswith("lora_A.weight")):
        update = subject[key.replace("lora_A", "lora_B")].astype(np.float64) @ subject[key].astype(np.float64)
        rows = np.linalg.svd(style[key].astype(np.float64), full_matrices=False)[2]
        inside += np.linalg.norm(update @ rows.T) ** 2
        whole += np.linalg.norm(update) ** 2
    return inside / whole


def test_a_shared_seed_makes_the_row_spaces_overlap():
    share = {}
    for arm in ARMS:
        pair = [LORAS / f"{name}-r4-{arm}.safetensors" for name in ("subject-fox", "style-gold")]
        if not all(file.exists() for file in pair):
            pytest.skip(f"fox and gold of the arm {arm!r} are not shipped")
        share[arm] = row_space_share(*(load_file(file) for file in pair))
    assert share["shared"] > 2 * share["own"]


def test_the_card_states_what_was_measured():
    text = card.README.read_text()
    figures = json.loads(card.MEASURED.read_text())
    assert text.split(card.BEGIN)[1].split(card.END)[0] == card.tables(figures)


def test_what_an_earlier_card_measured_of_this_base_stays_apart():
    before = {
        "base": {"sha256": "a"},
        "loras": {"style-gold": "old", "style-ink": "old"},
        "earlier": {"style-crt": "older"},
    }
    found = card.with_earlier({"loras": {"style-gold": "new"}}, before)
    assert found == {
        "base": {"sha256": "a"},
        "loras": {"style-gold": "new"},
        "earlier": {"style-crt": "older", "style-ink": "old"},
    }
    assert card.with_earlier({"base": {"sha256": "b"}}, before) == {"base": {"sha256": "b"}}


def test_a_lora_is_trained_once_and_again_when_its_recipe_is_another(tmp_path):
    images, out = tmp_path / "images", tmp_path / "loras"
    images.mkdir()
    for index, name in enumerate(("cat-0", "car-0")):
        Image.fromarray(np.full((64, 64, 3), 60 * index + 40, np.uint8)).save(images / f"{name}.png")
    job = Job("style", "gold", "shared")
    said = [adapters.run(job, images, MODEL, out, steps) for steps in (2, 2, 3)]
    assert said[0].startswith(f"{job.file}: loss ")
    assert said[1] == f"{job.file}: kept"
    assert said[2].startswith(f"{job.file}: loss ")
    facts = json.loads((out / job.file).with_suffix(".json").read_text())
    assert (facts["seed"], facts["steps"], facts["pictures"], facts["rank"]) == (0, 3, 2, 4)
    assert sorted(file.name for file in out.iterdir()) == [
        "style-gold-r4-shared.json",
        "style-gold-r4-shared.kohya.safetensors",
        "style-gold-r4-shared.peft",
        "style-gold-r4-shared.safetensors",
    ]
    with safe_open(out / job.file, "np") as file:
        assert file.metadata()["ss_sd_model_name"] == "world"


@pytest.mark.parametrize("seed", judge.SEEDS)
def test_a_shipped_judge_knows_the_true_pictures(seed, monkeypatch, tmp_path):
    monkeypatch.setenv("NPLORA_WORLD_RUNS", str(tmp_path))  # no judge was trained here
    files = sorted((MODEL.parent / "pictures" / "true").glob("*-*.png"))
    assert files
    pictures = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    verdict = judge.judge(judge.load(seed), pictures)
    said = zip(verdict.subject.argmax(1), verdict.style.argmax(1), strict=True)
    assert [f"{all_subjects()[s].name}-{all_styles()[t].name}" for s, t in said] == [file.stem for file in files]
