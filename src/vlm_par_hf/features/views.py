"""Views of an image whose features are kept: the whole image, its mirror image, random crops."""

import re
from dataclasses import dataclass

from vlm_par_hf.errors import ParValueError


__all__ = ["FeatureView", "feature_views"]

_VIEW_NAME = re.compile(r"identity|flip|crop([1-9]\d*)(-flip)?")


@dataclass(frozen=True)
class FeatureView:
    """One version of every image.

    Attributes:
        mirrored: flipped from left to right; its labels are the schema's mirrored ones.
        draw: 0 for the whole image; k > 0 for the k-th random crop: the one that `AugmentedDataset` with
            `ParAugmentation(pad=pad)` and `seed` gives in epoch k.
        pad: how far the crop may move, as in `ParAugmentation`.
        seed: seed of the crop.
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
            raise ParValueError(f"view {name!r}: expected 'identity', 'flip', 'cropK' or 'cropK-flip' with K from 1")
        draw = int(match[1] or 0)
        return cls(name.endswith("flip"), draw, pad if draw else 0.0, seed if draw else 0)


def feature_views(flip: bool = False, crops: int = 0) -> tuple[str, ...]:
    """Names of the views for a recipe: `"identity"`, with `flip` also `"flip"`, and `crops` random crops, with `flip`
    every second of them mirrored.

    Raises:
        ValueError: `crops` is negative.
    """
    if crops < 0:
        raise ParValueError(f"crops={crops!r}: expected 0 or more")
    names = [f"crop{k}-flip" if flip and k % 2 == 0 else f"crop{k}" for k in range(1, crops + 1)]
    return ("identity", *(("flip",) if flip else ()), *names)
