"""What all tests share: no network, no progress bars, and loggers that no earlier test has silenced."""

import logging
import os

import pytest


# huggingface_hub reads these when it is imported, hence before anything else.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def open_loggers():
    """The command line sets the level of its process, and libraries that a test imports may do more."""
    logging.disable(logging.NOTSET)
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "vlm_par_hf":
            logger = logging.getLogger(name)
            logger.setLevel(logging.NOTSET)
            logger.disabled, logger.propagate = False, True
