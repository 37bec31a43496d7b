import numpy as np
import pytest

from vlm_par_hf.data.synthetic import Frame, SyntheticPerson, render_person


def _people(count, seed=0):
    return [SyntheticPerson.sample(seed, number) for number in range(count)]


def test_every_person_can_be_drawn_from_every_side():
    for person in _people(60):
        for view in ("front", "back", "left", "right"):
            picture = np.asarray(render_person(person, Frame(0, view, True, 0.3), nuisance=0.0))
            assert picture.std() > 5


@pytest.mark.parametrize(
    "name", ["Backpack", "Hat", "Glasses", "SafetyVest", "Umbrella", "Boots", "ShoulderBag", "Mask"]
)
def test_an_attribute_changes_the_picture(name):
    """What a label says must be drawn: the clean drawing with and without the thing differs."""
    person = next(p for p in _people(3000) if p.traits[name] == "yes" and p.traits["CarryingInFront"] == "no")
    without = SyntheticPerson(
        person.person_id, person.seed, person.traits | {name: "no"}, person.shades, person.stature, person.girth
    )
    frame = Frame(0, "front", False, 0.0)
    a, b = (np.asarray(render_person(p, frame, nuisance=0.0), int) for p in (person, without))
    assert (np.abs(a - b).max(-1) > 20).sum() > 15
