"""Images to calibrate with and to compare on; what a comparison counts."""

import pytest
from PIL import Image

from modeling_tests.exports import noise_images
from modeling_tests.tiny import randomize, tiny_model, tiny_processor
from vlm_par_hf.export.parity import compare_answers, pick_images


def test_picked_images_are_disjoint(tmp_path):
    for index, image in enumerate(noise_images(9)):
        image.save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("no image")
    calibration, compared, source = pick_images(str(tmp_path), num_calibration=6, num_compared=3)
    assert (len(calibration), len(compared)) == (4, 3) and not set(calibration) & set(compared)
    assert source == f"the folder {tmp_path.name}"
    assert pick_images(str(tmp_path), num_calibration=6, num_compared=3)[0] == calibration
    with pytest.raises(ValueError, match="holds 0 images, expected at least 2"):
        (tmp_path / "empty").mkdir()
        pick_images(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="name is 'pa100kk'"):
        pick_images("pa100kk")


def test_picked_from_a_data_set():
    calibration, compared, source = pick_images(
        "synthetic", num_calibration=3, num_compared=2, num_train=6, num_validation=4, num_test=2
    )
    assert (len(calibration), len(compared)) == (3, 2) and "synthetic" in source
    assert isinstance(calibration[0], Image.Image)


def test_answers_are_compared_on_every_image():
    model, other = (randomize(tiny_model("kway"), seed=seed) for seed in (0, 1))
    same = compare_answers(model, model, tiny_processor("kway"), noise_images(11))
    assert same["max_abs_difference"] == 0 and same["decisions"] == 11 * len(model.config.schema)
    assert same["changed_decisions"] == 0 and same["unchanged_share"] == 1 and not same["changed_by_attribute"]
    found = compare_answers(model, other, tiny_processor("kway"), noise_images(11))
    assert found["max_abs_logit"] == same["max_abs_logit"] and found["max_abs_difference"] > 0
    assert 0 < found["changed_decisions"] == sum(found["changed_by_attribute"].values())
    assert found["unchanged_share"] == 1 - found["changed_decisions"] / found["decisions"]
