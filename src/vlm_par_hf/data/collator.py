"""`ParCollator`: from a list of rows to the tensors that a model takes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParTypeError, ParValueError
from vlm_par_hf.images.opening import open_images
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema, check_label_range
from vlm_par_hf.utils import iterate, shorten

from .readers.label_cells import Place, RowReader


__all__ = ["ParCollator", "StackedRows"]

_FEATURE_KEYS = ("patch_embeds", "image_embeds", "patch_mask", "frame_mask")


class StackedRows(Sequence):
    """Rows that are already stacked in one tensor per key, with a leading batch axis; a row is a dict of views."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self.tensors = dict(tensors)

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: tensor[index] for key, tensor in self.tensors.items()}


class ParCollator:
    """Batches rows for a model: `ParCollator(processor)(rows) -> {"pixel_values": ..., "labels": ...}`.

    Image files are decoded by several threads, or by one inside a worker of a `DataLoader`, because workers already
    run in parallel.

    Args:
        processor: called as `processor(images=[...], return_tensors="pt")`. May be None if every row holds
            precomputed features.
        schema: if given, the number and the range of the labels are checked against it, here on the CPU, and labels
            may also be dicts `{attribute: label or class index}` and the other forms of `RowReader.read_value`.
    """

    def __init__(self, processor: Callable[..., Mapping] | None = None, schema: AttributeSchema | None = None) -> None:
        if processor is not None and not callable(processor):
            raise ParTypeError(f"processor is a {type(processor).__name__}; expected a processor or None")
        self.processor = processor
        self.schema = schema
        self._rows = None if schema is None else RowReader(schema)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Makes one batch.

        Args:
            examples: rows with `image` (what `open_image` takes), with `frames` (a list of them, a tracklet) or with
                precomputed features, float tensors or arrays `patch_embeds` `(N, D)`, `image_embeds` `(D,)`, bool
                `patch_mask` `(N,)`, of tracklets with an axis of frames and `frame_mask`; and, in all rows or in none,
                `labels` (A integers, -100 if unknown). Other keys are dropped.

        Returns:
            The processor's tensors or the stacked features, and `labels` int64 `(B, A)` if the rows have them.

        Raises:
            ValueError: no rows; a row without picture and features; rows of different shapes; a label out of range.
                The message names the row.
            TypeError: labels that are not whole numbers.
        """
        if not isinstance(examples, StackedRows):
            examples = list(iterate(examples, "examples"))  # in their own order, whatever `[]` means to them
        if len(examples) == 0:
            raise ParValueError("examples is empty; expected at least one row")
        feature_keys = [key for key in _FEATURE_KEYS if examples[0].get(key) is not None]
        if feature_keys:
            batch = {key: self._stack_features(examples, key) for key in feature_keys}
        elif examples[0].get("frames") is not None:
            batch = self._process_tracklets(examples)
        else:
            batch = self._process_images(examples)
        labels = self._stack_labels(examples)
        if labels is not None:
            batch["labels"] = labels
        return batch

    def _process_images(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if self.processor is None:
            raise ParValueError("processor is None; expected one, since the rows hold no precomputed features")
        images = []
        for index, example in enumerate(examples):
            if example.get("image") is None:
                removed = set(example) <= {"labels", "label", "label_ids"}
                raise ParValueError(
                    f"row {index} has no 'image' (it has {sorted(example)}); expected 'image' or features"
                    + ("; Trainer removes them unless TrainingArguments(remove_unused_columns=False)" * removed)
                )
            images.append(example["image"])
        return dict(self.processor(images=open_images(images), return_tensors="pt"))

    def _process_tracklets(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if not getattr(self.processor, "reads_tracklets", False):
            raise ParValueError(
                f"the rows hold frames of tracklets, and {type(self.processor).__name__} prepares single pictures; "
                "expected the processor of a model that takes several frames, such as VtfParModel"
            )
        missing = next((index for index, example in enumerate(examples) if not example.get("frames")), None)
        if missing is not None:
            raise ParValueError(f"row {missing} has no frame; expected at least one in every row")
        return dict(self.processor(videos=[example["frames"] for example in examples], return_tensors="pt"))

    def _stack_features(self, examples: Sequence[Mapping[str, Any]], key: str) -> Any:
        if isinstance(examples, StackedRows):
            return examples.tensors[key]
        import torch

        tensors = []
        for index, example in enumerate(examples):
            if example.get(key) is None:
                raise ParValueError(f"row {index} has no {key!r}, row 0 has one; expected it in all rows")
            tensor = torch.as_tensor(example[key])
            if tensor.shape != (tensors or [tensor])[0].shape:
                raise ParValueError(
                    f"{key!r} of row {index} has shape {tuple(tensor.shape)}, of row 0 {tuple(tensors[0].shape)}; "
                    "expected the same number of patches, padded and with 'patch_mask'"
                )
            tensors.append(tensor)
        return torch.stack(tensors)

    def _stack_labels(self, examples: Sequence[Mapping[str, Any]]) -> Any | None:
        given = [example.get("labels") is not None for example in examples]
        if not any(given):
            return None
        if not all(given):
            raise ParValueError(
                f"row {given.index(False)} has no 'labels', row {given.index(True)} has; expected all or none"
            )
        import torch

        rows = [self._check_labels(example["labels"], index) for index, example in enumerate(examples)]
        for index, row in enumerate(rows):
            if len(row) != len(rows[0]):
                raise ParValueError(f"row {index} has {len(row)} labels, row 0 has {len(rows[0])}")
        labels = np.stack(rows)
        if self.schema is not None:
            check_label_range(labels, self.schema)
        return torch.from_numpy(labels)

    def _check_labels(self, labels: Any, index: int) -> np.ndarray:
        if isinstance(labels, (Mapping, str)) or (
            isinstance(labels, (list, tuple)) and any(isinstance(label, str) for label in labels)
        ):
            if self._rows is None:
                raise ParTypeError(
                    f"labels of row {index} are {shorten(labels)}; expected class indices, or the argument schema, "
                    "which says what names mean"
                )
            try:
                return self._rows.read_value(labels, Place("examples", "row", index))
            except ParValueError as error:
                raise ParValueError(f"row {index}: {error}") from None
        try:
            row = np.asarray(labels)
        except ValueError:  # lists of different lengths
            raise ParValueError(f"labels of row {index} are {shorten(labels)}; expected one per attribute") from None
        if row.dtype.kind not in "iub":
            raise ParTypeError(
                f"labels of row {index} are {row.dtype}; expected whole numbers (class index, -100 unknown)"
            )
        if row.ndim != 1 or (self.schema is not None and len(row) != len(self.schema)):
            expected = "one per attribute" if self.schema is None else f"{len(self.schema)}, one per attribute"
            raise ParValueError(f"labels of row {index} have shape {row.shape}; expected {expected}")
        row = row.astype(np.int64)
        wrong = (row < 0) & (row != UNKNOWN_LABEL)
        if self.schema is None and wrong.any():
            position = int(np.argmax(wrong))
            raise ParValueError(
                f"label {row[position]} of row {index}, attribute {position}: expected -100 or a class index from 0"
            )
        return row
