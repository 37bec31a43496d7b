"""The contents of a small PA-100K annotation file, for tests that write one."""

import numpy as np

from vlm_par_hf.labels.tables import get_schema


def cell(texts) -> np.ndarray:
    """(N, 1) cell array of texts, as MATLAB writes it."""
    array = np.empty((len(texts), 1), dtype=object)
    for position, text in enumerate(texts):
        array[position, 0] = np.array([text])
    return array


def pa100k_variables(sizes=(6, 3, 2)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    variables, first = {"attributes": cell(get_schema("pa100k").names)}, 1
    for prefix, size in zip(("train", "val", "test"), sizes):
        variables[f"{prefix}_images_name"] = cell([f"{number:06d}.jpg" for number in range(first, first + size)])
        variables[f"{prefix}_label"] = rng.integers(0, 2, (size, 26), dtype=np.uint8)
        first += size
    return variables
