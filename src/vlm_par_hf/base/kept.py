"""Values computed from parameters and buffers, kept for as long as these stay what they were."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch


__all__ = ["Kept"]


class Kept:
    """A small store that empties itself when one of the tensors that its values come from has changed.

    Change is what torch counts (`tensor._version`: operations in place, `copy_`, an optimizer's step) and another
    tensor in the place of one. What is not counted must be told with `clear`: `model.to(...)` exchanges the data under
    a parameter, and so does `parameter.data.copy_(...)`.
    """

    def __init__(self) -> None:
        self.values: OrderedDict[Any, Any] = OrderedDict()
        self._sources: tuple[torch.Tensor, ...] = ()
        self._versions: tuple[int, ...] = ()

    def of(self, sources: Sequence[torch.Tensor]) -> OrderedDict[Any, Any]:
        """The values that were computed from exactly these tensors, to be read and added to.

        Tensors that were made in inference mode count no changes: for those it is an empty dict that nobody keeps.
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
        """Forgets everything."""
        self.values = OrderedDict()
        self._sources, self._versions = (), ()
