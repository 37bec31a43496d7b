import pytest

from vlm_par_hf.data.synthetic import Frame, SyntheticPerson
from vlm_par_hf.data.synthetic.body import SOLE_Y, Body


HELD = ("CarryingInFront", "Cane", "Umbrella", "Suitcase", "HandBag", "Phone")


def body(view="front", walking=False, phase=0.0, number=0, **traits):
    person = SyntheticPerson.sample(0, number)
    answers = person.traits | dict.fromkeys(HELD, "no") | traits
    person = SyntheticPerson(number, 0, answers, person.shades, person.stature, person.girth)
    return Body(person, Frame(0, view, walking, phase))


@pytest.mark.parametrize("view", ["front", "back", "left", "right"])
def test_parts_come_in_their_order_from_crown_to_soles(view):
    for number in range(100):
        drawn = body(view, number=number)
        _, head_y, half_width, half_height = drawn.head
        heights = [0, head_y, head_y + half_height, drawn.shoulder_y, drawn.hip_y, drawn.hem_y, SOLE_Y]
        assert heights == sorted(heights) and 0 < half_width < half_height


def test_legs_of_who_walks_are_apart():
    assert body(phase=0.3).stride == 0
    strides = [body(walking=True, phase=step / 40).stride for step in range(40)]
    assert min(abs(stride) for stride in strides) == 0.45 and max(strides) == -min(strides) == 1


def test_what_a_hand_holds_moves_it():
    free = body()
    phone = body(Phone="yes")
    assert phone.near_hand[1] < phone.shoulder_y < free.near_hand[1] and phone.far_hand == free.far_hand
    cane, umbrella, both = body(Cane="yes"), body(Umbrella="yes"), body(Cane="yes", Umbrella="yes")
    assert cane.near_hand == free.near_hand and cane.far_hand[0] < free.far_hand[0]
    assert both.far_hand == umbrella.far_hand and both.near_hand[0] == -cane.far_hand[0]
