"""Annotation files of the public data sets as documented: full field counts, realistic index ranges, random labels."""

import csv
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from modeling_tests.pa100k_files import cell
from vlm_par_hf.data.readers.peta import PETA_SUBSETS
from vlm_par_hf.labels.tables import get_schema


COLORS = ("Black", "Blue", "Brown", "Green", "Grey", "Orange", "Pink", "Purple", "Red", "White", "Yellow")
PETA_NAMES = (
    *get_schema("peta35").names,
    *(f"{part}{color}" for part in ("upperBody", "lowerBody", "hair", "footwear") for color in COLORS),
    *get_schema("peta65").names[35:61],
)
# images and persons of each sub-folder; the persons add up to 8,699
PETA_SIZES = {
    "3DPeS": (1012, 193), "CAVIAR4REID": (1220, 72), "CUHK": (4563, 4563), "GRID": (1275, 1025), "i-LID": (477, 120),
    "MIT": (888, 888), "PRID": (1134, 934), "SARC3D": (200, 50), "TownCentre": (6967, 222), "VIPeR": (1264, 632),
}  # fmt: skip


def write_picture(path: Path, number: int | None = None) -> None:
    """A small picture of its own colors; lossless formats keep them."""
    number = zlib.crc32(path.name.encode()) if number is None else number
    path.parent.mkdir(parents=True, exist_ok=True)
    color = (number % 256, number // 256 % 256, number // 65536 % 256)
    Image.new("RGB", (6, 14), color).save(path)


def struct(**fields) -> np.ndarray:
    """A 1 x 1 MATLAB struct with the fields in this order."""
    made = np.empty((1, 1), dtype=[(name, object) for name in fields])
    for name, value in fields.items():
        made[0, 0][name] = value
    return made


def cells(values, shape) -> np.ndarray:
    """A cell array of structs or matrices."""
    made = np.empty(len(values), dtype=object)
    for position, value in enumerate(values):
        made[position] = value
    return made.reshape(shape)


def peta_data(images: int = 19000, seed: int = 0) -> np.ndarray:
    """(19000, 109): image, person, subset, person inside the subset, 105 labels that are the same for a person."""
    rng = np.random.default_rng(seed)
    subset, local = [], []
    for number, (count, persons) in enumerate(PETA_SIZES.values(), start=1):
        subset += [number] * count
        local += np.sort(np.concatenate([np.arange(persons), rng.integers(0, persons, count - persons)])).tolist()
    subset, local = np.asarray(subset)[:images], np.asarray(local)[:images]
    _, person = np.unique(subset * 10_000 + local, return_inverse=True)
    labels = (rng.random((person.max() + 1, 105)) < 0.3).astype(np.uint16)
    return np.column_stack([np.arange(1, images + 1), person + 1, subset, local, labels[person]]).astype(np.uint16)


def peta_variables(data: np.ndarray, sizes=(9500, 1900, 7600), names=PETA_NAMES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    parts = []
    for _ in range(5):
        order = (rng.permutation(len(data)) + 1).astype(np.uint16)
        train, val, test = np.split(order[: sum(sizes)][:, None], [sizes[0], sizes[0] + sizes[1]])
        parts.append(struct(train=train, val=val, test=test))
    return {
        "peta": struct(
            data=data,
            attribute=cell(names),
            selected_attribute=np.arange(5, 40, dtype=np.uint8)[None],  # columns of data
            partion_attribute=cells(parts, (5, 1)),  # sic
        )
    }


def write_peta_archive(
    root: Path, data: np.ndarray, *, extra_line: bytes = b"9999 hairLong caf\xe9\r\n"
) -> dict[int, str]:
    """The original sub-folders with the images of `data`; returns image number -> file below the archive. The labels
    end with `extra_line`: here and there a letter that is not UTF-8."""
    suffixes = dict(zip(PETA_SUBSETS, ["bmp", "jpg", "png", "jpeg", "jpg", "jpg", "png", "BMP", "jpg", "bmp"]))
    files = {}
    for number, subset in enumerate(PETA_SUBSETS, start=1):
        rows = data[data[:, 2] == number]
        folder = root / subset / "archive"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "Thumbs.db").write_bytes(b"no image")
        lines, seen = [], {}
        for image, _, _, person, *labels in rows.tolist():
            index = seen[person] = seen.get(person, -1) + 1
            stem = f"{person:04d}" if subset == "CUHK" else f"{person:03d}_{index}"
            files[image] = f"{subset}/{stem}.{suffixes[subset]}"
            write_picture(folder / f"{stem}.{suffixes[subset]}", image)
            positive = [name for name, value in zip(PETA_NAMES, labels) if value]
            # Label.txt spells one of the 105 differently, and holds four that PETA.mat does not have.
            positive = ["footwearSneakers" if name == "footwearSneaker" else name for name in positive]
            key = f"{stem}.png" if subset == "CUHK" else f"{person:03d}"
            if index == 0:
                lines.append(" ".join([key, *positive, "accessoryFaceMask"]))
        # as the real files: other line ends
        (folder / "Label.txt").write_bytes("\r\n".join([*lines, ""]).encode() + extra_line)
    return files


def market_variables(seed: int = 0) -> dict[str, np.ndarray]:
    """751 and 750 persons, test first, the fields of the halves in different orders."""
    rng = np.random.default_rng(seed)
    names = list(get_schema("market1501").names)
    numbers = rng.permutation(np.arange(1, 1502))
    halves = {}
    for half, persons in (("test", np.sort(numbers[751:])), ("train", np.sort(numbers[:751]))):
        order = names if half == "test" else [names[i] for i in rng.permutation(len(names))]
        fields = {
            name: rng.integers(1, 5 if name == "age" else 3, (1, len(persons)), dtype=np.uint8) for name in order
        }
        fields["image_index"] = cell([f"{person:04d}" for person in persons]).T
        halves[half] = struct(**fields)
    return {"market_attribute": struct(**halves)}


def rapv1_variables(seed: int = 0, images: int = 41585) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    names = [name.replace("Pushing", "Pusing") for name in get_schema("rapv1").names]
    names += [f"other-{number}" for number in range(92 - len(names))]
    label = (rng.random((images, 92)) < 0.2).astype(np.uint8)
    label[rng.random(images) < 0.01, 0] = 2
    files = [f"CAM{i % 26 + 1:02d}-2014-02-15-tarid{i // 3}-frame{i}-line1.png" for i in range(images)]
    parts = []
    for _ in range(5):
        order = (rng.permutation(images) + 1).astype(np.uint16)[None]
        split = images * 4 // 5
        parts.append(struct(train_index=order[:, :split], test_index=order[:, split:]))
    annotation = struct(
        partion=cells(parts, (5, 1)),
        label=label,
        attribute_chinese=cell(["?"] * 92),
        attribute_eng=cell(names),
        position=np.zeros((1, 16), np.int32),
        imagesname=cell(files),
        attribute_exp=cell(["?"] * 51),
    )
    return {"RAP_annotation": annotation}


def rapv2_variables(seed: int = 0, images: int = 84928) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    columns = [*range(1, 6), *range(8, 11), *range(12, 19), *range(22, 32), 46, 48, 49, *range(51, 54)]
    columns += [*range(68, 72), 73, 74, *range(89, 92), *range(93, 97), 98, 99, 101, 102, *range(106, 112)]
    names = [f"other-{number}" for number in range(1, 153)]
    for column, name in zip(columns, get_schema("rapv2").names, strict=True):
        names[column - 1] = "Femal" if name == "Female" else name
    data = (rng.random((images, 152)) < 0.2).astype(np.uint16)
    data[:, 111] = rng.integers(1, 5, images)  # the viewpoint
    data[:, 120:] = rng.integers(0, 1000, (images, 32))  # boxes
    data[rng.random(images) < 0.01, 0] = 2
    parts, sizes = [], (images * 3 // 5, images * 4 // 5)
    for _ in range(5):
        train, val, test = np.split((rng.permutation(images) + 1).astype(np.int32)[None], sizes, axis=1)
        parts.append(struct(train_index=train, val_index=val, test_index=test))
    persons = np.full((images, 1), -1, np.int32)
    known = min(41585, images)
    persons[:known, 0] = rng.integers(-1, 2589, known)
    annotation = struct(
        name=cell([f"CAM{i % 23 + 1:02d}-x-tarid{i // 3}-frame{i}-line1.jpg" for i in range(images)]),
        data=data,
        attribute=cell(names),
        selected_attribute=np.asarray([columns], np.uint8),
        partition_attribute=cells(parts, (1, 5)),
        partition_reid=struct(train_identity=np.zeros((1, 1)), test_identity=np.zeros((1, 1))),
        person_identity=persons,
    )
    return {"RAP_annotation": annotation}


def write_upar_table(path: Path, images: list[str], labels: np.ndarray, names=None, end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = get_schema("upar40").names if names is None else names
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream, lineterminator=end)
        writer.writerow(["# image", *names])
        writer.writerows([image, *row] for image, row in zip(images, labels.tolist()))
