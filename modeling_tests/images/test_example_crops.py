import pytest
from PIL import Image

import vlm_par_hf
from vlm_par_hf.images.example_crops import EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_crop_is_a_small_upright_picture(name):
    with Image.open(vlm_par_hf.example_crop(name)) as image:
        assert image.format == "JPEG" and image.height > 2 * image.width and image.height < 512


def test_a_misspelt_crop_is_named():
    with pytest.raises(ValueError, match="'hat'; expected one of \\['backpack', 'bags', 'skirt'\\]"):
        vlm_par_hf.example_crop("hat")
