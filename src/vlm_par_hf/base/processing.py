"""The processor of every family: prepares images and texts, and turns logits into named attributes of people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoTokenizer, BatchFeature, ProcessorMixin

from vlm_par_hf.errors import ParFileNotFoundError, ParTypeError, ParValueError, check_folder, unreadable
from vlm_par_hf.hub.pushing import PushToHub
from vlm_par_hf.hub.remote_code import write_remote_code
from vlm_par_hf.images.opening import describe_image_source, is_one_image, open_images
from vlm_par_hf.images.preprocessing import preprocess_images
from vlm_par_hf.labels.consistency import NO_ANSWER, is_consistent_unasked, keep_one_of_group, take_back_unmet
from vlm_par_hf.labels.decisions import SMALLEST_HEIGHT, UNKNOWN_ANSWER, Decisions, decide, read_thresholds
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.utils import backbone_files, iterate

from .decisions import check_scores, label_probabilities
from .outputs import ParOutput


__all__ = ["ParProcessor"]

DEFAULT_MAX_NUM_PATCHES = 128  # a 256x128 crop is exactly 16x8 patches of 16 pixels, without distortion or padding
IMAGE_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
_LEFT_OPEN = -1  # in place of a class index
TEXT_LENGTH = 64  # what SigLIP and SigLIP 2 were trained with


class ParProcessor(PushToHub, ProcessorMixin):
    """Prepares images and texts for a model of this package and names the model's answers; a family subclasses it.

    Args:
        image_processor: the backbone's, such as `Siglip2ImageProcessor` (NaFlex) or `SiglipImageProcessor` (fixed
            resolution).
        tokenizer: the backbone's. Texts are lower-cased and padded to the right here, because the tokenizers of the
            fixed-resolution SigLIP 2 repositories do neither.
        patch_grid: rows and columns of patches, for NaFlex only: every image is resized to that grid, whatever its
            aspect ratio. An exported model that was made for one grid needs that. None: each image keeps its aspect
            ratio.

    Raises:
        ValueError: `patch_grid` is not two positive numbers, or the image processor makes no patches.
    """

    model_type: str  # of the family; part of the file names that `AutoProcessor` reads
    reads_texts: ClassVar[bool] = True  # False: the family's models have no text tower, so there is no tokenizer
    reads_tracklets: ClassVar[bool] = False  # True: it takes `videos=`, the frames of one person each
    patch_grid: list[int] | None = None

    def __init__(self, image_processor, tokenizer, patch_grid=None):
        super().__init__(image_processor, *([tokenizer] if self.reads_texts else []))
        if patch_grid is not None:
            self.fix_patch_grid(patch_grid)

    def fix_patch_grid(self, patch_grid: Sequence[int]) -> None:
        """Sets `patch_grid`, and the image processor's number of patches with it.

        Raises:
            ValueError: as for the class.
        """
        if len(patch_grid) != 2 or not all(isinstance(one, int) and one > 0 for one in patch_grid):
            raise ParValueError(f"patch_grid must be a number of rows and of columns of patches, got {patch_grid!r}")
        if not hasattr(self.image_processor, "max_num_patches"):
            raise ParValueError(
                f"patch_grid={tuple(patch_grid)}, but {type(self.image_processor).__name__} makes images of a fixed "
                "resolution, not patches"
            )
        self.patch_grid = list(patch_grid)
        self.image_processor.max_num_patches = patch_grid[0] * patch_grid[1]

    @classmethod
    def from_backbone(
        cls, name: str | Path, *, max_num_patches: int | None = None, tokenizer: Any = None, **kwargs: Any
    ) -> Self:
        """The processor of a vision-language checkpoint.

        Args:
            name: a repository, a folder, `"embedded"` or `"embedded-drawings"`.
            max_num_patches: the patch budget of an image, for NaFlex checkpoints only; None takes 128, or the
                checkpoint's own where that is smaller (the embedded backbone was trained with 72).
            tokenizer: replaces the checkpoint's own.
            kwargs: go to both `from_pretrained` calls (`revision`, `token`, `local_files_only`, ...).

        Raises:
            FileNotFoundError: a local folder lacks a file; the message names it.
        """
        source = backbone_files(name)
        check_folder(source, "the backbone")
        _check_files(Path(source) / kwargs.get("subfolder", ""), needs_tokenizer=tokenizer is None)
        image_processor = AutoImageProcessor.from_pretrained(source, backend="pil", **kwargs)
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(source, **kwargs)
        if hasattr(image_processor, "max_num_patches"):
            own = min(image_processor.max_num_patches, DEFAULT_MAX_NUM_PATCHES)
            image_processor.max_num_patches = own if max_num_patches is None else max_num_patches
        if getattr(image_processor, "do_center_crop", False):  # as CLIP's does; it would cut off head and feet
            image_processor.do_center_crop = False
            image_processor.size = image_processor.crop_size
        return cls(image_processor=image_processor, tokenizer=tokenizer)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """As `ProcessorMixin.from_pretrained`.

        Raises:
            FileNotFoundError: a local folder lacks a file; the message names it.
            ValueError: a file is damaged.
        """
        name = pretrained_model_name_or_path
        check_folder(name, "the processor")
        _check_files(Path(name) / kwargs.get("subfolder", ""), needs_tokenizer=cls.reads_texts)
        with unreadable(name, "a file of the processor or tokenizer"):
            return super().from_pretrained(name, **kwargs)

    def _save_files(self, save_directory: str | Path, **kwargs: Any) -> list[str]:
        # Also write the small file by which `AutoProcessor` finds this package.
        self.auto_map = write_remote_code(save_directory, self.model_type, AutoProcessor=type(self).__name__)
        return super()._save_files(save_directory, **kwargs)

    def _model_of_card(self) -> None:
        return None  # a processor alone gets no model card

    @property
    def model_input_names(self) -> list[str]:
        return list(self.image_processor.model_input_names)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str | None = "pt",
        padding: str | bool = "max_length",
        truncation: bool = True,
        max_length: int = TEXT_LENGTH,
        input_data_format: str | None = None,
        do_rescale: bool | None = None,
        rescale_factor: float | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepares images, texts, or both.

        The pixels equal those of the image processor within 2 grey levels (see `preprocess_images`). A list of files
        is decoded by several threads.

        Args:
            images: one image, or a list or another container with an order, of the kinds that `open_image` takes (PIL
                images, arrays, paths, ...). Each image shows one person.
            text: one text or a list.
            return_tensors: `"pt"`, `"np"` or None.
            padding: of texts; only `"max_length"`, because the backbones were trained with it.
            truncation: False refuses a text that is longer than `max_length`.
            max_length: padded length of the texts.
            input_data_format: `"channels_first"` or `"channels_last"`, the layout of arrays and tensors; None:
                channels last.
            do_rescale, rescale_factor: accepted where they say what is done anyway: the range of values follows from
                the kind of image (uint8 in [0, 255], floating point in [0, 1]; `open_image`), so `do_rescale=False`
                needs floating point.
            kwargs: go to the image processor (`max_num_patches` for NaFlex).

        Returns:
            `pixel_values`, float32: `(B, N, 3 * patch_size**2)` for NaFlex, with `pixel_attention_mask` int32 `(B, N)`
            and `spatial_shapes` int64 `(B, 2)` (rows, columns); `(B, 3, height, width)` for fixed resolution.
            `input_ids` int64 `(number of texts, max_length)` if text is given. There is no attention mask, because the
            backbones were trained without one.

        Raises:
            ValueError: neither images nor text, an empty list, or an argument that contradicts the images or the way
                in which the backbone was trained.
            TypeError: the image processor does not know an argument, or arguments are nested.
        """
        nested = [name for name in ("images_kwargs", "text_kwargs", "common_kwargs") if name in kwargs]
        if nested:
            raise ParTypeError(
                f"{', '.join(nested)}: expected the arguments themselves, such as processor(images=..., "
                "max_num_patches=64)"
            )
        if images is None and text is None:
            raise ParValueError("images and text are both None, expected at least one of them")
        data: dict[str, Any] = {}
        if images is not None:
            images = [images] if is_one_image(images) else list(iterate(images, "images"))
            if not images:
                raise ParValueError("images is empty, expected at least one image")
            self._check_ranges(images, do_rescale, rescale_factor)
            pictures = open_images([_channels_last(one, input_data_format) for one in images])
            if self.patch_grid is not None:
                size = [self.image_processor.patch_size * one for one in reversed(self.patch_grid)]  # width, height
                pictures = [one.resize(size, self.image_processor.resample) for one in pictures]
            try:
                with unreadable(type(self.image_processor).__name__, "one of its settings or of the arguments"):
                    values = preprocess_images(self.image_processor, pictures, return_tensors=return_tensors, **kwargs)
            except ParValueError as error:
                if "unexpected keyword argument" not in str(error):
                    raise
                raise ParTypeError(
                    f"{type(self.image_processor).__name__} does not know one of the arguments "
                    f"{', '.join(sorted(kwargs))}: {error.__cause__}"
                ) from error
            data.update(values)
        if text is not None:
            self._check_reads_texts()
            texts = [text] if isinstance(text, str) else list(iterate(text, "text"))
            if not texts:
                raise ParValueError("text is empty, expected at least one text")
            if padding != "max_length":
                raise ParValueError(
                    f'padding is {padding!r}, expected "max_length": the backbone reads texts that are filled up to '
                    "max_length, without a mask"
                )
            if not truncation:
                for one in texts:
                    count = len(self.tokenizer(self._check_text(one).lower())["input_ids"])
                    if count > max_length:
                        raise ParValueError(f"text {one!r:.100} has {count} tokens, more than max_length={max_length}")
            lowered = [self._check_text(one).lower() for one in texts]
            with unreadable(type(self.tokenizer).__name__, "one of its settings or of the arguments"):
                encoded = self.tokenizer(
                    lowered,
                    padding="max_length",
                    padding_side="right",
                    max_length=max_length,
                    truncation=True,
                    return_attention_mask=False,
                    return_tensors=return_tensors,
                )
            data["input_ids"] = encoded["input_ids"]
        return BatchFeature(data)

    def _check_ranges(self, images: Sequence[Any], do_rescale: bool | None, rescale_factor: float | None) -> None:
        """Refuses what a caller says of the range of the values if the images have another one."""
        own = getattr(self.image_processor, "rescale_factor", None)
        if rescale_factor is not None and rescale_factor != own:
            raise ParValueError(
                f"rescale_factor is {rescale_factor}, expected {own}: the range of an image follows from its kind, "
                "uint8 in [0, 255] and floating point in [0, 1]"
            )
        if do_rescale is None or do_rescale:
            return
        for index, image in enumerate(images):
            dtype = getattr(image, "dtype", None)
            if not (getattr(dtype, "is_floating_point", False) or getattr(dtype, "kind", "") == "f"):
                raise ParValueError(
                    f"do_rescale is False, which says that values lie in [0, 1], but image {index} is "
                    f"{describe_image_source(image)}: expected a floating-point array or tensor"
                )

    def encode_texts(self, texts: Sequence[str], max_length: int = TEXT_LENGTH) -> list[list[int]]:
        """Token ids of each text; lower-cased, at most `max_length` tokens, without padding.

        Raises:
            TypeError: a text is not text.
            ValueError: there is no tokenizer.
        """
        self._check_reads_texts()
        lowered = [self._check_text(text).lower() for text in texts]
        with unreadable(type(self.tokenizer).__name__, "one of its settings"):
            encoded = self.tokenizer(lowered, truncation=True, max_length=max_length, return_attention_mask=False)
        return [list(ids) for ids in encoded["input_ids"]]

    def _check_reads_texts(self) -> None:
        if not self.reads_texts:
            raise ParValueError(
                f"text was given, but {type(self).__name__} has no tokenizer: the models of this family read pictures "
                "only; expected images"
            )

    @staticmethod
    def _check_text(text: Any) -> str:
        if not isinstance(text, str):
            raise ParTypeError(f"text must be text or a list of texts, got {text!r}")
        return text

    def post_process_attributes(
        self,
        outputs: ParOutput | torch.Tensor,
        schema: AttributeSchema,
        *,
        threshold: float | Mapping[str, float] | None = None,
        sensitive: bool = True,
        decisions: Decisions | Mapping[str, Any] | None = None,
        abstain: float | None = None,
        heights: Sequence[int] | None = None,
        consistent: bool | None = None,
    ) -> list[dict[str, dict[str, Any]]]:
        """Turns logits into one named answer per attribute and person (VLM-PAR, equations 14 and 16).

        Args:
            outputs: what the model returned, or its logits `(B, A, C)`.
            schema: the label space of the model, `model.config.schema`.
            threshold: a binary attribute gets its second label if that label's probability is above the threshold.
                None: `attribute.threshold`; a number: the same for all; a dict: for the attributes that it names.
            sensitive: False leaves out the attributes marked sensitive.
            decisions: `model.config.decisions`, whose biases decide between the labels of attributes with more than
                two; None: the most probable label is the answer. (The model's logits are calibrated already.)
            abstain: leave open what is not sure: an answer is given if it is the only label of its set for this level,
                such as 0.9 (`Decisions.answer_sets`, of `decisions`).
            heights: of the people, in pixels; with `abstain` nothing is answered for those lower than
                `SMALLEST_HEIGHT`, because sets promise nothing for pictures unlike those that they were fitted on.
            consistent: answer only where the condition of an attribute is met (`Attribute.requires`: a bare head has
                no hat color), and of each group of attributes that exclude each other (`Attribute.group`) only the
                best one with its second label (`vlm_par_hf.labels.consistency`). None: if there is a condition in
                `schema`, or `decisions` were fitted.

        Returns:
            Per person `{attribute name: {"label": predicted label, "score": its probability, "probabilities":
            {label: probability}}}`; of a binary attribute also `"threshold"`, which the probability of its second
            label was held against; with `abstain` also `"set"`, the labels that are possible, and `"reason"`, such as
            "14 pixels high", or None. An answer whose set holds more than one is left open: its label is `"unknown"`,
            its score None. With `consistent` the label and the score of an answer whose condition is not met are None,
            also where the attribute that it requires was left open.

        Raises:
            ValueError: the logits do not fit the schema or are not finite, a threshold is not between 0 and 1, or
                there are no sets for `abstain`.
            KeyError: `threshold` names an unknown attribute.
        """
        schema = schema if isinstance(schema, AttributeSchema) else AttributeSchema(schema)
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs["logits"]
        expected = (len(schema), schema.max_labels)
        if logits.ndim != 3 or tuple(logits.shape[1:]) != expected:
            raise ParValueError(
                f"outputs: logits must have shape (people, {expected[0]}, {expected[1]}) for this schema of "
                f"{len(schema)} attributes, got {tuple(logits.shape)}"
            )
        check_scores(logits, schema)
        thresholds = read_thresholds(schema, threshold)
        table = label_probabilities(logits.detach().cpu(), schema).numpy()
        if decisions is not None and not isinstance(decisions, Decisions):
            decisions = Decisions.from_dict(decisions)
        answers = decide(table, schema, thresholds, None if decisions is None else decisions.bias_table(schema))
        if consistent is None:
            consistent = is_consistent_unasked(schema, decisions)
        if consistent:
            answers = keep_one_of_group(answers, table, schema, thresholds)
        sets = np.eye(schema.max_labels, dtype=bool)[answers]  # of the answers alone
        if abstain is not None:
            if decisions is None:
                raise ParValueError(f"abstain={abstain!r} without decisions, expected those of the model's config")
            # With the answer: a threshold far from 1/2 may place it outside the set, and a set may be empty.
            sets |= decisions.answer_sets(table, schema, abstain, allow_empty=True)[0]
        too_low = [None] * len(table)
        if abstain is not None and heights is not None:
            too_low = [height if height < SMALLEST_HEIGHT else None for height in heights]
            sets |= schema.label_mask() & np.array([height is not None for height in too_low])[:, None, None]
        left_open = sets.sum(-1) > 1
        answers = np.where(left_open, _LEFT_OPEN, answers)
        if consistent:  # a condition is met by an answer, not by one that is left open
            answers = take_back_unmet(answers, schema)
        people = []
        held_against = thresholds.tolist()
        for rows, chosen, own_sets, height in zip(table.tolist(), answers.tolist(), sets.tolist(), too_low):
            found = {}
            for attribute, row, answer, own_set, limit in zip(schema, rows, chosen, own_sets, held_against):
                if attribute.sensitive and not sensitive:
                    continue
                one = {"label": None, "score": None, "probabilities": dict(zip(attribute.labels, row))}
                if answer >= 0:
                    one |= {"label": attribute.labels[answer], "score": row[answer]}
                elif answer == _LEFT_OPEN:
                    one["label"] = UNKNOWN_ANSWER
                if attribute.is_binary:
                    one["threshold"] = limit
                if abstain is not None:  # the same keys in every answer, as tables want them
                    makes_sense = answer != NO_ANSWER
                    one["set"] = [label for label, inside in zip(attribute.labels, own_set) if inside and makes_sense]
                    one["reason"] = f"{height} pixels high" if height is not None and makes_sense else None
                found[attribute.name] = one
            people.append(found)
        return people


def _channels_last(image: Any, input_data_format: str | None) -> Any:
    """An array or tensor `(C, H, W)` as `(H, W, C)` if the caller says that channels come first; else the image."""
    layout = None if input_data_format is None else str(getattr(input_data_format, "value", input_data_format))
    if layout in (None, "channels_last"):
        return image
    if layout != "channels_first":
        raise ParValueError(f'input_data_format is {layout!r}, expected "channels_first" or "channels_last"')
    if getattr(image, "ndim", None) != 3:
        raise ParValueError(
            f'input_data_format is "channels_first", but an image is {describe_image_source(image)}: expected an '
            "array or tensor (channels, height, width)"
        )
    return image.permute(1, 2, 0) if isinstance(image, torch.Tensor) else image.transpose(1, 2, 0)


def _check_files(folder: Path, *, needs_tokenizer: bool = True) -> None:
    """Checks that a local folder has the files of an image processor and, unless told otherwise, of a tokenizer.

    Without this check, transformers loads a SigLIP 2 tokenizer whose tokenizer.json is missing with an empty
    vocabulary and reports no error.

    Raises:
        FileNotFoundError: a file is missing.
    """
    if not folder.is_dir():
        return  # a repository
    for files in (IMAGE_PROCESSOR_FILES, TOKENIZER_FILES)[: 1 + needs_tokenizer]:
        if not any((folder / file).is_file() for file in files):
            raise ParFileNotFoundError(f"{folder} has neither {' nor '.join(files)}, expected a saved processor")
