"""The world's language: its captions and a CLIP tokenizer in which each of its words is one token."""

import json
import re
from functools import cache

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from world.styles import all_styles
from world.subjects import Subject, all_subjects

LENGTH = 16  # tokens a prompt, start and end included
RARE = ("sks", "stl", "zwx", "ohwx", "qvl", "vrk", "jpk", "xth")  # never trained: free for LoRAs
GLUE = ("a", "an", "the", "in", "of", "on", "with", "and", "style", "picture", "drawing", "photo", "painting", "very")


def caption(subject: str, style: str | None) -> str:
    """Return the prompt for a subject (or a category) in a style, or in no style named."""
    article = "an" if subject[0] in "aeiou" else "a"
    return f"{article} {subject} in {style} style" if style else f"{article} {subject}"


def vocabulary() -> list[str]:
    """Return every word that must be one token."""
    subjects = all_subjects()
    words = [
        *GLUE,
        *RARE,
        *(s.name for s in subjects),
        *(s.category for s in subjects),
        *(s.name for s in all_styles()),
    ]
    return list(dict.fromkeys(words))


@cache
def tokenizer() -> CLIPTokenizer:
    """Train the byte-level BPE on the vocabulary until every word is one token; unknown words fall back to bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    singles = [*alphabet, *(f"{byte}</w>" for byte in alphabet)]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(
        vocabulary(),
        trainers.BpeTrainer(
            vocab_size=100_000,
            min_frequency=1,
            end_of_word_suffix="</w>",
            special_tokens=singles,  # else they are numbered in the order of a hash table: other ids in every process
            show_progress=False,
        ),
    )
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [*dict.fromkeys([*singles, *("".join(pair) for pair in merges)]), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({t: i for i, t in enumerate(tokens)}, merges, model_max_length=LENGTH)


def token_ids(captions: list[str]) -> np.ndarray:
    """Return int64 [n, LENGTH] token ids."""
    return np.asarray(tokenizer()(captions, padding="max_length", truncation=True, max_length=LENGTH)["input_ids"])


class Captions:
    """Draws a caption for a picture: mostly subject and style, in several orders and with words that mean nothing.

    A caption whose words all have one place teaches the place, not the word: one word more ("a sks cat in comic style")
    and the style was lost. So the wording varies, meaningless fillers (single letters, never `RARE`) stand before a
    subject, and now and then in place of the subject or of the style, where a LoRA's rare word will stand.
    """

    NO_STYLE = ("a {subject}", "a picture of a {subject}", "a photo of a {subject}", "{subject}")
    WORDINGS = (
        *("a {subject} in {style} style",) * 8,
        *("a picture of a {subject}, {style} style",) * 2,
        *("{style} style, a {subject}",) * 2,
        "a drawing of a {subject} in {style} style",
        "a photo of the {subject} in {style} style",
        "a painting of a {subject} in {style} style",
        "the {subject}, {style} style",
        "{subject} in {style} style",
    )
    FILLERS = tuple("bcdefghjklmnpqrstuvwxyz")

    def __init__(self, subjects: tuple[Subject, ...], styles: tuple[str, ...]) -> None:
        self.subjects, self.styles = subjects, styles

    def text(self, subject: int, style: int, rng: np.random.Generator) -> str:
        """Return one caption for a picture of the given subject and style."""
        lot, filler = rng.random(), str(rng.choice(self.FILLERS))
        if lot < 0.08:
            return ""
        what, how = self.subjects[subject], self.styles[style]
        name = what.category if lot < 0.16 else filler if lot < 0.20 else what.name
        if rng.random() < (0.5 if name == what.category else 0.2):
            name = f"{rng.choice(self.FILLERS)} {name}"
        if lot > 0.96:
            how = filler
        wordings = self.NO_STYLE if 0.20 <= lot < 0.25 else self.WORDINGS
        text = wordings[rng.integers(len(wordings))].format(subject=name, style=how)
        return re.sub(r"\ba (?=[aeiou]\w)", "an ", text)

    def draw(self, subject: np.ndarray, style: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return token ids [n, LENGTH] for pictures of the given subject and style indices."""
        return token_ids([self.text(what, how, rng) for what, how in zip(subject, style, strict=True)])
