"""What all tests share: no network, no progress bars, and no logger that an earlier test silenced."""

import logging
import os

import pytest


# huggingface_hub reads these when it is imported, hence before anything else.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def logger_level():
    """The command line sets the level of its process, which here is that of all tests."""
    logger = logging.getLogger("vlm_par_hf")
    level = logger.level
    yield
    logger.setLevel(level)
