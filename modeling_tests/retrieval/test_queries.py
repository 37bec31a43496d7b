"""Queries: what is understood, in dicts and in words, and what is refused."""

import re

import pytest

from vlm_par_hf.errors import ParError
from vlm_par_hf.labels.schema import Attribute, AttributeSchema
from vlm_par_hf.labels.tables import get_schema, list_schemas
from vlm_par_hf.retrieval.queries import Condition, Query


RENDERED, PA100K, MARKET = get_schema("rendered"), get_schema("pa100k"), get_schema("market1501")


class TestFromDict:
    def test_wanted_and_unwanted(self):
        query = Query.from_dict(
            {"UpperColor": "Red", "Backpack": True, "ShoeColor": ["white", "black"], "Hat": "no"},
            RENDERED,
            unwanted={"LowerColor": "blue", "Glasses": "yes"},
        )
        assert query.wanted == {
            "Hat": ("no",), "Glasses": ("no",), "UpperColor": ("red",), "ShoeColor": ("black", "white"),
            "Backpack": ("yes",),
        }  # fmt: skip
        assert query.unwanted == {"LowerColor": ("blue",)}
        assert Condition("LowerColor", ("blue",), False) in query.conditions
        assert query.describe().endswith("Backpack=yes, LowerColor!=blue")
        assert query.to_dict()["wanted"]["ShoeColor"] == ["black", "white"]

    def test_what_an_attribute_requires_is_asked_too(self):
        assert Query.from_dict({"HatColor": "red"}, RENDERED).wanted == {"Hat": ("yes",), "HatColor": ("red",)}
        assert Query.from_dict({}, RENDERED, unwanted={"HatColor": "red"}).unwanted == {"HatColor": ("red",)}

    def test_unwanted_labels_of_a_wanted_attribute_narrow_it(self):
        query = Query.from_dict({"UpperColor": ["red", "blue"]}, RENDERED, unwanted={"UpperColor": "blue"})
        assert query == Query.from_dict({"UpperColor": "red"}, RENDERED)

    @pytest.mark.parametrize(
        ("wanted", "unwanted", "words"),
        [
            ({}, {}, "asks for nothing"),
            ([], {}, "must be a dict"),
            ({"Ht": "yes"}, {}, "did you mean 'Hat'"),
            ({3: "yes"}, {}, "expected the name of an attribute"),
            ({"UpperColor": "rde"}, {}, "did you mean 'red'"),
            ({"UpperColor": 3}, {}, "expected one label or several"),
            ({"UpperColor": [3]}, {}, "expected one of"),
            ({"UpperColor": []}, {}, "leave it out"),
            ({"UpperColor": True}, {}, "expected one of"),
            ({"Hat": ["yes", "no"]}, {}, "holds for everybody"),
            ({}, {"Hat": ["yes", "no"]}, "holds for nobody"),
            ({"Hat": "yes"}, {"Hat": "yes"}, "contradicts itself: no 'Hat' fits"),
            ({"HatColor": "red", "Hat": "no"}, {}, "asked of people with Hat=yes only"),
            ({"Female": "yes"}, {}, "allow_sensitive=True, --allow-sensitive"),
            ({"Age": ["child"]}, {}, "decision to take on purpose"),
            ({}, {"Age": "child"}, "marked sensitive"),
        ],
    )
    def test_refused(self, wanted, unwanted, words):
        with pytest.raises(ParError, match=re.escape(words)):
            Query.from_dict(wanted, RENDERED, unwanted=unwanted)

    def test_two_ages_are_refused_and_one_is_not(self):
        with pytest.raises(ValueError, match="'AgeOver60' and 'AgeLess18' exclude each other"):
            Query.from_dict({"AgeOver60": "yes", "AgeLess18": "yes"}, PA100K, allow_sensitive=True)
        query = Query.from_dict({"AgeOver60": "yes", "AgeLess18": "no"}, PA100K, allow_sensitive=True)
        assert len(query.conditions) == 2

    def test_a_sensitive_attribute_is_not_added_by_one_that_requires_it(self):
        schema = AttributeSchema([
            Attribute("Age", "how old?", ("child", "adult"), ("a child", "an adult"), sensitive=True),
            Attribute("Bib", "a bib?", prompts=("no bib", "a bib"), requires=("Age", "child")),
        ])  # fmt: skip
        assert Query.from_dict({"Bib": "yes"}, schema).wanted == {"Bib": ("yes",)}
        assert len(Query.from_dict({"Bib": "yes"}, schema, allow_sensitive=True).wanted) == 2


class TestFromLabels:
    def test_a_whole_vector(self):
        query = Query.from_labels([1] + [0] * 24 + [-100], PA100K)
        assert query.wanted["Female"] == ("yes",) and query.wanted["Hat"] == ("no",) and "boots" not in query.wanted

    @pytest.mark.parametrize(("labels", "words"), [([1], "shape"), ([2] * 26, "holds 2"), ([-100] * 26, "all -100")])
    def test_refused(self, labels, words):
        with pytest.raises(ValueError, match=words):
            Query.from_labels(labels, PA100K)


class TestParse:
    @pytest.mark.parametrize(
        ("text", "schema", "understood"),
        [
            ("red top, backpack, not hat", RENDERED, "Hat=no, UpperColor=red, Backpack=yes"),
            ("Red Top; a backpack and short hair", RENDERED, "HairLength=short, UpperColor=red, Backpack=yes"),
            ("a person with a red top and a backpack", RENDERED, "UpperColor=red, Backpack=yes"),
            ("black or white shoes", RENDERED, "ShoeColor=black|white"),
            ("red top or blue top", RENDERED, "UpperColor=red|blue"),
            ("a red hat", RENDERED, "Hat=yes, HatColor=red"),
            ("short red skirt", RENDERED, "LowerType=skirt, LowerColor=red, LowerLength=short"),
            ("red shirt and blue jeans", RENDERED, "UpperType=shirt, UpperColor=red, LowerColor=blue, Jeans=yes"),
            ("striped shirt", RENDERED, "UpperType=shirt, UpperStripes=yes"),
            ("not blue bottom", RENDERED, "LowerColor!=blue"),
            ("without glasses, no umbrella, !mask", RENDERED, "Glasses=no, Mask=no, Umbrella=no"),
            ("cap, white sneakers", RENDERED, "Hat=yes, ShoeColor=white"),
            ("grey jacket", RENDERED, "UpperType=jacket, UpperColor=gray"),
            ("shorts", RENDERED, "LowerType=shorts"),
            ("plaid top", RENDERED, "UpperPlaid=yes"),
            ("plaid top", PA100K, "UpperSplice=yes"),  # the names of the two are exchanged in the data set's files
            ("skirt or dress, HoldObjectsInFront", PA100K, "HoldObjectsInFront=yes, Skirt&Dress=yes"),
            ("red shirt, grey trousers", MARKET, "clothes=pants, upred=yes, downgray=yes"),
            ("blue jeans", MARKET, "downblue=yes"),
            ("red shirt", get_schema("synthetic"), "UpperColor=red"),
        ],
    )
    def test_understood(self, text, schema, understood):
        query = Query.parse(text, schema)
        assert query.describe() == understood
        assert Query.parse(query.describe(), schema) == query

    @pytest.mark.parametrize(
        ("text", "schema", "words"),
        [
            ("", RENDERED, "asks for nothing"),
            ("a person", RENDERED, "asks for nothing"),
            ("rde top", RENDERED, "did you mean 'red upper clothing'"),
            ("red top, purple elephant", RENDERED, "says 'purple elephant', for which this label space has no"),
            ("xyzzy", RENDERED, "it has attributes such as Female"),
            ("red top", PA100K, "for which this label space has no attribute"),
            ("Ht=yes", RENDERED, "did you mean 'Hat'"),
            ("Hat=maybe", RENDERED, "'maybe' for 'Hat'"),
            ("hat, no hat", RENDERED, "contradicts itself"),
            ("red top, blue top", RENDERED, "contradicts itself"),
            ("Front, Back", PA100K, "exclude each other"),
            ("hat or helmet", RENDERED, "two attributes"),
            ("no hat and a backpack", RENDERED, "does the denial hold for all of it"),
            ("not blue trousers", RENDERED, "deny each one"),
            ("a woman with a backpack", RENDERED, "marked sensitive"),
            ("x" * 3000, RENDERED, "3000 characters"),
            (None, RENDERED, "must be text"),
        ],
    )
    def test_refused(self, text, schema, words):
        with pytest.raises(ParError, match=re.escape(words)):
            Query.parse(text, schema)

    def test_sensitive_on_purpose(self):
        query = Query.parse("woman, backpack", PA100K, allow_sensitive=True)
        assert query.wanted == {"Female": ("yes",), "Backpack": ("yes",)}
        assert Query.parse("man", PA100K, allow_sensitive=True).wanted == {"Female": ("no",)}

    def test_two_meanings_are_named(self):
        schema = AttributeSchema([
            Attribute("A", "what?", ("red", "blue"), ("a red coat", "a blue coat")),
            Attribute("B", "and?", ("red", "blue"), ("a coat red", "a coat blue")),
        ])  # fmt: skip
        with pytest.raises(ValueError, match="may mean A=red or B=red"):
            Query.parse("red coat", schema)

    @pytest.mark.parametrize("name", list_schemas())
    def test_every_prompt_and_name_of_every_table_says_its_own_label(self, name):
        schema = get_schema(name)
        for attribute in schema:
            asks_yes_no = attribute.labels == ("no", "yes")
            for label, prompt in zip(attribute.labels, attribute.prompts):
                if asks_yes_no and label == "no":
                    continue
                try:
                    query = Query.parse(prompt.replace(",", ""), schema, allow_sensitive=True)
                except ValueError as error:
                    assert f"{attribute.name}={label}" in str(error)  # two attributes with the same prompt
                    continue
                assert query.wanted[attribute.name] == (label,)
            if asks_yes_no:
                assert Query.parse(attribute.name, schema, allow_sensitive=True).wanted[attribute.name] == ("yes",)
