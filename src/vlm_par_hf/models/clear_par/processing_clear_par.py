"""Processor of CLEAR."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor

from vlm_par_hf.base.processing import IMAGE_PROCESSOR_FILES, ParProcessor
from vlm_par_hf.errors import ParValueError, check_folder
from vlm_par_hf.upstream import IMAGENET_MEAN, IMAGENET_STD, vit_image_processor

from .configuration_clear_par import FRESH, IMAGE_SIZE, check_image_size, split_revisions


__all__ = ["ClearParProcessor"]

logger = logging.getLogger(__name__)


class ClearParProcessor(ParProcessor):
    """Prepares images for `ClearParModel` and names its answers, as `ParProcessor` describes.

    Args:
        image_processor: one with a fixed resolution, such as `ViTImageProcessor`; its size is that of
            `ClearParConfig.image_size`.
    """

    model_type = "clear_par"
    reads_texts = False

    def __init__(self, image_processor):
        super().__init__(image_processor, None)

    @classmethod
    def from_backbone(
        cls,
        name: str | Path,
        *,
        image_size: Sequence[int] = IMAGE_SIZE,
        max_num_patches: None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> "ClearParProcessor":
        """The processor for branches as `ClearParModel.from_backbone` takes them.

        Both branches see the same pixels. Mean and standard deviation are those of the checkpoints' image processors;
        where there is none, or the two differ (a warning says so), they are those of ImageNet, as in the paper.

        Args:
            name: as in `ClearParModel.from_backbone`.
            image_size: height and width, as in the configuration.
            max_num_patches: must be None; other families take pictures of any shape.
            revision: as in `ClearParModel.from_backbone`.
            kwargs: go to `AutoImageProcessor.from_pretrained` (`token`, `local_files_only`, ...).

        Raises:
            ValueError: the size is not two numbers, a number of patches, or another number of revisions than names.
            OSError: a folder or repository does not exist.
        """
        height, width = check_image_size(image_size)
        if max_num_patches is not None:
            raise ParValueError(
                f"max_num_patches is {max_num_patches!r}, but pictures have a fixed size here ({height} x {width}), "
                "which says how many patches there are: expected None"
            )
        names = [] if str(name) in FRESH else [str(name)] if Path(name).is_dir() else str(name).split("+")
        revisions = split_revisions(revision, names)
        found = {}
        for one in names:
            check_folder(one, "the backbone")
            if Path(one).is_dir() and not any((Path(one) / file).is_file() for file in IMAGE_PROCESSOR_FILES):
                continue
            own = AutoImageProcessor.from_pretrained(one, backend="pil", revision=revisions.get(one, "main"), **kwargs)
            found[one] = (tuple(own.image_mean), tuple(own.image_std))
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if len(set(found.values())) == 1:
            mean, std = next(iter(found.values()))
        elif found:
            logger.warning(
                "the branches were trained with other means and standard deviations of the pixels (%s) and see the "
                "same pixels here: those of ImageNet are taken",
                "; ".join(f"{one}: {mean}, {std}" for one, (mean, std) in found.items()),
            )
        return cls(image_processor=vit_image_processor(height, width, list(mean), list(std)))
