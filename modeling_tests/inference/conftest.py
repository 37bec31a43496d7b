"""The tiny pipelines and the small data set that the tests here share."""

import pytest

from modeling_tests.bands import data  # noqa: F401  (fixture)
from modeling_tests.crops import make_pipe
from modeling_tests.tiny import TINY_KINDS


@pytest.fixture(scope="module", params=TINY_KINDS)
def pipe(request):
    return make_pipe(request.param)


@pytest.fixture(scope="module")
def naflex():
    return make_pipe("naflex")
