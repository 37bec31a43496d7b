"""Schema files: drawn label spaces in every way JSON writes them, and each of the known defects."""

import copy
import json
import tempfile
import unicodedata
from pathlib import Path

from hypothesis import strategies as st

from modeling_tests.fuzz.fuzzing import Area
from vlm_par_hf.labels.schema import AttributeSchema


AREA = Area("schema", "the drawn attributes, or the defect that was put in")

FOLDER = Path(tempfile.mkdtemp(prefix="schema"))
DEFAULTS = {"labels": ["no", "yes"], "region": None, "group": None, "mirror": None, "sensitive": False}
REGIONS = ("head", "upper", "lower", "foot", "attachment", "whole")
BINARY = (("no", "yes"), ("male", "female"), ("absent", "present"), ("false", "true"), ("Nein", "Ja"))

words = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=8)
texts = st.lists(words, min_size=1, max_size=4).map(" ".join)


def normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@st.composite
def attributes(draw):
    """One attribute as plain JSON, its fields with a default left out by chance."""
    binary = draw(st.booleans())
    if binary:
        labels = list(draw(st.sampled_from(BINARY)))
    else:
        labels = draw(st.lists(texts, min_size=3, max_size=6, unique_by=normal))
    prompts = draw(st.lists(texts, min_size=len(labels), max_size=len(labels), unique_by=normal))
    item = {"name": draw(texts), "question": draw(texts), "labels": labels, "prompts": prompts}
    item["region"] = draw(st.sampled_from([None, *REGIONS]))
    item["group"] = draw(st.sampled_from([None, "view"])) if binary else None
    swapped = [1, 0, *range(2, len(labels))]
    item["mirror"] = draw(st.sampled_from([None, swapped]))
    item["sensitive"] = draw(st.booleans())
    item["threshold"] = draw(st.floats(0.001, 0.999))
    for name, default in {**DEFAULTS, "threshold": 0.5}.items():
        if item[name] == default and draw(st.booleans()):
            del item[name]
    return item


spaces = st.lists(attributes(), min_size=1, max_size=5, unique_by=lambda item: normal(item["name"]))


def full(items: list[dict]) -> list[dict]:
    return [{**DEFAULTS, "threshold": 0.5, **item} for item in items]


def read(data: bytes) -> AttributeSchema:
    path = FOLDER / "schema.json"
    path.write_bytes(data)
    return AttributeSchema.from_json(path)


@AREA.fuzz(
    900,
    items=spaces,
    encoding=st.sampled_from(["utf-8", "utf-8-sig"]),
    indent=st.sampled_from([None, 2]),
    ascii_only=st.booleans(),
)
def test_round_trip(items, encoding, indent, ascii_only):
    data = json.dumps(items, indent=indent, ensure_ascii=ascii_only).encode(encoding)

    def right(schema):
        again = AttributeSchema.from_list(schema.to_list())
        schema.to_json(FOLDER / "again.json")
        written = json.loads((FOLDER / "again.json").read_text(encoding="utf-8"))
        return schema.to_list() == full(items) == written and again == schema

    AREA.judge(lambda: read(data), right)


HIDDEN = ("\x00", "\x07", "\n", "\x1b[2J", "\x85", "\u2028", "\u202e", "\u2066", "\u200b", "\ufeff", "\ud800")
FIELD_FAULTS = (
    *(("name", lambda old, c=c: f"a{c}b") for c in HIDDEN),
    *(("question", lambda old, c=c: f"a{c}b") for c in HIDDEN),
    *(("labels", lambda old, c=c: [f"a{c}b", *old[1:]]) for c in HIDDEN),
    *(("prompts", lambda old, c=c: [*old[:-1], f"a{c}b"]) for c in HIDDEN),
    *((field, lambda old, v=v: v) for field in ("name", "question") for v in ("", " a", "a\t", 3, None, ["a"], {})),
    ("name", lambda old: "x" * 5000),
    ("labels", lambda old: [old[0]]),
    ("labels", lambda old: [*old, "one more"]),
    ("labels", lambda old: [old[0], *old[:-1]]),
    ("labels", lambda old: "no"),
    ("labels", lambda old: {"no": 0, "yes": 1}),
    ("labels", lambda old: [1, 2]),
    ("labels", lambda old: ["a", unicodedata.normalize("NFD", "é"), "é"]),
    ("labels", lambda old: [str(n) for n in range(5000)]),
    ("prompts", lambda old: []),
    ("prompts", lambda old: None),
    *((("region"), lambda old, v=v: v) for v in ("hand", 1, ["head"], {}, True)),
    *((("group"), lambda old, v=v: v) for v in ("", 1, ["view"])),
    *(
        (("mirror"), lambda old, v=v: v)
        for v in ("nobody", [0], [0, 0], [1, 2, 0], ["a"], {}, 1, [True, False], [0.0, 1])
    ),
    *((("sensitive"), lambda old, v=v: v) for v in (0, "no", None)),
    *((("threshold"), lambda old, v=v: v) for v in (0, 1, -1, 2, "0.5", None, True, [0.5], 10**400)),
)
BINARY_FAULTS = (
    ["yes", "no"],
    ["true", "false"],
    ["Present", "absent"],
    ["cap", "none"],
    ["1", "0"],
    ["with", "without"],
)


def two(labels):
    """As `labels`, with as many prompts."""

    def apply(item):
        item["labels"], item["prompts"] = list(labels), ["one", "other"]
        item.pop("mirror", None)

    return apply


WHOLE_FAULTS = (
    lambda item: item.pop("name"),
    lambda item: item.pop("question"),
    lambda item: item.pop("prompts"),
    lambda item: item.update(colour="red"),
    *(two(labels) for labels in BINARY_FAULTS),
)
TEXT_FAULTS = (
    lambda text: text[:-1],
    lambda text: text[: len(text) // 2],
    lambda text: text + "]",
    lambda text: '{"attributes": ' + text + "}",
    lambda text: "[]",
    lambda text: "",
    lambda text: "null",
    lambda text: "[1]",
    lambda text: "[null, " + text[1:],
    lambda text: "[" * 100_000 + text,
    lambda text: text.replace("{", '{"name": "other", ', 1),
    lambda text: "[" + "1" * 5000 + "]",
    lambda text: text[:-1] + ", " + text[1:],  # every name twice
    lambda text: "\x00" + text,
    lambda text: "[" + ",".join(f'{{"name": "n{n}"}}' for n in range(5000)) + "]",
)


@AREA.fuzz(
    1500,
    items=spaces,
    position=st.integers(0, 4),
    fault=st.one_of(
        st.sampled_from([("field", *pair) for pair in FIELD_FAULTS]),
        st.sampled_from([("whole", change) for change in WHOLE_FAULTS]),
        st.sampled_from([("text", change) for change in TEXT_FAULTS]),
        st.sampled_from([("bytes", encoding) for encoding in ("utf-16", "utf-32")]),
    ),
)
def test_defects_are_refused(items, position, fault):
    broken = copy.deepcopy(items)
    item = broken[position % len(broken)]
    kind, *change = fault
    if kind == "field":
        name, replace = change
        item[name] = replace(item.get(name, DEFAULTS.get(name)))
    elif kind == "whole":
        change[0](item)
    text = json.dumps(broken)
    data = text.encode(change[0]) if kind == "bytes" else (change[0](text) if kind == "text" else text).encode()
    AREA.judge(lambda: read(data), lambda schema: False, must_refuse=True)
