"""The micro-batcher: what shares a batch, who waits for whom, and what becomes of errors."""

import asyncio
import threading
import time

import pytest

from vlm_par_hf.serving.batching import MicroBatcher


class Model:
    """Doubles numbers; remembers its batches, and can be held."""

    def __init__(self):
        self.batches, self.free = [], threading.Event()
        self.free.set()

    def __call__(self, items):
        self.free.wait(5)
        self.batches.append(list(items))
        if "bad" in items:
            raise ValueError("bad is no number")
        return [2 * one for one in items]


def run(work, **options):
    """Runs `work(batcher, model)` in an event loop; the model."""
    model = Model()

    async def main():
        batcher = MicroBatcher(model, **options)
        batcher.start()
        try:
            await asyncio.wait_for(work(batcher, model), 10)
        finally:
            model.free.set()
            await batcher.stop()

    asyncio.run(main())
    return model


def test_what_came_while_the_model_was_busy_shares_the_next_batch():
    async def work(batcher, model):
        model.free.clear()
        first = batcher.put(None, 0)
        await asyncio.sleep(0.05)
        others = [batcher.put(None, one) for one in range(1, 8)]
        assert batcher.waiting == 7
        model.free.set()
        assert await asyncio.gather(first, *others) == [2 * one for one in range(8)]

    assert run(work, max_batch=4).batches == [[0], [1, 2, 3, 4], [5, 6, 7]]


def test_a_single_client_waits_for_nobody():
    async def work(batcher, model):
        started = time.monotonic()
        assert await batcher.put(None, 1) == 2
        assert time.monotonic() - started < 2

    run(work, max_wait=8.0)


def test_a_batch_waits_for_what_is_being_prepared():
    async def prepare(batcher, item, seconds):
        with batcher.coming():
            await asyncio.sleep(seconds)
            answer = batcher.put(None, item)
        return await answer

    async def work(batcher, model):
        assert await asyncio.gather(prepare(batcher, 1, 0), prepare(batcher, 2, 0.1)) == [2, 4]

    assert run(work, max_wait=5.0).batches == [[1, 2]]
    assert run(work, max_wait=0.01).batches == [[1], [2]], "but not longer than max_wait"


def test_a_batch_that_is_full_waits_for_nobody():
    async def work(batcher, model):
        with batcher.coming():
            assert await asyncio.gather(batcher.put(None, 1), batcher.put(None, 2)) == [2, 4]

    assert run(work, max_batch=2, max_wait=8.0).batches == [[1, 2]]


def test_items_of_different_keys_share_no_batch_and_keep_their_order():
    async def work(batcher, model):
        model.free.clear()
        answers = [batcher.put(None, 0)]
        await asyncio.sleep(0.05)
        answers += [batcher.put(key, item) for key, item in (("a", 1), ("b", 2), ("a", 3), ("b", 4))]
        model.free.set()
        assert await asyncio.gather(*answers) == [0, 2, 4, 6, 8]

    assert run(work).batches == [[0], [1, 3], [2, 4]]


def test_a_bad_item_does_not_fail_its_neighbours():
    async def work(batcher, model):
        with batcher.coming():
            answers = [batcher.put(None, one) for one in (1, "bad", 3)]
            found = await asyncio.gather(*answers, return_exceptions=True)
        assert [found[0], found[2]] == [2, 6]
        with pytest.raises(ValueError, match="bad is no number"):
            raise found[1]

    assert run(work).batches == [[1, "bad", 3], [1], ["bad"], [3]]


def test_a_model_that_returns_too_little_is_a_fault():
    async def main():
        batcher = MicroBatcher(lambda items: [])
        batcher.start()
        with pytest.raises(RuntimeError, match="0 results for 1 items"):
            await batcher.put(None, 1)
        await batcher.stop()

    asyncio.run(main())


def test_what_is_cancelled_is_not_computed():
    async def work(batcher, model):
        model.free.clear()
        first, second, third = (batcher.put(None, one) for one in (1, 2, 3))
        await asyncio.sleep(0.05)
        second.cancel()
        model.free.set()
        assert await asyncio.gather(first, third) == [2, 6]

    assert run(work, max_batch=1).batches == [[1], [3]]


def test_stopping_answers_what_waits():
    async def main():
        model = Model()
        batcher = MicroBatcher(model, max_batch=2)
        batcher.start()
        answers = [batcher.put(None, one) for one in range(5)]
        await batcher.stop()
        assert [one.result() for one in answers] == [0, 2, 4, 6, 8]

    asyncio.run(main())


def test_what_is_observed_and_how_long_to_wait():
    seen = []

    async def work(batcher, model):
        assert batcher.seconds_to_wait(100) == 1  # nothing is known yet
        model.free.clear()
        answers = [batcher.put(None, one) for one in range(2)]
        await asyncio.sleep(0.2)
        model.free.set()
        await asyncio.gather(*answers)
        await asyncio.sleep(0)  # the batch is observed after its answers
        ((size, waited, seconds),) = seen
        assert size == 2 and len(waited) == 2 and max(waited) < 0.1 and 0.15 < seconds < 2
        assert batcher.seconds_to_wait(100) >= 8  # at a tenth of a second each

    run(work, observe=lambda *values: seen.append(values))
