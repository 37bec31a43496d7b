"""The real crops of `pa100k_mini` in five folds, none of which shares a person with another.

    PAR_DATA=... python benchmarks/folds.py                # prints the folds: pictures, persons, positives
    PAR_DATA=... python benchmarks/folds.py --out FOLDER   # FOLDER/K/crops.parquet: all pictures but those of fold K

1,600 pictures are few: with one split of them, intervals are wide. In five folds every picture is tested once, by a
model that has seen neither the picture nor its person. Fold k is tested, fold k + 1 validates (it chooses epochs,
regularisation and thresholds), the other three train; or, where nothing is chosen on validation, four train.

Persons are the groups of look-alikes of the data set (`person_id` of its reader). Whole groups are dealt, the largest
first, each to the smallest fold of that moment; the order of equally large groups is drawn with a fixed seed. So the
folds depend on the data set alone.
"""

import argparse
import os
from pathlib import Path

import numpy as np
from datasets import Image, concatenate_datasets

from vlm_par_hf import load_par_dataset


NUM_FOLDS = 5
MIN_POSITIVES = 20  # an attribute is scored if so many pictures have it, four per fold on average; 23 of the 26 do


def person_folds(person_ids: np.ndarray, num_folds: int = NUM_FOLDS, seed: int = 0) -> np.ndarray:
    """The fold of each picture, int64 `(N,)` in `range(num_folds)`; pictures of one person are in one fold.

    Args:
        person_ids: int `(N,)`.

    Raises:
        ValueError: there are fewer persons than folds.
    """
    persons, picture_person, sizes = np.unique(person_ids, return_inverse=True, return_counts=True)
    if len(persons) < num_folds:
        raise ValueError(f"{len(persons)} persons cannot be dealt to {num_folds} folds; expected at least one each")
    drawn = np.random.default_rng(seed).permutation(len(persons))
    fold, filled = np.empty(len(persons), np.int64), np.zeros(num_folds, np.int64)
    for person in drawn[np.argsort(-sizes[drawn], kind="stable")]:
        fold[person] = filled.argmin()
        filled[fold[person]] += sizes[person]
    return fold[picture_person]


def split_of_fold(folds: np.ndarray, test: int) -> dict[str, np.ndarray]:
    """Positions of the pictures of `train`, `validation` and `test` when fold `test` is tested."""
    num_folds = int(folds.max()) + 1
    validation = (test + 1) % num_folds
    return {
        "train": np.flatnonzero((folds != test) & (folds != validation)),
        "validation": np.flatnonzero(folds == validation),
        "test": np.flatnonzero(folds == test),
    }


def scored_attributes(labels: np.ndarray, min_positives: int = MIN_POSITIVES) -> np.ndarray:
    """Positions of the binary attributes with at least `min_positives` positives and as many negatives.

    Args:
        labels: int `(N, A)`, 0, 1, or another value for unknown.
    """
    counts = np.stack([(labels == 0).sum(0), (labels == 1).sum(0)])
    return np.flatnonzero(counts.min(0) >= min_positives)


def real_crops():
    """All 1,600 pictures as one data set with the columns of `load_par_dataset`, in the order of their file names.

    Raises:
        SystemExit: `PAR_DATA` names no folder with `pa100k_mini`.
    """
    root = Path(os.environ.get("PAR_DATA", "")) / "pa100k_mini"
    if not os.environ.get("PAR_DATA") or not root.is_dir():
        raise SystemExit("PAR_DATA must name the folder that holds pa100k_mini/")
    data = concatenate_datasets(list(load_par_dataset("pa100k", root).values()))
    return data.select(np.argsort(data["image_id"]))


def write_parquet(data, folder: Path, folds: np.ndarray) -> None:
    """Writes `K/crops.parquet` for each fold: the pictures that a model tested on it may see, with `image` (bytes of a
    file), `labels` and `person_id`, as `vlm_par_hf.embedded.distillation --parquet` reads them."""
    files = data.select_columns("image").cast_column("image", Image(decode=False))["image"]
    table = data.select_columns(["labels", "person_id"]).add_column(
        "image", [file["bytes"] or Path(file["path"]).read_bytes() for file in files]
    )
    for fold in range(NUM_FOLDS):
        path = folder / str(fold) / "crops.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.select(np.flatnonzero(folds != fold)).to_parquet(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="writes what each fold may see as parquet files")
    args = parser.parse_args()
    data = real_crops()
    labels, persons = np.asarray(data["labels"]), np.asarray(data["person_id"])
    folds = person_folds(persons)
    scored = len(scored_attributes(labels))
    print(f"{len(data)} pictures, {len(np.unique(persons))} persons, {scored} attributes scored")
    for fold in range(NUM_FOLDS):
        inside = folds == fold
        positives = (labels[inside] == 1).sum(0)
        count = len(np.unique(persons[inside]))
        print(f"fold {fold}: {inside.sum()} pictures, {count} persons, positives {positives}")
    if args.out is not None:
        write_parquet(data, args.out, folds)


if __name__ == "__main__":
    main()
