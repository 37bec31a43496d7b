"""Why a request is not answered: status, a short code for logs and counters, and the reason for the client."""

from functools import partial

from vlm_par_hf.errors import ParError, ParRuntimeError


__all__ = ["ModelFault", "Refusal", "busy", "too_large"]


class Refusal(ParError):
    """A request that is refused.

    Args:
        status: of HTTP, 4xx, or 503 for what the service could not do in time.
        code: one word for logs and counters, which hold nothing that a client sent.
        reason: for the client.
        retry_after: seconds after which it may ask again.
    """

    def __init__(self, status: int, code: str, reason: str, *, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.code, self.retry_after = status, code, retry_after

    def __reduce__(self) -> tuple:  # it travels between processes
        return partial(Refusal, retry_after=self.retry_after), (self.status, self.code, str(self))


class ModelFault(ParRuntimeError):
    """The model or the detector failed on a picture: a fault of the service, not of the request."""


def busy(reason: str, retry_after: int) -> Refusal:
    return Refusal(429, "busy", f"{reason}; ask again in {retry_after} s", retry_after=retry_after)


def too_large(reason: str) -> Refusal:
    return Refusal(413, "too_large", reason)
