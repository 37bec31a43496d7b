"""What all tests share: no network, no progress bars, and loggers that no earlier test has silenced."""

import logging
import os

import pytest


# huggingface_hub reads these when it is imported, hence before anything else.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


# What `make test-latest` fails at, in form of `python -W`; a later line wins over an earlier one.
DEPRECATIONS = (
    "error::DeprecationWarning",
    "error::PendingDeprecationWarning",
    "error::FutureWarning",
    # Not ours to mend: huggingface_hub uploads with an argument that httpx2 has renamed.
    "ignore:Use 'content=:DeprecationWarning",
    # Nor is this: peft asks every model for what transformers 5.23 renamed.
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
)


def pytest_addoption(parser):
    parser.addoption("--deprecations-fail", action="store_true", help="what other packages deprecate is an error")


def pytest_configure(config):
    if config.getoption("--deprecations-fail"):
        for line in DEPRECATIONS:
            config.addinivalue_line("filterwarnings", line)
        # For the processes that tests start.
        os.environ["PYTHONWARNINGS"] = ",".join(DEPRECATIONS)


@pytest.fixture(autouse=True)
def open_loggers():
    """The command line sets the level of its process, and libraries that a test imports may do more."""
    logging.disable(logging.NOTSET)
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "vlm_par_hf":
            logger = logging.getLogger(name)
            logger.setLevel(logging.NOTSET)
            logger.disabled, logger.propagate = False, True
