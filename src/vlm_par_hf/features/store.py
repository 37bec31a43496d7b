"""Features of a frozen backbone in shards: on disk, memory-mapped, or in memory.

A folder holds the features of one image set under one backbone and one processor, in any number of views:

    manifest.json                    what the features depend on, their shape, the views
    identity-00000.safetensors ...   `patch_embeds`, `image_embeds`, `patch_mask` (int8: `patch_scale`) of some rows

A shard appears whole or not at all, so whatever ended an earlier process, the shards that are there are good and the
others are still to be computed. There are no labels in it: label spaces, heads, seeds and recipes share one folder.
"""

import hashlib
import json
import logging
import os
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from huggingface_hub.utils import tqdm
from safetensors.torch import load_file, save

from vlm_par_hf.images.opening import open_image
from vlm_par_hf.utils import atomic_write_json


__all__ = ["FeatureStore", "FeatureView", "describe_features", "feature_views"]

logger = logging.getLogger(__name__)

FORMAT = 1  # of the folder; also raised when the package opens or prepares images in another way
MANIFEST = "manifest.json"
DTYPES = ("float32", "float16", "bfloat16", "int8")
# A killed process loses one shard: minutes of a base-size tower on a CPU, less than a second on a GPU.
_SHARD_BYTES = 64 * 2**20
_MAX_SHARD_ROWS = 4096
_GIB = 2**30
_TEXT_WEIGHTS = ("text_model.", "text_projection.", "logit_")
_VIEW_NAME = re.compile(r"identity|flip|crop([1-9]\d*)(-flip)?")


@dataclass(frozen=True)
class FeatureView:
    """One way to look at every image.

    Attributes:
        mirrored: flipped from left to right; its labels are the schema's mirrored ones.
        draw: 0 for the whole image; k > 0 for the k-th random crop, which is what `AugmentedDataset` with
            `ParAugmentation(pad=pad)` and `seed` shows in epoch k.
        pad: of the crop, as in `ParAugmentation`.
        seed: of the crop.
    """

    mirrored: bool = False
    draw: int = 0
    pad: float = 0.0
    seed: int = 0

    @classmethod
    def from_name(cls, name: str, *, pad: float = 0.05, seed: int = 0) -> "FeatureView":
        """The view called `"identity"`, `"flip"`, `"cropK"` or `"cropK-flip"` (K from 1).

        Raises:
            ValueError: another name.
        """
        match = _VIEW_NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"view {name!r}: expected 'identity', 'flip', 'cropK' or 'cropK-flip' with K from 1")
        draw = int(match[1] or 0)
        return cls(name.endswith("flip"), draw, pad if draw else 0.0, seed if draw else 0)


def feature_views(flip: bool = False, crops: int = 0) -> tuple[str, ...]:
    """Names of the views for a recipe: `"identity"`, with `flip` also `"flip"`, and `crops` random crops, with `flip`
    every second of them mirrored.

    Raises:
        ValueError: `crops` is negative.
    """
    if crops < 0:
        raise ValueError(f"crops={crops!r}: expected 0 or more")
    names = [f"crop{k}-flip" if flip and k % 2 == 0 else f"crop{k}" for k in range(1, crops + 1)]
    return ("identity", *(("flip",) if flip else ()), *names)


@dataclass(frozen=True)
class Shard:
    """Rows `start` to `stop` of one view."""

    view: str
    index: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def file(self) -> str:
        return f"{self.view}-{self.index:05d}.safetensors"


class FeatureStore:
    """Features of one image set, read by row and view. Make one with `create` or `open`."""

    def __init__(self, count, shape, dtype, views, rows_per_shard, directory=None, key=""):
        self.count = count
        self.shape = tuple(shape)
        self.dtype = dtype
        self.views: dict[str, FeatureView] = dict(views)
        self.rows_per_shard = rows_per_shard
        self.directory = directory
        self._key = key
        self._tensors: dict[tuple[str, int], dict[str, torch.Tensor]] = {}
        self._mapped = False
        self._locks: dict[Shard, FileLock] = {}

    @classmethod
    def create(
        cls,
        count: int,
        shape: Callable[[], tuple[int, int, int]],
        dtype: str,
        views: Mapping[str, FeatureView],
        *,
        directory: str | Path | None = None,
        describe: Mapping[str, Any] | None = None,
        rows_per_shard: int | None = None,
    ) -> "FeatureStore":
        """A store to be filled; with a folder that holds the same features already, what is missing in it.

        Args:
            count: images S.
            shape: gives patches N, width D of the patches, width of the pooled output; a folder that was begun
                already has them.
            dtype: one of float32, float16, bfloat16, int8.
            views: the views by name.
            directory: None keeps the features in memory.
            describe: what the features depend on (`describe_features`); for a folder only.
            rows_per_shard: None: 64 MiB per shard. A folder keeps the value it was begun with.

        Raises:
            ValueError: the folder was made for other features; every difference is named.
        """
        if directory is None:
            sizes = shape()
            return cls(count, sizes, dtype, views, rows_per_shard or _rows_per_shard(sizes, dtype))
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        wanted = json.loads(json.dumps({"format": FORMAT, **(describe or {}), "dtype": dtype}))
        # Several processes may begin at once; each adds its views to what the others wrote.
        with FileLock(directory / ".lock"):
            manifest = _read_manifest(directory) if (directory / MANIFEST).exists() else None
            if manifest is None:
                if any(directory.glob("*.safetensors")):
                    raise ValueError(
                        f"directory={str(directory)!r} holds safetensors files and no {MANIFEST}: "
                        "name another folder for the features"
                    )
                sizes = shape()
                manifest = {
                    "depends_on": wanted,
                    "images": count,
                    "shape": list(sizes),
                    "rows_per_shard": rows_per_shard or _rows_per_shard(sizes, dtype),
                    "views": {},
                }
            found = {name: view for name, view in manifest["views"].items() if name in views}
            differences = _differences(
                {**manifest["depends_on"], "view": found},
                {**wanted, "view": {name: asdict(views[name]) for name in found}},
            )
            if differences:
                raise ValueError(
                    f"the features in {str(directory)!r} are of something else; name another folder or delete it:\n  "
                    + "\n  ".join(differences)
                )
            manifest["views"].update({name: asdict(view) for name, view in views.items()})
            atomic_write_json(directory / MANIFEST, manifest)
        return cls._from_manifest(directory, manifest, views)

    @classmethod
    def open(cls, directory: str | Path, views: Sequence[str] | None = None) -> "FeatureStore":
        """What an earlier run left in a folder, whatever made it; needs neither model nor images.

        Args:
            directory: the folder.
            views: names; None: all that the folder has.

        Raises:
            FileNotFoundError: the folder has no manifest.
            ValueError: a view is unknown, or shards are missing or damaged.
        """
        directory = Path(directory)
        manifest = _read_manifest(directory)
        known = manifest["views"]
        unknown = sorted(set(views or ()) - known.keys())
        if unknown:
            raise ValueError(f"views={unknown!r} are not in {str(directory)!r}: it has {sorted(known)}")
        store = cls._from_manifest(
            directory, manifest, {name: FeatureView(**known[name]) for name in (views or known)}
        )
        missing = store.missing()
        if missing:
            raise ValueError(
                f"{str(directory)!r} lacks {len(missing)} shards, the first is {missing[0].file}: its computation was "
                "interrupted; run it again, it goes on where it stopped"
            )
        return store

    @classmethod
    def _from_manifest(cls, directory, manifest, views):
        key = hashlib.sha256(json.dumps(manifest["depends_on"], sort_keys=True).encode()).hexdigest()
        return cls(
            manifest["images"], manifest["shape"], manifest["depends_on"]["dtype"], views,
            manifest["rows_per_shard"], directory, key,
        )  # fmt: skip

    def __getstate__(self):
        # A process of its own maps the files itself; features in memory travel as they are.
        state = {**self.__dict__, "_locks": {}}
        return state if self.directory is None else {**state, "_tensors": {}, "_mapped": False}

    def __len__(self) -> int:
        return self.count

    @property
    def nbytes(self) -> int:
        """Bytes of the features when all views are there."""
        return self.count * len(self.views) * _row_bytes(self.shape, self.dtype)

    def missing(self) -> list[Shard]:
        """The shards that are still to be computed; a file that is damaged or of another cache counts as missing."""
        return [shard for view in self.views for shard in self._shards_of(view) if not self.has(shard)]

    def _shards_of(self, view: str) -> list[Shard]:
        step = self.rows_per_shard
        starts = range(0, self.count, step)
        return [Shard(view, i, start, min(start + step, self.count)) for i, start in enumerate(starts)]

    def has(self, shard: Shard) -> bool:
        if (shard.view, shard.index) in self._tensors:
            return True
        if self.directory is None:
            return False
        path = self.directory / shard.file
        if not path.exists():
            return False
        if not self._is_whole(path, shard):
            logger.warning("%s is damaged or belongs to other features: it is computed again", path)
            return False
        return True

    def _is_whole(self, path: Path, shard: Shard) -> bool:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if length > size:
                return False
            try:
                header = json.loads(file.read(length))
            except ValueError:
                return False
        expected = header.pop("__metadata__", None) == self._metadata(shard)
        return expected and size == 8 + length + max(entry["data_offsets"][1] for entry in header.values())

    def _metadata(self, shard: Shard) -> dict[str, str]:
        return {"features": self._key, "view": shard.view, "rows": f"{shard.start}-{shard.stop}"}

    # Filling

    def claim(self, shard: Shard) -> bool:
        """Takes a shard for this process; False while another one has it. The claim ends with the process, however
        that ends."""
        if self.directory is None:
            return True
        locks = self.directory / ".locks"
        locks.mkdir(exist_ok=True)
        # Released by the thread that writes, hence not bound to the one that claims.
        lock = FileLock(locks / shard.file, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        self._locks[shard] = lock
        return True

    def release(self, shard: Shard) -> None:
        lock = self._locks.pop(shard, None)
        if lock is not None:
            lock.release()

    def put(self, shard: Shard, tensors: dict[str, torch.Tensor]) -> None:
        """Keeps a shard that `encode` made; in a folder it is on the disk when this returns."""
        if self.directory is None:
            self._tensors[shard.view, shard.index] = tensors
            return
        path = self.directory / shard.file
        # One name per shard is enough: whoever writes it holds its lock, and takes over what a killed process left.
        temporary = self.directory / f".{shard.file}.tmp"
        # `save_file` would let nobody but this user read it, and a cache may be shared.
        with temporary.open("wb") as file:
            file.write(save(tensors, metadata=self._metadata(shard)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def encode(self, patch_embeds, image_embeds, patch_mask) -> dict[str, torch.Tensor]:
        """What a shard keeps of a batch, on the CPU.

        int8 keeps 255 levels per patch between plus and minus its largest entry; the pooled output is float16 then.

        Raises:
            ValueError: a value is not finite, or beyond the range of the stored dtype.
        """
        if self.dtype == "int8":
            _check_finite(patch_embeds, patch_embeds, "patch_embeds", self.dtype)
            values = patch_embeds.float()
            scale = values.abs().amax(-1) / 127
            codes = (values / scale.clamp_min(torch.finfo(torch.float32).tiny)[..., None]).round()
            stored = {"patch_embeds": codes.to(torch.int8), "patch_scale": scale}
        else:
            stored = {"patch_embeds": patch_embeds.to(getattr(torch, self.dtype))}
            _check_finite(stored["patch_embeds"], patch_embeds, "patch_embeds", self.dtype)
        stored["image_embeds"] = image_embeds.to(_pooled_dtype(self.dtype))
        _check_finite(stored["image_embeds"], image_embeds, "image_embeds", self.dtype)
        stored["patch_mask"] = patch_mask.bool()
        return {name: value.cpu() for name, value in stored.items()}

    # Reading

    def _map_files(self) -> None:
        """Pages of the files are read when they are touched, and the system may drop them again.

        All files at once: what one leaves in the heap between two batches would lie where the last batch was, and the
        next batch would need new memory.
        """
        for view in self.views:
            for shard in self._shards_of(view):
                if (view, shard.index) not in self._tensors:
                    self._tensors[view, shard.index] = load_file(self.directory / shard.file)

    def read(self, rows: Sequence[int], views: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """Rows in any order.

        Args:
            rows: B positions from 0.
            views: B names, the view of each row; None: the first view.

        Returns:
            `patch_embeds` float32 `(B, N, D)`, `image_embeds` float32 `(B, D)`, `patch_mask` bool `(B, N)`.
        """
        views = [next(iter(self.views))] * len(rows) if views is None else views
        if self.directory is not None and not self._mapped:
            self._map_files()
            self._mapped = True
        found = []
        for row, view in zip(rows, views, strict=True):
            index, offset = divmod(row, self.rows_per_shard)
            found.append((self._tensors[view, index], offset))
        B, N = len(rows), max((tensors["patch_mask"].shape[1] for tensors, _ in found), default=self.shape[0])
        ragged = any(tensors["patch_mask"].shape[1] != N for tensors, _ in found)
        patch_embeds = (torch.zeros if ragged else torch.empty)(B, N, self.shape[1])
        image_embeds = torch.empty(B, self.shape[2])
        patch_mask = torch.zeros(B, N, dtype=torch.bool)
        for position, (tensors, offset) in enumerate(found):
            mask = tensors["patch_mask"][offset]
            patch_mask[position, : len(mask)] = mask
            image_embeds[position] = tensors["image_embeds"][offset]
            target, stored = patch_embeds[position, : len(mask)], tensors["patch_embeds"][offset]
            if self.dtype == "int8":
                torch.mul(stored, tensors["patch_scale"][offset][:, None], out=target)
            else:
                target.copy_(stored)
        return {"patch_embeds": patch_embeds, "image_embeds": image_embeds, "patch_mask": patch_mask}


def join_batches(batches: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Encoded batches as one shard; those with fewer patches are padded, and what was added stays masked."""
    N = max(batch["patch_mask"].shape[1] for batch in batches)
    joined = {}
    for name in batches[0]:
        values = [batch[name] for batch in batches]
        if name != "image_embeds" and any(value.shape[1] != N for value in values):
            values = [torch.cat([v, v.new_zeros(len(v), N - v.shape[1], *v.shape[2:])], 1) for v in values]
        joined[name] = torch.cat(values)
    return joined


def _pooled_dtype(dtype: str) -> torch.dtype:
    return torch.float16 if dtype == "int8" else getattr(torch, dtype)


def _row_bytes(shape: Sequence[int], dtype: str) -> int:
    patches, width, pooled = shape
    size = 1 if dtype == "int8" else getattr(torch, dtype).itemsize
    scales = 4 * patches if dtype == "int8" else 0
    return patches * width * size + scales + pooled * _pooled_dtype(dtype).itemsize + patches


def _rows_per_shard(shape: Sequence[int], dtype: str) -> int:
    return max(1, min(_SHARD_BYTES // _row_bytes(shape, dtype), _MAX_SHARD_ROWS))


def _check_finite(stored: torch.Tensor, values: torch.Tensor, name: str, dtype: str) -> None:
    if torch.isfinite(stored).all():
        return
    if torch.isfinite(values).all():
        raise ValueError(
            f"{name} reaches {values.abs().max().item():.3g}, beyond the range of dtype={dtype!r}: "
            "expected 'bfloat16' or 'float32' for this backbone"
        )
    raise ValueError(f"{name} of the backbone is not finite: check the checkpoint and its precision")


# What the features depend on


def describe_features(model, processor, images, *, progress: bool = True) -> dict[str, Any]:
    """What makes the features of an image set what they are, as plain JSON: two equal descriptions, equal features.

    The weights are hashed as they lie in memory (without the text tower, which changes no feature), the images by the
    bytes of their files, or by their pixels where there is no file, in order; so a data set may move.

    Args:
        model: has `vlm`, a vision-language backbone.
        processor: has `image_processor`, and may have `patch_grid`.
        images: rows with `image`; not decoded where they have a file.
    """
    vision = model.vlm.config.vision_config
    # What a tensor's name, dtype and shape do not say.
    fields = ("hidden_act", "layer_norm_eps", "num_attention_heads", "patch_size", "image_size", "num_patches")
    weights = {name: value for name, value in model.vlm.state_dict().items() if not name.startswith(_TEXT_WEIGHTS)}
    settings = json.loads(processor.image_processor.to_json_string())
    return {
        "backbone": {
            "model_type": model.vlm.config.model_type,
            "weights_sha256": _hash_tensors(weights),
            **{name: getattr(vision, name, None) for name in fields},
        },
        "processor": {
            **{name: value for name, value in settings.items() if not name.startswith("_")},
            "image_processor_type": type(processor.image_processor).__name__,
            "patch_grid": getattr(processor, "patch_grid", None),
        },
        "images": {"count": len(images), "sha256": _hash_images(images, progress)},
    }


def _hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _hash_images(images, progress: bool) -> str:
    digest = hashlib.sha256()
    bar = tqdm(total=len(images), desc="image set", unit="image", disable=not progress, leave=False)
    # Reading many small files waits for the disk more than for the processor.
    with ThreadPoolExecutor(8) as pool, bar:
        for start in range(0, len(images), 256):
            sources = [images[row]["image"] for row in range(start, min(start + 256, len(images)))]
            for one in pool.map(_hash_image, sources):
                digest.update(one)
            bar.update(len(sources))
    return digest.hexdigest()


def _hash_image(source: Any) -> bytes:
    if isinstance(source, dict) and source.get("bytes") is not None:
        source = source["bytes"]
    elif isinstance(source, dict) and "path" in source:
        source = source["path"]
    if isinstance(source, (str, os.PathLike)):
        source = Path(source).read_bytes()
    if not isinstance(source, (bytes, bytearray, memoryview)):
        picture = open_image(source)
        source = json.dumps(picture.size).encode() + picture.tobytes()
    return hashlib.sha256(source).digest()


def _read_manifest(directory: Path) -> dict[str, Any]:
    try:
        return json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{str(directory)!r} has no {MANIFEST}: expected a folder of features") from None
    except ValueError as error:
        raise ValueError(f"{str(directory / MANIFEST)!r} is not valid JSON: {error}") from error


def _differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in sorted(there.keys() | here.keys()):
        old, new = there.get(name), here.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{prefix}{name} ")
        elif old != new:
            found.append(f"{prefix}{name}: {old!r} there, {new!r} now")
    return found
