"""What all tests share: no network and no progress bars."""

import os


# huggingface_hub reads these when it is imported, hence before anything else.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
