"""What a re-identification network sees in views of pictures: the targets of distillation, computed once and stored.

    python -m vlm_par_hf.embedded.distillation --drawings 48000 --network person-reidentification-retail-0277.xml \\
        --work WORK --groups 2000
    python -m vlm_par_hf.embedded.distillation --parquet FOLDER --schema NAME --network ... --work WORK --groups 2000

The teacher is a network of the Open Model Zoo (Apache-2.0) that has learned from photographs to tell people apart. It
is shown views of drawn or rendered people; student and teacher see the same view. For each view are stored: its
pixels, its labels, the teacher's pooled features, and its patch features, resampled to the view's grid of patches and
projected to their leading principal components.

`WORK/views/NAME/` receives a file per group of views. Groups are functions of their number, the program goes on where
it was interrupted, and several may run at once (`--every 2 --offset 0`, `--every 2 --offset 1`). The first groups show
pictures that no later group shows: they are held out. With `--pairs` each person is in a group twice. Parquet files
that appear meanwhile are used from then on.
"""

import argparse
import json
import logging
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.export.exported import openvino_core
from vlm_par_hf.labels.schema import UNKNOWN_LABEL
from vlm_par_hf.labels.tables import get_schema

from .views import Pictures, disturb, draw_pictures, group_grid, make_view, mix_views, read_parquet


logger = logging.getLogger("vlm_par_hf.embedded.distillation")

GROUP = 64  # views
HELD_OUT_GROUPS = 8
HELD_OUT_PICTURES = 1000  # the first ones of a source; of a small one, a tenth or as many as a group needs
COMPONENTS = 128  # of the patch features
STATISTICS_GROUPS = 24  # of which means, deviations and components are computed


class Teacher:
    """A convolutional network in OpenVINO's format of which two tensors are read.

    Args:
        path: the `.xml` file. Its input is `(1, 3, H, W)`, BGR in [0, 255].
        patches: name of the tensor of patch features `(1, D, rows, columns)`.
        pooled: name of the tensor of pooled features, D numbers.
    """

    def __init__(
        self, path: Path, patches: str = "1126", pooled: str = "1135", threads: int = 1, batch_size: int = 16
    ):
        core = openvino_core()
        model = core.read_model(path)
        model.add_outputs([patches, pooled])
        height, width = list(model.input(0).partial_shape)[2:]
        self.size = (width.get_length(), height.get_length())
        self.batch_size = batch_size
        model.reshape([batch_size, 3, self.size[1], self.size[0]])
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": "NO",
        }
        self._compiled = core.compile_model(model, "CPU", settings)
        self._names = (patches, pooled)

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Patch features `(B, D, rows, columns)` and pooled features `(B, D)` of uint8 `(B, H, W, 3)`, B a multiple of
        the batch size."""
        values = torch.from_numpy(pixels[..., ::-1].copy()).permute(0, 3, 1, 2).float()
        values = F.interpolate(values, self.size[::-1], mode="bilinear", align_corners=False).numpy()
        patches, pooled = [], []
        for start in range(0, len(values), self.batch_size):
            output = self._compiled(np.ascontiguousarray(values[start : start + self.batch_size]))
            patches.append(output[self._names[0]].copy())
            pooled.append(output[self._names[1]].reshape(self.batch_size, -1).copy())
        return np.concatenate(patches), np.concatenate(pooled)


def rarity(labels: np.ndarray, num_labels: list[int]) -> np.ndarray:
    """How often each picture is shown: with the square root of the inverse frequency of its rarest label."""
    result = np.ones(len(labels))
    for position, count in enumerate(num_labels):
        known = labels[:, position] >= 0
        frequency = np.bincount(labels[known, position], minlength=count) / len(labels)
        result[known] = np.maximum(result[known], np.maximum(frequency[labels[known, position]], 1e-3) ** -0.5)
    return result


def draw_pairs(persons: np.ndarray, shown: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Two pictures each of `count / 2` persons, a person as often as their most wanted picture."""
    names, of_picture, pictures = np.unique(persons, return_inverse=True, return_counts=True)
    wanted = np.zeros(len(names))
    np.maximum.at(wanted, of_picture, shown)
    wanted[pictures < 2] = 0.0
    chosen = rng.choice(len(names), count // 2, replace=False, p=wanted / wanted.sum())
    return np.concatenate([rng.choice(np.flatnonzero(of_picture == one), 2, replace=False) for one in chosen])


def group_views(pictures: Pictures, number: int, seed: int = 11, pairs: bool = False) -> dict[str, np.ndarray]:
    """`pixels` uint8 `(64, H, W, 3)`, `labels` int16 `(64, A)`, `grid` `(2,)` and `index` `(64,)` of one group; where
    the pictures have persons also `persons` int64 `(64,)`, -1 for mixtures."""
    rng = np.random.default_rng((seed, number))
    shown = rarity(pictures.labels, [attribute.num_labels for attribute in pictures.schema])
    count = GROUP + GROUP // 4
    held_out = np.arange(len(shown)) < min(HELD_OUT_PICTURES, max(count, len(shown) // 10))
    shown[held_out != (number < HELD_OUT_GROUPS)] = 0.0
    grid = group_grid(rng)
    if pairs:
        if pictures.persons is None:
            raise ParValueError("pairs=True (--pairs), but of these pictures it is not known who is in them")
        chosen = draw_pairs(pictures.persons, shown, count, rng)
    else:
        chosen = rng.choice(len(shown), count, replace=False, p=shown / shown.sum())
    views = [make_view(pictures.read(i), pictures.labels[i], pictures.schema, grid, rng) for i in chosen]
    mixed = rng.choice(GROUP, GROUP // 4, replace=False)
    for position, other in zip(mixed, views[GROUP:], strict=True):
        views[position] = mix_views(views[position], other, UNKNOWN_LABEL, rng)
    group = {
        "pixels": np.stack([disturb(view.pixels, rng) for view in views[:GROUP]]),
        "labels": np.stack([view.labels for view in views[:GROUP]]).astype(np.int16),
        "grid": np.array(grid),
        "index": chosen[:GROUP],
    }
    if pictures.persons is not None:
        group["persons"] = pictures.persons[chosen[:GROUP]]
        group["persons"][mixed] = -1
    return group


def on_grid(patches: np.ndarray, grid) -> torch.Tensor:
    """Patch features `(B, D, rows, columns)` on another grid: `(B, rows * columns, D)`."""
    values = F.interpolate(
        torch.from_numpy(patches), tuple(grid), mode="bilinear", antialias=True, align_corners=False
    )
    return values.flatten(2).transpose(1, 2)


def fit_statistics(pictures: Pictures, teacher: Teacher) -> dict[str, np.ndarray]:
    """Mean and deviation of the pooled features; means of the patch features per position, and the leading principal
    components of what is left, with channels standardised, scaled so that their variances sum to one per patch."""
    pooled, patches = [], []
    for number in range(HELD_OUT_GROUPS, HELD_OUT_GROUPS + STATISTICS_GROUPS):
        found, vector = teacher(group_views(pictures, number)["pixels"])
        pooled.append(vector)
        patches.append(found)
    vectors, maps = np.concatenate(pooled), np.concatenate(patches)
    mean = maps.mean(0)
    tokens = torch.from_numpy((maps - mean)[:, :, ::2, ::2]).flatten(2).transpose(1, 2).flatten(0, 1).double()
    # A channel that is nearly always zero would be mostly noise: its deviation is bounded from below.
    deviations = tokens.square().mean(0).sqrt()
    deviations = deviations.clamp_min(float(deviations.median()) * 0.1)
    scaled = tokens / deviations
    variances, directions = torch.linalg.eigh(scaled.T @ scaled / len(scaled))
    kept, kept_variance = directions[:, -COMPONENTS:].flip(1), variances[-COMPONENTS:].sum()
    share = float(kept_variance / variances.sum())
    logger.info("%d components hold %.3f of the variance of the patch features", COMPONENTS, share)
    return {
        "pooled_mean": vectors.mean(0).astype(np.float32),
        "pooled_std": np.maximum(vectors.std(0), 1e-6).astype(np.float32),
        "patch_mean": mean.astype(np.float32),
        "patch_basis": (kept / deviations[:, None] / kept_variance.sqrt()).numpy().astype(np.float32),
    }


def add_targets(group: dict[str, np.ndarray], teacher: Teacher, statistics: dict[str, np.ndarray]) -> None:
    """Adds `pooled` float16 `(64, D)`, standardised, and `patches` float16 `(64, N, components)` to a group."""
    patches, pooled = teacher(group["pixels"])
    group["pooled"] = ((pooled - statistics["pooled_mean"]) / statistics["pooled_std"]).astype(np.float16)
    tokens = on_grid(patches - statistics["patch_mean"], group["grid"]).numpy()
    group["patches"] = (tokens @ statistics["patch_basis"]).astype(np.float16)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An `.npz` file that is complete whenever it exists."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(partial, path)


def found_files(args) -> list[Path]:
    return sorted(args.parquet.rglob("*.parquet")) if args.parquet is not None else []


def read_pictures(args, files: list[Path], schema) -> Pictures:
    if args.parquet is None:
        return Pictures(*draw_pictures(args.drawings, args.work), schema)
    pictures = read_parquet(files, schema)
    logger.info("%d pictures in %d files", len(pictures.labels), len(files))
    return pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", help="folder of the views in WORK/views/ (default: the schema)")
    parser.add_argument("--drawings", type=int, help="show so many drawings")
    parser.add_argument("--parquet", type=Path, help="show the pictures of the parquet files of this folder")
    parser.add_argument("--schema", default="synthetic", help="label space of the pictures")
    parser.add_argument("--network", type=Path, required=True, help="the teacher, an OpenVINO .xml file")
    parser.add_argument("--groups", type=int, required=True, help=f"of {GROUP} views each")
    parser.add_argument("--pairs", action="store_true", help="two pictures of each person in a group")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--offset", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    schema = get_schema(args.schema)
    files = found_files(args)
    pictures = read_pictures(args, files, schema)
    folder = args.work / "views" / (args.name or args.schema)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "source.json").write_text(json.dumps({"schema": args.schema, "pictures": len(pictures.labels)}))
    teacher = Teacher(args.network)
    statistics_file = args.work / "statistics.npz"
    if not statistics_file.exists():
        save_arrays(statistics_file, fit_statistics(pictures, teacher))
    statistics = dict(np.load(statistics_file))
    for number in range(args.offset, args.groups, args.every):
        path = folder / f"{number:06d}.npz"
        if path.exists():
            continue
        if number % 20 == 0 and found_files(args) != files:
            files = found_files(args)
            pictures = read_pictures(args, files, schema)
        group = group_views(pictures, number, pairs=args.pairs)
        add_targets(group, teacher, statistics)
        save_arrays(path, group)
        if number % 50 == 0:
            logger.info("group %d of %d", number, args.groups)


if __name__ == "__main__":
    main()
