"""A cache for values that are computed from parameters and buffers, valid until one of these changes."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch


__all__ = ["Kept"]


class Kept:
    """A cache that empties itself when one of the tensors that its values were computed from has changed.

    A change is noticed if torch counts it in `tensor._version` (operations in place, `copy_`, a step of an optimizer),
    or if a tensor was replaced by another object. Other changes are not noticed and need a call of `clear`:
    `model.to(...)` and `parameter.data.copy_(...)` exchange a parameter's data without counting.
    """

    def __init__(self) -> None:
        self.values: OrderedDict[Any, Any] = OrderedDict()
        self._sources: tuple[torch.Tensor, ...] = ()
        self._versions: tuple[int, ...] = ()

    def of(self, sources: Sequence[torch.Tensor]) -> OrderedDict[Any, Any]:
        """The values computed from exactly these tensors: a dict to read from and to add to.

        Tensors that were made in inference mode do not count their changes. For those the result is a new empty dict
        at each call, so nothing is cached.
        """
        if any(source.is_inference() for source in sources):
            self.clear()
            return OrderedDict()
        versions = tuple(source._version for source in sources)
        is_same = len(sources) == len(self._sources) and all(new is old for new, old in zip(sources, self._sources))
        if not is_same or versions != self._versions:
            self.clear()
            self._sources, self._versions = tuple(sources), versions
        return self.values

    def clear(self) -> None:
        """Removes all values."""
        self.values = OrderedDict()
        self._sources, self._versions = (), ()
