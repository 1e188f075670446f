"""`python -m world.dataset`: paint every subject in every style at every placement, once, into one array file.

The last placement of each subject is kept from every training (base, autoencoder, judges): it is the clean test split.
"""

import argparse
import json
import zlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from world.drawings import CANVAS, Placement, draw
from world.places import runs
from world.styles import Style, all_styles
from world.subjects import Subject, all_subjects

SIZE = 64
PLACEMENTS = 6  # the base learns from the first four, the judges from the first five, all are tested on the last


@dataclass(frozen=True)
class Dataset:
    """All true pictures.

    Attributes
    ----------
    pictures : numpy.ndarray
        uint8 [subjects, styles, placements, 64, 64, 3], memory-mapped.
    subjects, styles : tuple
        What the first two axes stand for.
    """

    pictures: np.ndarray
    subjects: tuple[Subject, ...]
    styles: tuple[Style, ...]

    @property
    def base_subjects(self) -> int:
        """How many subjects the base knows (they come first)."""
        return sum(not s.held_out for s in self.subjects)

    @property
    def base_styles(self) -> int:
        """How many styles the base knows (they come first)."""
        return sum(not s.held_out for s in self.styles)


def placement(subject: Subject, index: int) -> Placement:
    """Return the `index`-th placement of a subject: random, but the same on every machine."""
    rng = np.random.default_rng([zlib.crc32(subject.name.encode()), index])
    dx, dy = rng.uniform(-3 / SIZE, 3 / SIZE, 2)
    return Placement(float(rng.uniform(0.76, 0.95)), float(dx), float(dy))


def finish(canvas: np.ndarray) -> np.ndarray:
    """Box-average a painted canvas to the final size and round to bytes."""
    step = CANVAS // SIZE
    small = canvas.reshape(SIZE, step, SIZE, step, 3).mean((1, 3))
    return np.round(np.clip(small, 0, 1) * 255).astype(np.uint8)


def paint_subject(icons: Path, subject: Subject) -> np.ndarray:
    """Return uint8 [styles, placements, 64, 64, 3] of one subject."""
    drawings = [draw(icons, subject.slug, placement(subject, i)) for i in range(PLACEMENTS)]
    return np.stack([[finish(style.paint(d)) for d in drawings] for style in all_styles()])


def build(icons: Path, folder: Path) -> None:
    """Paint everything into `folder` (pictures.npy and the names in names.json)."""
    subjects = all_subjects()
    with ProcessPoolExecutor() as pool:
        painted = np.stack(list(pool.map(paint_subject, [icons] * len(subjects), subjects)))
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "pictures.npy", painted)
    names = {"subjects": [s.name for s in subjects], "styles": [s.name for s in all_styles()]}
    (folder / "names.json").write_text(json.dumps(names, indent=1))


def load(folder: Path | None = None) -> Dataset:
    """Open the data set; raises when it is missing or was painted from other tables."""
    folder = folder or runs() / "dataset"
    if not (folder / "pictures.npy").exists():
        raise FileNotFoundError(f"no data set in {folder}; run `python -m world.dataset`")
    names = json.loads((folder / "names.json").read_text())
    if names != {"subjects": [s.name for s in all_subjects()], "styles": [s.name for s in all_styles()]}:
        raise ValueError(f"the data set in {folder} was painted from other tables; run `python -m world.dataset` again")
    return Dataset(np.load(folder / "pictures.npy", mmap_mode="r"), all_subjects(), all_styles())


def sheet(pictures: np.ndarray, path: Path, gap: int = 2) -> None:
    """Save uint8 [rows, columns, height, width, 3] as one contact sheet."""
    rows, columns, height, width, _ = pictures.shape
    page = np.full((rows, height + gap, columns, width + gap, 3), 255, np.uint8)
    page[:, :height, :, :width] = pictures.transpose(0, 2, 1, 3, 4)
    Image.fromarray(page.reshape(rows * (height + gap), columns * (width + gap), 3)).save(path)


def main() -> None:
    """Build the data set and a sheet of every style."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--icons", type=Path, default=runs() / "icons")
    parser.add_argument("--out", type=Path, default=runs() / "dataset")
    options = parser.parse_args()
    build(options.icons, options.out)
    data = load(options.out)
    shown = [0, 6, 20, 45, 60, 75, 100, *range(data.base_subjects, len(data.subjects))]
    sheet(data.pictures[shown, :, 0].swapaxes(0, 1), options.out / "styles.png")
    print(
        f"{data.pictures.shape} pictures: {data.base_subjects} + {len(data.subjects) - data.base_subjects} subjects, "
        f"{data.base_styles} + {len(data.styles) - data.base_styles} styles"
    )


if __name__ == "__main__":
    main()
