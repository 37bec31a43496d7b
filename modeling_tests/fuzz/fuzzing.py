"""What the fuzz suite shares: an area with its oracle, a judge of one input, and the count of what came out.

An input is one of five: **right** (an answer that equals the oracle's), **refused** (an error of ours with a clear
message), **wrong** (an answer, and not the oracle's), **unclear** (an error that is not ours or says nothing) and
**hang**. The last three fail the test; hypothesis then shrinks the input and prints it. `make fuzz` runs the suite and
prints the table; `FUZZ_SEED` chooses other inputs, `FUZZ_SCALE` more or fewer.
"""

import faulthandler
import os
import signal
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis

from vlm_par_hf.errors import ParError


SEED = int(os.environ.get("FUZZ_SEED", "0"))
SCALE = float(os.environ.get("FUZZ_SCALE", "1"))
SECONDS = 20.0  # of one input; what takes longer hangs
LONGEST_MESSAGE = 2000

COUNTS: dict[str, Counter] = {}  # area -> outcomes
ORACLES: dict[str, str] = {}  # area -> what its answers are compared with


class Hang(BaseException):
    """One input took longer than `SECONDS`. No `Exception`, so that no handler of the code under test takes it."""


class Area:
    """A kind of input: images, tables, ...

    Args:
        name: as in the table.
        oracle: what an answer is compared with, in a few words.
    """

    def __init__(self, name: str, oracle: str) -> None:
        self.name = name
        COUNTS[name] = Counter()
        ORACLES[name] = oracle

    def fuzz(self, examples: int, **strategies: Any) -> Callable:
        """Decorates a test that is called with `examples` inputs drawn from `strategies`, always the same ones."""

        def decorate(test: Callable) -> Callable:
            settings = hypothesis.settings(
                max_examples=max(1, round(examples * SCALE)),
                database=None,
                deadline=None,
                print_blob=False,
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            return settings(hypothesis.seed(SEED)(hypothesis.given(**strategies)(test)))

        return decorate

    def judge(
        self,
        call: Callable[[], Any],
        right: Callable[[Any], bool],
        *,
        refusals: tuple[type[BaseException], ...] = (ParError,),
        must_refuse: bool = False,
    ) -> None:
        """Runs `call` on one input and counts what came out.

        Args:
            call: the code under test.
            right: whether its answer is the oracle's; an assertion inside may say what differs.
            refusals: errors that count as refusals when their message is clear, `ParError` and what an area says.
            must_refuse: any answer is wrong.

        Raises:
            AssertionError: wrong, unclear or hang.
        """
        outcome, detail = self._run(call, right, refusals, must_refuse)
        COUNTS[self.name][outcome] += 1
        assert outcome in ("right", "refused"), f"{self.name}: {outcome}: {detail}"

    def _run(self, call: Callable, right: Callable, refusals: tuple, must_refuse: bool) -> tuple[str, str]:
        try:
            answer = within(SECONDS, call)
        except Hang:
            return "hang", f"more than {SECONDS} s"
        except refusals as error:
            problem = unclear(str(error))
            return ("unclear", f"{type(error).__name__}: {problem}") if problem else ("refused", "")
        except Exception as error:
            return "unclear", f"{type(error).__name__} is no error of ours: {str(error)[:300]}"
        if must_refuse:
            return "wrong", f"answered {answer!r:.300}, expected a refusal"
        try:
            return ("right", "") if right(answer) else ("wrong", f"answered {answer!r:.300}")
        except AssertionError as error:
            return "wrong", str(error)


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """`call()`, with `Hang` raised after `seconds`; ends the process when native code does not come back either."""

    def ring(number: int, frame: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(6 * seconds, exit=True)
    try:
        return call()
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def unclear(message: str) -> str | None:
    """What is wrong with the text of an error, or None."""
    if len(message.strip()) < 10:
        return f"a message of {len(message)} characters: {message!r}"
    if len(message) > LONGEST_MESSAGE:
        return f"a message of {len(message)} characters: {message[:100]!r} ..."
    bad = {character for character in message if unicodedata.category(character) == "Cc" and character not in "\n\t"}
    return f"control characters {sorted(bad)!r} in the message {message[:200]!r}" if bad else None


def table() -> str:
    """The counts as a table."""
    columns = ("right", "refused", "wrong", "unclear", "hang")
    lines = [f"{'area':<22}{'inputs':>8}" + "".join(f"{name:>9}" for name in columns) + "  oracle"]
    total: Counter = Counter()
    for area, counts in COUNTS.items():
        if counts:
            lines.append(_line(area, counts, columns) + f"  {ORACLES[area]}")
            total += counts
    return "\n".join([*lines, _line("all", total, columns)])


def _line(name: str, counts: Counter, columns: tuple[str, ...]) -> str:
    return f"{name:<22}{sum(counts.values()):>8,}" + "".join(f"{counts[column]:>9,}" for column in columns)
