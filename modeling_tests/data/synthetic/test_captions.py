import numpy as np

from vlm_par_hf.data.synthetic import UNKNOWN, Frame, SyntheticPerson, caption, person_labels
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
