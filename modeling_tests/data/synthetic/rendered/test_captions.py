import numpy as np
import pytest

from vlm_par_hf.data.synthetic.rendered.captions import caption
from vlm_par_hf.labels.tables import get_schema


SCHEMA = get_schema("rendered")


def _labels(**answers):
    labels = np.full(len(SCHEMA), -100, np.int64)
    for name, answer in answers.items():
        labels[SCHEMA.index(name)] = SCHEMA[name].labels.index(answer)
    return labels


def test_captions_tell_what_is_known():
    rng = np.random.default_rng(0)
    for _ in range(400):
        labels = np.array([rng.integers(-1, n) for n in SCHEMA.num_labels])
        labels[labels < 0] = -100
        text, told = caption(labels, rng)
        assert told and len(set(told)) == len(told) and (labels[told] != -100).all()
        assert text == text.lower() and "  " not in text and "{" not in text and " a orange" not in text
        for position in told:
            attribute = SCHEMA[position]
            if attribute.name.endswith("Color"):
                assert attribute.labels[labels[position]] in text


def test_every_phrase_that_tells_several_attributes():
    full = _labels(
        Hat="yes", HatColor="orange", HairColor="black", HairLength="long", Female="yes", Age="elderly",
        UpperColor="red", UpperType="jacket", Sleeves="long", UpperStripes="yes", LowerColor="blue",
        LowerType="trousers", ShoeColor="white", Footwear="boots", LongCoat="yes", UpperLogo="yes",
    )  # fmt: skip
    rng = np.random.default_rng(1)
    said = " ; ".join(caption(full, rng, phrases=8)[0] for _ in range(400))
    for phrase in (
        "wearing an orange hat", "with long black hair", "who is an elderly woman", "in a red jacket",
        "in a jacket with long sleeves", "in a red jacket with long sleeves", "in a striped jacket",
        "in a printed jacket", "in a red printed jacket", "in blue trousers", "in white boots", "in a red long coat",
    ):  # fmt: skip
        assert phrase in said, phrase
    other = _labels(
        Female="no", Age="child", LowerColor="green", LowerType="dress", UpperStripes="no", UpperType="top"
    )
    said = " ; ".join(caption(other, rng)[0] for _ in range(200))
    assert "who is a boy" in said and "in a green dress" in said and "striped" not in said


def test_the_numbers_decide_the_sentence():
    labels = _labels(Hat="no", View="left", UpperColor="red")
    assert caption(labels, np.random.default_rng(5)) == caption(labels, np.random.default_rng(5))
    with pytest.raises(ValueError, match="all unknown"):
        caption(_labels(), np.random.default_rng(0))
