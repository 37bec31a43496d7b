"""Small data sets on disk in their original layouts."""

import os
from pathlib import Path

import pytest
from PIL import Image

from modeling_tests.pa100k_files import pa100k_variables


@pytest.fixture(scope="session")
def par_data() -> Path:
    if not os.environ.get("PAR_DATA"):
        pytest.skip("PAR_DATA is not set: needs the folder with real PA-100K annotations and images")
    return Path(os.environ["PAR_DATA"])


@pytest.fixture
def write_pa100k(tmp_path):
    """Writes PA-100K in its original layout; returns its folder."""
    savemat = pytest.importorskip("scipy.io").savemat

    def write(variables=None, images="data", name="annotation.mat") -> Path:
        variables = pa100k_variables() if variables is None else variables
        root = tmp_path / "PA100k"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        savemat(root / name, variables, do_compression=True)
        if images is not None:
            (root / images).mkdir(parents=True, exist_ok=True)
            for key, names in variables.items():
                for entry in names.ravel() if key.endswith("_images_name") else ():
                    number = int(str(entry[0])[:6])
                    Image.new("RGB", (8, 20), (number, 0, 0)).save(root / images / str(entry[0]), quality=95)
        return root

    return write
