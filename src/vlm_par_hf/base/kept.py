"""A cache for values that are computed from parameters and buffers, valid until the content of one changes."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


__all__ = ["Kept", "fingerprint"]

# Words of 8 bytes that are hashed at a time. On a CPU what is computed from them must stay in its cache.
CPU_WORDS, GPU_WORDS = 1 << 16, 1 << 22


class Kept:
    """A cache that empties itself when one of the tensors that its values were computed from has changed.

    Their content is compared, by a hash. torch's own counter `tensor._version` would cost nothing, but libraries that
    average weights or merge adapters write through `parameter.data`, which it does not count.
    """

    def __init__(self) -> None:
        self.values: OrderedDict[Any, Any] = OrderedDict()
        self._fingerprint: Any = None

    def of(self, sources: Iterable[torch.Tensor], state: Any = None) -> OrderedDict[Any, Any]:
        """The values computed from exactly these tensors: a dict to read from and to add to.

        Reads every source once. Tensors on the meta device have no content; for those the result is a new empty dict
        at each call, so nothing is cached.

        Args:
            sources: the tensors.
            state: what else the values depend on, such as which adapters are active; compared by `==`.
        """
        found = fingerprint(sources)
        if found is None or (found, state) != self._fingerprint:
            self.clear()
            self._fingerprint = (found, state)
        return OrderedDict() if found is None else self.values

    def clear(self) -> None:
        """Removes all values."""
        self.values = OrderedDict()
        self._fingerprint = None


@torch.no_grad()
def fingerprint(tensors: Iterable[torch.Tensor]) -> tuple | None:
    """Dtypes, shapes, devices and a hash of the content of tensors; None if one of them has no content (meta device).

    The hash of a tensor is the sum of its bits, read as 64-bit integers, times odd pseudo-random numbers. A change of
    one entry always changes it; a change of several entries escapes with a probability of about 2**-63.
    """
    forms, small, sums = [], [], []
    for tensor in _plain(tensors):
        if tensor.is_meta:
            return None
        forms.append((tensor.dtype, tuple(tensor.shape), tensor.device))
        words = _words(tensor)
        # Small ones are hashed together: starting an operation takes longer than computing it.
        if len(words) < CPU_WORDS:
            small.append(words)
        else:
            sums += _hash(words)
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for words in small:
        by_device.setdefault(words.device, []).append(words)
    for parts in by_device.values():
        sums += _hash(torch.cat(parts))
    return tuple(forms), _to_list(sums)


def _plain(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The tensors; of one that is made of others, as torchao's quantised ones are, these."""
    for tensor in tensors:
        if is_traceable_wrapper_subclass(tensor):
            yield from _plain(getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        else:
            yield tensor


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of a tensor as a flat int64 tensor, filled up with zeros."""
    flat = tensor.detach().reshape(-1)
    size = flat.element_size()
    if not flat.is_contiguous() or flat.numel() * size % 8 or flat.storage_offset() * size % 8:
        flat = torch.cat([flat, flat.new_zeros(-flat.numel() % max(1, 8 // size))])
    return flat.view(torch.int64) if flat.numel() else flat.new_zeros(0, dtype=torch.int64)


def _hash(words: torch.Tensor) -> list[torch.Tensor]:
    """The hash of each part of `words`."""
    if words.device.type == "cpu":
        factors = _factors(words.device, CPU_WORDS)
        return [torch.dot(part, factors[: len(part)]) for part in words.split(CPU_WORDS)]
    factors = _factors(words.device, GPU_WORDS)  # a GPU has no dot product of integers
    return [(part * factors[: len(part)]).sum() for part in words.split(GPU_WORDS)]


@lru_cache(maxsize=4)
def _factors(device: torch.device, count: int) -> torch.Tensor:
    """Odd pseudo-random int64 numbers `(count,)`; the same in every process."""
    with torch.inference_mode(False):
        drawn = torch.randint(-(1 << 63), (1 << 63) - 1, (count,), generator=torch.Generator().manual_seed(0))
        return (drawn | 1).to(device)


def _to_list(sums: list[torch.Tensor]) -> list[int]:
    """The numbers of scalars that may lie on several devices; waits for each device once."""
    if len({one.device for one in sums}) > 1:
        return [int(one) for one in sums]
    return torch.stack(sums).tolist() if sums else []
