import numpy as np
import pytest

from vlm_par_hf.data.synthetic import UNKNOWN, Frame, SyntheticPerson, caption, person_labels
from vlm_par_hf.labels.schema import Attribute, AttributeSchema
from vlm_par_hf.labels.tables import get_schema


SCHEMA = get_schema("synthetic")


def test_captions_are_true():
    rng = np.random.default_rng(0)
    for number in range(300):
        person = SyntheticPerson.sample(0, number)
        labels = person_labels(person, Frame.sample(person, 0))
        text, told = caption(labels, rng)
        assert told and len(set(told)) == len(told) and (labels[told] != UNKNOWN).all()
        assert text == text.lower()
        if SCHEMA.index("UpperColor") in told:
            assert SCHEMA["UpperColor"].labels[labels[SCHEMA.index("UpperColor")]] in text


def test_a_stripe_is_told_of_trousers_only():
    rng = np.random.default_rng(0)
    schema = SCHEMA.subset(["SideStripe", "Backpack"])
    for _ in range(20):
        assert caption(np.array([1, 1]), rng, 6, schema)[1] == [1]
    with pytest.raises(
        ValueError, match="no known label of AttributeSchema.1 attributes: SideStripe. is one that a cap"
    ):
        caption(np.array([1]), rng, schema=SCHEMA.subset(["SideStripe"]))
    labels = np.full(len(SCHEMA), UNKNOWN)
    labels[[SCHEMA.index("SideStripe"), SCHEMA.index("Backpack")]] = 1
    assert caption(labels, rng, 40)[1] == [SCHEMA.index("Backpack")]


def test_labels_that_no_caption_tells_are_refused():
    rng = np.random.default_rng(0)
    age = AttributeSchema([Attribute("Age", "how old?", ("young", "old"), ("a", "b"))])
    with pytest.raises(
        ValueError, match=r"attribute 'Age' has the labels \['young', 'old'\]; a caption tells \['child'"
    ):
        caption(np.array([0]), rng, schema=age)
    with pytest.raises(ValueError, match=r"labels have shape \(2,\); expected \(.*,\), one per attribute"):
        caption(np.array([0, 1]), rng)
    with pytest.raises(ValueError, match="labels holds 7 for attribute 'Backpack'"):
        caption(np.array([7]), rng, schema=SCHEMA.subset(["Backpack"]))
