"""The world's language: its captions and a CLIP tokenizer in which each of its words is one token."""

import json
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
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(
        vocabulary(),
        trainers.BpeTrainer(
            vocab_size=100_000,
            min_frequency=1,
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({t: i for i, t in enumerate(tokens)}, merges, model_max_length=LENGTH)


def token_ids(captions: list[str]) -> np.ndarray:
    """Return int64 [n, LENGTH] token ids."""
    return np.asarray(tokenizer()(captions, padding="max_length", truncation=True, max_length=LENGTH)["input_ids"])


class Captions:
    """Draws a caption for a picture: mostly subject and style; sometimes the category, no style, or nothing."""

    def __init__(self, subjects: tuple[Subject, ...], styles: tuple[str, ...]) -> None:
        rows = [[caption(word, style) for style in (*styles, None)] for s in subjects for word in (s.name, s.category)]
        self._ids = token_ids([c for row in rows for c in row]).reshape(len(subjects), 2, len(styles) + 1, LENGTH)
        self._empty = token_ids([""])[0]

    def draw(self, subject: np.ndarray, style: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return token ids [n, LENGTH] for pictures of the given subject and style indices."""
        lot = rng.random(len(subject))
        by_category = (lot < 0.08).astype(int)
        style = np.where((lot >= 0.08) & (lot < 0.12), self._ids.shape[2] - 1, style)
        ids = self._ids[subject, by_category, style]
        ids[(lot >= 0.12) & (lot < 0.20)] = self._empty
        return ids
