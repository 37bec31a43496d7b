from dataclasses import replace

import numpy as np
import pytest

from vlm_par_hf.data.synthetic.rendered.people import RenderedPerson, Shot
from vlm_par_hf.data.synthetic.rendered.photograph import photograph


@pytest.fixture
def scene():
    pixels = np.full((96, 40, 3), 0.5, np.float32)
    pixels[20:80, 10:30] = (0.7, 0.2, 0.2)
    return pixels


@pytest.fixture
def shot():
    return replace(Shot.sample(RenderedPerson.sample(0, 0), 0), infrared=False, seed=11)


def test_the_numbers_decide_the_picture(scene, shot):
    before = scene.copy()
    first = photograph(scene, shot, np.random.default_rng(0))
    assert first.shape == (96, 40, 3) and first.dtype == np.uint8 and np.array_equal(scene, before)
    assert np.array_equal(first, photograph(scene, shot, np.random.default_rng(0)))
    # Another frame of a tracklet has other noise and the same settings.
    second = photograph(scene, shot, np.random.default_rng(1))
    assert not np.array_equal(first, second) and abs(first.mean() - second.mean()) < 2
    assert abs(first.mean() - photograph(scene, replace(shot, seed=12), np.random.default_rng(0)).mean()) > 0.5


def test_the_second_camera_is_dimmer_and_bluer(scene, shot):
    def mean(camera):
        shots = [replace(shot, camera=camera, seed=seed) for seed in range(150)]
        return np.mean([photograph(scene, s, np.random.default_rng(0)) for s in shots], axis=(0, 1, 2))

    first, second = mean(0), mean(1)
    assert second.mean() < first.mean() - 8 and second[2] / second[0] > 1.1 * first[2] / first[0]


def test_infrared_has_no_color(scene, shot):
    for seed in range(20):
        picture = photograph(scene, replace(shot, infrared=True, seed=seed), np.random.default_rng(seed))
        assert np.ptp(picture.astype(int), axis=2).max() <= 3
