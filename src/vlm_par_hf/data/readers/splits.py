"""Divisions of our own, for data sets that come without one: by person, seeded, and said in the log and the notes."""

from collections.abc import Hashable, Sequence

import numpy as np

from vlm_par_hf.errors import ParValueError


__all__ = ["check_disjoint", "choose_groups"]


def choose_groups(groups: Sequence[Hashable], share: float, seed: int) -> np.ndarray:
    """Chooses whole groups (persons, tracks) at random until they hold about `share` of the images.

    Args:
        groups: the group of each image.
        share: between 0 and 1; at least one group is chosen and at least one is left.
        seed: the choice is a function of the groups' order and of it.

    Returns:
        bool `(images,)`, True where chosen.

    Raises:
        ValueError: fewer than two groups.
    """
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        raise ParValueError(f"images of {len(names)} persons cannot be divided; expected at least 2")
    number_of = {name: number for number, name in enumerate(names)}
    numbers = np.asarray([number_of[group] for group in groups])
    sizes = np.bincount(numbers, minlength=len(names))
    order = np.random.default_rng(seed).permutation(len(names))
    reached = np.cumsum(sizes[order])
    count = int(np.searchsorted(reached, share * len(numbers), side="right"))
    chosen = np.zeros(len(names), bool)
    chosen[order[: min(max(count, 1), len(names) - 1)]] = True
    return chosen[numbers]


def check_disjoint(parts: dict[str, np.ndarray], path: object, what: str) -> None:
    """Raises ValueError where an image is in two parts of a division."""
    seen: dict[str, set[int]] = {}
    for name, indices in parts.items():
        own = set(indices.tolist())
        for other, earlier in seen.items():
            if own & earlier:
                raise ParValueError(
                    f"{path}: image {min(own & earlier) + 1} is in both {other!r} and {name!r} of {what}"
                )
        seen[name] = own
