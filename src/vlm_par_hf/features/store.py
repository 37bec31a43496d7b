"""Features of a frozen backbone in shards: on disk, memory-mapped, or in memory.

A folder holds the features of one image set under one backbone and one processor, in any number of views:

    manifest.json                    what the features depend on, their shape, the views
    identity-00000.safetensors ...   `patch_embeds`, `image_embeds`, `patch_mask` (int8: `patch_scale`) of some rows

A shard is written under another name and renamed when it is complete. So after any interruption the shards that exist
are good, and only the others are computed. A shard holds a checksum of its tensors, which is compared before the shard
is used; one that is damaged is computed again. Shards hold no labels: all label spaces, heads, seeds and recipes share
one folder.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.utils import atomic_write_json, read_json

from .views import FeatureView


__all__ = ["DTYPES", "FORMAT", "MANIFEST", "FeatureStore", "Shard", "join_batches"]

logger = logging.getLogger(__name__)

# Version of the folder. Raise it also when the package opens or prepares images differently: features change then.
FORMAT = 2
MANIFEST = "manifest.json"
DTYPES = ("float32", "float16", "bfloat16", "int8")
# A killed process loses one shard: minutes of a base-size tower on a CPU, less than a second on a GPU.
_SHARD_BYTES = 64 * 2**20
_MAX_SHARD_ROWS = 4096


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
        self._verified: dict[Shard, tuple[int, int, int]] = {}  # shards and what their files were when compared

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
        """A store to be filled. If its folder already holds some of the features, only the others are missing.

        Args:
            count: images S.
            shape: returns patches N, width D of the patches, width of the pooled output; not called for a folder that
                an earlier process began.
            dtype: one of float32, float16, bfloat16, int8.
            views: the views by name.
            directory: None keeps the features in memory.
            describe: what the features depend on (`describe_features`); for a folder only.
            rows_per_shard: None: 64 MiB per shard. A folder keeps the value that it was begun with.

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
            for path in directory.glob(f".{MANIFEST}.*.tmp"):  # of a process that was killed
                path.unlink()
            manifest = _read_manifest(directory) if (directory / MANIFEST).exists() else None
            if manifest is None:
                if any(directory.glob("*.safetensors")):
                    raise ParValueError(
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
            differences = _list_differences(
                {**manifest["depends_on"], "view": found},
                {**wanted, "view": {name: asdict(views[name]) for name in found}},
            )
            if differences:
                raise ParValueError(
                    f"the features in {str(directory)!r} are of something else; name another folder or delete it:\n  "
                    + "\n  ".join(differences)
                )
            if manifest["images"] != count:
                raise ParValueError(f"{str(directory)!r} holds features of {manifest['images']} images, not {count}")
            manifest["views"].update({name: asdict(view) for name, view in views.items()})
            manifest["checksum"] = _checksum_of(manifest)
            atomic_write_json(directory / MANIFEST, manifest)
        return cls._from_manifest(directory, manifest, views)

    @classmethod
    def open(cls, directory: str | Path, views: Sequence[str] | None = None) -> "FeatureStore":
        """The features in a folder; needs neither model nor images.

        Args:
            directory: the folder.
            views: names of views; None: all that the folder has.

        Raises:
            FileNotFoundError: the folder has no manifest.
            ValueError: a view is unknown, or shards are missing or damaged.
        """
        directory = Path(directory)
        manifest = _read_manifest(directory)
        known = manifest["views"]
        unknown = sorted(set(views or ()) - known.keys())
        if unknown:
            raise ParValueError(f"views={unknown!r} are not in {str(directory)!r}: it has {sorted(known)}")
        store = cls._from_manifest(
            directory, manifest, {name: FeatureView(**known[name]) for name in (views or known)}
        )
        missing = store.missing()
        if missing:
            raise ParValueError(
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
        # Another process maps the files itself; features in memory are copied to it.
        state = {**self.__dict__, "_locks": {}}
        return state if self.directory is None else {**state, "_tensors": {}, "_mapped": False}

    def __len__(self) -> int:
        return self.count

    @property
    def nbytes(self) -> int:
        """Bytes of the features of all views."""
        return self.count * len(self.views) * _row_bytes(self.shape, self.dtype)

    def missing(self) -> list[Shard]:
        """The shards that are still to be computed; a file that is damaged or of other features counts as missing."""
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
        """Whether a file holds a shard as it was written: its rows, dtypes, shapes and checksum."""
        found = path.stat()
        stamp = (found.st_ino, found.st_size, found.st_mtime_ns)
        if self._verified.get(shard) == stamp:
            return True
        try:
            tensors = load_file(path)
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
        except (OSError, ValueError, SafetensorError):
            return False
        if metadata != self._metadata(shard, tensors) or not self._has_form(tensors, shard):
            return False
        self._verified[shard] = stamp
        return True

    def _has_form(self, tensors: Mapping[str, torch.Tensor], shard: Shard) -> bool:
        """Whether tensors have the names, dtypes and shapes of a shard of this store."""
        patches, width, pooled = self.shape
        rows, dtype = len(shard), getattr(torch, self.dtype)
        form = {
            "patch_embeds": (dtype, (rows, patches, width)),
            "image_embeds": (_pooled_dtype(self.dtype), (rows, pooled)),
            "patch_mask": (torch.bool, (rows, patches)),
        }
        if self.dtype == "int8":
            form["patch_scale"] = (torch.float32, (rows, patches))
        if tensors.keys() != form.keys() or tensors["patch_mask"].dim() != 2:
            return False
        # A batch may hold images with fewer or more patches than the first image of the set.
        found = tensors["patch_mask"].shape[1]
        for name, (wanted, shape) in form.items():
            if name != "image_embeds":
                shape = (shape[0], found, *shape[2:])
            if tensors[name].dtype != wanted or tuple(tensors[name].shape) != shape:
                return False
        return True

    def _metadata(self, shard: Shard, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
        described = {"features": self._key, "view": shard.view, "rows": [shard.start, shard.stop]}
        # One entry: safetensors writes several in any order, and equal features are to be equal files.
        return {"shard": json.dumps({**described, "sha256": _checksum_of_tensors(tensors)})}

    # Filling

    def claim(self, shard: Shard) -> bool:
        """Claims a shard for this process; False if another process holds it. The claim ends at the latest with the
        process, even if it is killed."""
        if self.directory is None:
            return True
        locks = self.directory / ".locks"
        locks.mkdir(exist_ok=True)
        # Not bound to this thread, because the thread that writes the shard releases it.
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
        """Stores a shard that `encode` made; in a folder it is on the disk when this returns.

        Raises:
            ValueError: the tensors are not those of the shard.
        """
        if not self._has_form(tensors, shard):
            shapes = {name: (str(value.dtype), tuple(value.shape)) for name, value in tensors.items()}
            raise ParValueError(
                f"{shard.file}: features of {shapes} do not fit to a store of {self.dtype}, {self.shape} and "
                f"{len(shard)} rows"
            )
        if self.directory is None:
            self._tensors[shard.view, shard.index] = tensors
            return
        path = self.directory / shard.file
        # No unique name is needed: only the holder of the lock writes it, over what a killed process may have left.
        temporary = self.directory / f".{shard.file}.tmp"
        # `save_file` makes files that only this user can read, but a cache may be shared.
        temporary.unlink(missing_ok=True)  # it may be a link by now, which `open` would follow
        with temporary.open("xb") as file:
            file.write(save(tensors, metadata=self._metadata(shard, tensors)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def encode(self, patch_embeds, image_embeds, patch_mask, *, first: int = 0) -> dict[str, torch.Tensor]:
        """A batch as it is stored, on the CPU; `first` is the number of its first image, for errors.

        int8 keeps 255 levels per patch between plus and minus its largest entry; the pooled output is float16 then.

        Raises:
            ValueError: a value is not finite, or beyond the range of the stored dtype; the message names the image.
        """
        if self.dtype == "int8":
            _check_finite(patch_embeds, patch_embeds, "patch_embeds", self.dtype, first)
            values = patch_embeds.float()
            scale = values.abs().amax(-1) / 127
            codes = (values / scale.clamp_min(torch.finfo(torch.float32).tiny)[..., None]).round()
            stored = {"patch_embeds": codes.to(torch.int8), "patch_scale": scale}
        else:
            stored = {"patch_embeds": patch_embeds.to(getattr(torch, self.dtype))}
            _check_finite(stored["patch_embeds"], patch_embeds, "patch_embeds", self.dtype, first)
        stored["image_embeds"] = image_embeds.to(_pooled_dtype(self.dtype))
        _check_finite(stored["image_embeds"], image_embeds, "image_embeds", self.dtype, first)
        stored["patch_mask"] = patch_mask.bool()
        return {name: value.cpu() for name, value in stored.items()}

    # Reading

    def _map_files(self) -> None:
        """Maps the files into memory: the system reads a page when it is touched and may drop it again.

        All files are mapped at once. Mapping one between two batches would leave small allocations where the
        last batch was, and the next batch would need new memory.
        """
        for view in self.views:
            for shard in self._shards_of(view):
                if (view, shard.index) not in self._tensors:
                    path = self.directory / shard.file
                    if not self.has(shard):
                        raise ParValueError(f"{str(path)!r} is missing or damaged: compute the features again")
                    self._tensors[view, shard.index] = load_file(path)

    def read(self, rows: Sequence[int], views: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """Features of rows in any order.

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


def _checksum_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _checksum_of(manifest: Mapping[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def join_batches(batches: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Joins encoded batches to one shard; batches with fewer patches are padded, and the padding is masked."""
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


def _check_finite(stored: torch.Tensor, values: torch.Tensor, name: str, dtype: str, first: int) -> None:
    wrong = (~torch.isfinite(stored)).flatten(1).any(1).nonzero().flatten().tolist()
    if not wrong:
        return
    image = f"image {first + wrong[0]}"
    if torch.isfinite(values[wrong[0]]).all():
        raise ParValueError(
            f"{name} of {image} reaches {values[wrong[0]].abs().max().item():.3g}, beyond the range of "
            f"dtype={dtype!r}: expected 'bfloat16' or 'float32' for this backbone"
        )
    raise ParValueError(
        f"{name} of {image} is not finite: check the checkpoint of the backbone, its precision, and the image"
    )


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    try:
        manifest = read_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParFileNotFoundError(f"{str(directory)!r} has no {MANIFEST}: expected a folder of features") from None
    except ValueError as error:
        raise ParValueError(f"{str(path)!r} is not valid JSON: {str(error)!r:.200}") from error
    of_this_format = isinstance(manifest, dict) and isinstance(manifest.get("depends_on"), dict)
    if of_this_format and manifest["depends_on"].get("format") == FORMAT - 1 and "checksum" not in manifest:
        raise ParValueError(
            f"the features in {str(directory)!r} are of an earlier version, which kept no checksums: name another "
            "folder or delete it"
        )
    if not of_this_format or manifest.get("checksum") != _checksum_of(manifest):
        raise ParValueError(f"{str(path)!r} is damaged: delete the folder, and compute the features again")
    return manifest


def _list_differences(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in sorted(there.keys() | here.keys()):
        old, new = there.get(name), here.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _list_differences(old, new, f"{prefix}{name} ")
        elif old != new:
            found.append(f"{prefix}{name}: {old!r} there, {new!r} now")
    return found
