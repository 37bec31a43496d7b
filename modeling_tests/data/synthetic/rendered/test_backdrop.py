import numpy as np
import pytest

from vlm_par_hf.data.synthetic.rendered.backdrop import OCCLUDERS, paint_backdrop, paint_occluder


@pytest.mark.parametrize("horizon", [-400.0, -1.0, 0.0, 40.5, 96.0, 300.0])
def test_any_horizon_gives_a_picture(horizon):
    for seed in range(12):
        picture = paint_backdrop(40, 96, horizon, seed % 2, np.random.default_rng(seed))
        assert picture.shape == (96, 40, 3) and picture.dtype == np.float32
        assert np.isfinite(picture).all() and picture.min() >= 0 and picture.max() <= 1


def test_streets_differ_and_are_dull():
    pictures = np.stack([paint_backdrop(40, 96, -100, 0, np.random.default_rng(seed)) for seed in range(60)])
    assert np.array_equal(pictures[3], paint_backdrop(40, 96, -100, 0, np.random.default_rng(3)))
    assert 0.1 < pictures.mean((1, 2, 3)).std() < 0.25
    assert np.median(np.ptp(pictures, axis=3).mean((1, 2))) < 0.1  # gray, as streets are


@pytest.mark.parametrize("kind", OCCLUDERS)
def test_what_stands_in_front_hides_a_part(kind):
    hidden = []
    for seed in range(25):
        color, alpha = paint_occluder(kind, 40, 96, np.random.default_rng(seed))
        assert color.shape == (96, 40, 3) and alpha.shape == (96, 40) and color.dtype == alpha.dtype == np.float32
        assert color.min() >= 0 and color.max() <= 1.3 and alpha.min() >= 0 and alpha.max() <= 1
        hidden.append(alpha.mean())
    assert 0.02 < np.mean(hidden) < 0.5


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind is 'tree'"):
        paint_occluder("tree", 40, 96, np.random.default_rng(0))
