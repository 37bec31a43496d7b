from pathlib import Path

import numpy as np
import pytest

from vlm_par_hf.data.synthetic.rendered import bodies
from vlm_par_hf.data.synthetic.rendered.bodies import PARENTS, load_bank


@pytest.fixture(scope="module")
def bank():
    return load_bank()


def test_the_file_is_small():
    assert Path(bodies.__file__).with_name("bodies.safetensors").stat().st_size < 3e6


def test_every_bone_has_a_parent_before_it(bank):
    assert set(bank.bones) == set(PARENTS)
    for number, name in enumerate(bank.bones):
        assert PARENTS[name] is None or bank.bones.index(PARENTS[name]) < number


@pytest.mark.parametrize("female", [False, True])
def test_people_of_all_ages_and_builds(bank, female):
    def measure(age):
        people = [bank.body(female, age, number).vertices for number in np.linspace(0, 0.999, 40)]
        waist = (np.abs(bank.canonical[:, 1] - 0.2) < 0.04) & (bank.arm < 0)
        waist[bank.ranges["body"][1] :] = False
        heights = np.array([np.ptp(p[:, 1]) for p in people])
        girths = np.array([np.ptp(p[waist, 0]) * np.ptp(p[waist, 2]) for p in people])
        return heights, girths / heights**2

    child, adult = measure("child"), measure("adult")
    assert child[0].min() > 0.85 and child[0].max() < 1.85
    assert adult[0].min() > 1.3 and adult[0].max() < 2.2
    assert child[0].mean() < adult[0].mean() - 0.2
    assert adult[1].max() > 1.3 * adult[1].min()  # slim and heavy


def test_a_body_is_the_same_for_the_same_number(bank):
    first, second = (bank.body(True, "adult", 0.37) for _ in range(2))
    np.testing.assert_array_equal(first.vertices, second.vertices)
    assert not np.allclose(first.vertices, bank.body(True, "adult", 0.39).vertices)


def test_the_arm_runs_from_the_shoulder_to_the_wrist(bank):
    near = {
        joint: np.linalg.norm(bank.canonical - bank.canonical_joints[f"left_{joint}"], axis=1) < 0.06
        for joint in ("hand", "forearm")
    }
    assert np.abs(np.median(bank.arm[near["hand"]]) - 1) < 0.12
    assert 0.3 < np.median(bank.arm[near["forearm"]]) < 0.7
    trunk = (np.abs(bank.canonical[:, 0]) < 0.1) & (bank.canonical[:, 1] < 0.4)
    assert (bank.arm[trunk] < 0).all()
