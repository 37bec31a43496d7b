import numpy as np

from vlm_par_hf.data.synthetic import UNKNOWN, Frame, SyntheticPerson, person_labels
from vlm_par_hf.labels.tables import get_schema


SCHEMA = get_schema("synthetic")


def _people(count, seed=0):
    return [SyntheticPerson.sample(seed, number) for number in range(count)]


def _label_matrix(count):
    return np.stack([person_labels(p, Frame.sample(p, 0)) for p in _people(count)])


def test_schema_size():
    assert len(SCHEMA) >= 24
    assert {a.region for a in SCHEMA} == {"head", "upper", "lower", "foot", "attachment", "whole"}
    assert any(not a.is_binary for a in SCHEMA) and any(a.sensitive for a in SCHEMA)


def test_labels_are_long_tailed_and_complete():
    labels = _label_matrix(4000)
    for position, attribute in enumerate(SCHEMA):
        known = labels[:, position][labels[:, position] != UNKNOWN]
        counts = np.bincount(known, minlength=attribute.num_labels)
        assert len(counts) == attribute.num_labels and (counts > 0).all(), attribute.name
    rarest = min((labels[:, k] == 1).mean() for k, a in enumerate(SCHEMA) if a.is_binary)
    assert 0.005 < rarest < 0.02


def test_attributes_depend_on_each_other():
    labels = _label_matrix(4000)
    coat, scarf = labels[:, SCHEMA.index("LongCoat")] == 1, labels[:, SCHEMA.index("Scarf")] == 1
    assert scarf[coat].mean() > 3 * scarf[~coat].mean()
    cane, elderly = labels[:, SCHEMA.index("Cane")] == 1, labels[:, SCHEMA.index("Age")] == 2
    assert elderly[cane].mean() > 0.8


def test_what_cannot_be_seen_is_unknown():
    for person in _people(200):
        back = person_labels(person, Frame(0, "back", False, 0.0))
        assert back[SCHEMA.index("Glasses")] == back[SCHEMA.index("Mask")] == UNKNOWN
        front = person_labels(person, Frame(0, "front", False, 0.0))
        assert front[SCHEMA.index("Glasses")] != UNKNOWN
        assert (front[SCHEMA.index("HatColor")] == UNKNOWN) == (front[SCHEMA.index("Hat")] == 0)
