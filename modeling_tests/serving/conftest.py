"""One service over a real port for all tests of a process."""

import httpx
import pytest

from modeling_tests.services import Service, tiny_pipe
from vlm_par_hf.serving.handler import Limits


LIMITS = Limits(
    max_bytes=200_000, max_pixels=1_000_000, max_pictures=4, max_people=8, seconds=3.0, max_in_work=32, max_batch=8
)


@pytest.fixture(scope="session")
def pipe():
    return tiny_pipe()


@pytest.fixture(scope="session")
def service(pipe):
    with Service(pipe, LIMITS, head_seconds=1.0) as service:
        yield service


@pytest.fixture
def client(service):
    with httpx.Client(base_url=service.url, timeout=20) as client:
        yield client
