"""Micro-batching: people of different requests are answered in one forward pass.

Requests wait in one queue. While the model is busy the queue grows, and the next batch takes what is there. When the
model is free it waits for more only as long as other requests are being prepared, and never longer than `max_wait`: a
single client waits for nobody. Everything but the forward pass runs in the event loop, so nothing here needs a lock.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


__all__ = ["MicroBatcher"]

_SMOOTHING = 0.2  # share of the newest batch in the running mean of the seconds per item


@dataclass
class _Waiting:
    key: Hashable
    item: Any
    answer: asyncio.Future
    since: float = field(default_factory=time.monotonic)


class MicroBatcher:
    """Collects items into batches and runs one batch after another in a thread of its own.

    Args:
        run: called in that thread with at most `max_batch` items of one key; returns one result for each.
        max_batch: items per batch.
        max_wait: seconds that an item waits at most for others to come, while the model is free.
        observe: called in the event loop after each batch with the number of its items, the seconds that they waited,
            and the seconds that it took.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Any]], Sequence[Any]],
        *,
        max_batch: int = 16,
        max_wait: float = 0.005,
        observe: Callable[[int, list[float], float], None] | None = None,
    ) -> None:
        self._run, self.max_batch, self.max_wait, self._observe = run, max_batch, max_wait, observe
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._waiting: deque[_Waiting] = deque()
        self._coming = 0
        self._changed = asyncio.Event()
        self._worker: asyncio.Task | None = None
        self._stopping = False
        self._seconds_per_item: float | None = None

    @property
    def waiting(self) -> int:
        """Items that wait for their batch."""
        return len(self._waiting)

    def seconds_to_wait(self, more: int) -> int:
        """Whole seconds, at least 1, after which the items that wait and `more` others should be done."""
        return max(1, math.ceil((self.waiting + more) * (self._seconds_per_item or 0.0)))

    def start(self) -> None:
        """Begins to answer; called in the event loop."""
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Answers what waits and ends."""
        self._stopping = True
        self._changed.set()
        if self._worker is not None:
            await self._worker
        self.thread.shutdown()

    @contextmanager
    def coming(self) -> Iterator[None]:
        """While it is open, items are being prepared that a batch may wait for."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
            self._changed.set()

    def put(self, key: Hashable, item: Any) -> asyncio.Future:
        """Queues an item; the result comes as the future's, or what `run` raised for it. An item whose future is
        cancelled before its batch starts is not computed.

        Args:
            key: items of different keys never share a batch.
            item: for `run`.
        """
        one = _Waiting(key, item, asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        self._changed.set()
        return one.answer

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._next_batch()
            if batch is None:
                return
            if not batch:
                continue
            started = time.monotonic()
            results = await loop.run_in_executor(self.thread, self._run_safely, [one.item for one in batch])
            seconds = time.monotonic() - started
            for one, result in zip(batch, results):
                if one.answer.done():  # cancelled meanwhile
                    continue
                if isinstance(result, Exception):
                    one.answer.set_exception(result)
                else:
                    one.answer.set_result(result)
            mean, share = self._seconds_per_item, seconds / len(batch)
            self._seconds_per_item = share if mean is None else mean + _SMOOTHING * (share - mean)
            if self._observe is not None:
                self._observe(len(batch), [started - one.since for one in batch], seconds)

    async def _next_batch(self) -> list[_Waiting] | None:
        """Items of one key, in the order in which they came; None when all is done."""
        while not self._waiting:
            if self._stopping:
                return None
            self._changed.clear()
            await self._changed.wait()
        deadline = self._waiting[0].since + self.max_wait
        while self._coming and len(self._waiting) < self.max_batch:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                break
        batch, others = [], deque()
        while self._waiting and len(batch) < self.max_batch:
            one = self._waiting.popleft()
            if one.answer.done():
                continue
            (batch if not batch or one.key == batch[0].key else others).append(one)
        self._waiting.extendleft(reversed(others))
        return batch

    def _run_safely(self, items: list[Any]) -> list[Any]:
        """One result or exception for each item: after an error each is computed alone, so that a bad one does not
        take its neighbours along."""
        try:
            results = list(self._run(items))
            if len(results) != len(items):
                raise RuntimeError(f"{len(results)} results for {len(items)} items")
            return results
        except Exception as error:
            if len(items) == 1:
                return [error]
            return [self._run_safely([one])[0] for one in items]
