"""The label space: an ordered list of attributes, each with its question, labels and prompts.

The order of an `AttributeSchema` is the order of the label columns and of the logits everywhere in this package. It
serialises to plain JSON (`to_list`), and that list in `config.attributes` is the only copy in a checkpoint.
"""

import difflib
import operator
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import KW_ONLY, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParFileNotFoundError, ParKeyError, ParTypeError, ParValueError
from vlm_par_hf.utils import atomic_write_json, read_json, shorten

from .texts import SUBJECT, attribute_fields


__all__ = ["REGIONS", "UNKNOWN_LABEL", "Attribute", "AttributeSchema", "check_label_range"]

REGIONS = ("head", "upper", "lower", "foot", "attachment", "whole")
UNKNOWN_LABEL = -100  # label of an attribute without annotation: masked in losses and metrics

# Far above what a data set has; logits are (batch, attributes, most labels).
MAX_ATTRIBUTES = MAX_LABELS = 4096
MAX_CHARACTERS = 4096  # of one name, question, label or prompt
MAX_SCHEMA_BYTES = 1 << 26  # of a schema file

# Characters that cannot be seen and change what is: control characters (Cc), halves of a character (Cs), line and
# paragraph separators (Zl, Zp), marks that reorder the text around them, and spaces of no width. The joiners that
# Persian, Indic scripts and emoji need, and the direction marks of single characters, are ordinary text.
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
_HIDDEN = frozenset("\u200b\u2060\ufeff" + "".join(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A)))))
# Words that say which of two labels is the positive one; letters and digits only as a pair ("f" may be "female").
_YES = frozenset({"yes", "true"})
_NO = frozenset({"no", "none", "not", "false", "absent", "negative", "without", "off"})
_YES_NO_PAIRS = frozenset({("y", "n"), ("t", "f"), ("1", "0")})
_NO_STARTS = ("no ", "not ", "without ")  # of a label that denies, such as "no hat"


@dataclass(frozen=True)
class Attribute:
    """One attribute of a person.

    Args:
        name: unique in its schema; the same name as in the files of the data set.
        question: what VLM-PAR asks the image ("what color is the hat?").
        labels: two or more distinct names, in the order of the class indices. A binary attribute has two, and index 1
            is the positive one (`("no", "yes")`); the other order (`("yes", "no")`, `("hat", "none")`) is refused.
        prompts: one sentence per label, all different ("a photo of a person wearing a hat").
        region: the part of the body where the attribute is visible: one of `REGIONS`, or None.
        group: name shared by binary attributes of which at most one is positive (age bins, views), or None.
        mirror: how a horizontal flip of the image changes the label. The name of another attribute with which this one
            exchanges labels, or a permutation of its own labels (`(0, 1, 3, 2)`: label 2 becomes 3 and 3 becomes 2),
            or None for no change.
        sensitive: True for perceived gender and age (`AttributeSchema.without_sensitive`).
        threshold: a binary attribute is positive if the probability of index 1 is above it; strictly between 0 and 1.
        requires: the condition under which the question makes sense: another attribute's name and one or more of its
            labels. `("Hat", "yes")`: a person without a hat has no hat color. None: it always makes sense.

    Texts hold at most 4096 characters, in any script, but no control characters and none that only reorder or hide
    text. There are at most 4096 labels.

    Raises:
        TypeError: a field has the wrong type.
        ValueError: a field has a value that is not allowed.
    """

    name: str
    question: str
    labels: tuple[str, ...] = ("no", "yes")
    prompts: tuple[str, ...] = ()
    _: KW_ONLY
    region: str | None = None
    group: str | None = None
    mirror: str | tuple[int, ...] | None = None
    sensitive: bool = False
    threshold: float = 0.5
    requires: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self._check_text("name", self.name)
        self._check_text("question", self.question)
        for field in ("labels", "prompts"):
            value = getattr(self, field)
            if isinstance(value, (str, bytes, Mapping, Set)) or not isinstance(value, Iterable):
                raise ParTypeError(f"{self._who}: {field} must be a sequence of strings, got {shorten(value)}")
            texts = tuple(value)
            if len(texts) > MAX_LABELS:
                raise ParValueError(f"{self._who}: {field} holds {len(texts)} texts, expected at most {MAX_LABELS}")
            object.__setattr__(self, field, texts)
            for text in texts:
                self._check_text(field, text)
            if len({_normal(text) for text in texts}) != len(texts):
                raise ParValueError(f"{self._who}: {field} must all be different, got {shorten(list(texts))}")
        if len(self.labels) < 2:
            raise ParValueError(f"{self._who}: labels must hold at least 2 names, got {shorten(list(self.labels))}")
        if len(self.prompts) != len(self.labels):
            raise ParValueError(
                f"{self._who}: prompts must hold one sentence per label ({len(self.labels)}), "
                f"got {len(self.prompts)}: {shorten(list(self.prompts))}"
            )
        self._check_order()
        if self.region is not None and self.region not in REGIONS:
            raise ParValueError(f"{self._who}: region must be one of {REGIONS} or None, got {shorten(self.region)}")
        if self.group is not None:
            self._check_text("group", self.group)
            if not self.is_binary:
                raise ParValueError(
                    f"{self._who}: group {shorten(self.group)} is for binary attributes, this one has "
                    f"{self.num_labels} labels, which exclude each other anyway"
                )
        self._check_mirror()
        self._check_requires()
        if not isinstance(self.sensitive, bool):
            raise ParTypeError(f"{self._who}: sensitive must be True or False, got {shorten(self.sensitive)}")
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, (int, float, np.number)):
            raise ParTypeError(f"{self._who}: threshold must be a number, got {shorten(self.threshold)}")
        try:
            threshold = float(self.threshold)
        except (OverflowError, TypeError):  # an int beyond every float; a complex number
            threshold = float("nan")
        if not 0.0 < threshold < 1.0:
            raise ParValueError(
                f"{self._who}: threshold must lie strictly between 0 and 1, got {shorten(self.threshold)}"
            )
        object.__setattr__(self, "threshold", threshold)

    @property
    def _who(self) -> str:
        return f"attribute {shorten(self.name)}"

    def _check_text(self, field: str, value: Any) -> None:
        if not isinstance(value, str):
            raise ParTypeError(f"{self._who}: {field} must be text, got {shorten(value)}")
        if not value.strip() or value != value.strip():
            raise ParValueError(f"{self._who}: {field} must be text without surrounding space, got {shorten(value)}")
        if len(value) > MAX_CHARACTERS:
            raise ParValueError(
                f"{self._who}: {field} has {len(value)} characters, expected at most {MAX_CHARACTERS}: "
                f"{shorten(value)}"
            )
        hidden = next((c for c in value if unicodedata.category(c) in _HIDDEN_CATEGORIES or c in _HIDDEN), None)
        if hidden is not None:
            raise ParValueError(
                f"{self._who}: {field} holds the character U+{ord(hidden):04X}, which cannot be seen, in "
                f"{shorten(value)}; expected plain text"
            )

    def _check_order(self) -> None:
        if not self.is_binary:
            return
        first, second = (label.casefold() for label in self.labels)
        denies = second.startswith(_NO_STARTS) and not first.startswith(_NO_STARTS)
        if denies or second in _NO or first in _YES or (first, second) in _YES_NO_PAIRS:
            raise ParValueError(
                f"{self._who}: labels are {shorten(list(self.labels))}, but of two labels the second "
                f"is the positive one; write them as {shorten(list(self.labels[::-1]))}, and the prompts in that "
                "order too"
            )

    def _check_mirror(self) -> None:
        if self.mirror is None:
            return
        if isinstance(self.mirror, str):
            if self.mirror == self.name:
                raise ParValueError(
                    f"{self._who}: mirror must name another attribute or be a permutation of its labels"
                )
            return
        if not isinstance(self.mirror, Iterable) or isinstance(self.mirror, (Mapping, Set)):
            raise ParTypeError(
                f"{self._who}: mirror must be an attribute's name, a permutation or None, got {shorten(self.mirror)}"
            )
        indices = tuple(self.mirror)
        if any(isinstance(index, bool) or not hasattr(index, "__index__") for index in indices):
            raise ParTypeError(f"{self._who}: mirror must hold whole numbers, got {shorten(self.mirror)}")
        permutation = tuple(operator.index(index) for index in indices)
        if sorted(permutation) != list(range(self.num_labels)):
            raise ParValueError(
                f"{self._who}: mirror must be a permutation of 0..{self.num_labels - 1}, got {shorten(permutation)}"
            )
        object.__setattr__(self, "mirror", permutation)
        if any(permutation[permutation[index]] != index for index in permutation):
            raise ParValueError(
                f"{self._who}: mirror must undo itself when applied twice, as two flips do, got {shorten(permutation)}"
            )

    def _check_requires(self) -> None:
        if self.requires is None:
            return
        wanted = "the name of another attribute and one or more of its labels"
        if isinstance(self.requires, (str, Mapping, Set)) or not isinstance(self.requires, Iterable):
            raise ParTypeError(f"{self._who}: requires must hold {wanted}, got {shorten(self.requires)}")
        texts = tuple(self.requires)
        for text in texts:
            self._check_text("requires", text)
        if len(texts) < 2 or len(set(texts[1:])) < len(texts) - 1 or texts[0] == self.name:
            raise ParValueError(f"{self._who}: requires must hold {wanted}, got {shorten(list(texts))}")
        object.__setattr__(self, "requires", texts)

    @property
    def num_labels(self) -> int:
        return len(self.labels)

    @property
    def is_binary(self) -> bool:
        return len(self.labels) == 2

    def to_dict(self) -> dict[str, Any]:
        """Every field, as plain JSON types (tuples become lists)."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Attribute":
        """The attribute described by a dict as `to_dict` returns it; fields with a default may be left out.

        Raises:
            TypeError: `data` is no mapping, or a value has the wrong type.
            ValueError: a key is missing or unknown, or a value is not allowed.
        """
        if not isinstance(data, Mapping):
            raise ParTypeError(
                f"an attribute must be an Attribute or a dict, got {type(data).__name__}: {shorten(data)}"
            )
        known = [field.name for field in fields(cls)]
        for key in data:
            if key not in known:
                raise ParValueError(
                    f"attribute {shorten(data.get('name'))}: unknown key {shorten(key)}{_suggest(key, known)}"
                )
        for key in ("name", "question", "prompts"):
            if key not in data:
                raise ParValueError(
                    f"attribute {shorten(data.get('name'))}: key {key!r} is missing, got {shorten(sorted(data))}"
                )
        return cls(**data)


class AttributeSchema(Sequence[Attribute]):
    """An ordered, immutable list of attributes with unique names: the columns of labels and logits.

    `schema[3]` and `schema["Hat"]` give an `Attribute`, `"Hat" in schema` looks up a name, `==` compares all fields.

    Args:
        attributes: `Attribute` objects, dicts as `Attribute.to_dict` returns them, or another schema.

    Raises:
        TypeError: an element is neither an `Attribute` nor a dict.
        ValueError: no attribute at all, a name twice, or a `mirror` that names no attribute of the schema, an
            attribute with other labels, or one whose own `mirror` is not this attribute; a `requires` that names no
            attribute of the schema, or labels that it does not have, or attributes that require each other.
    """

    def __init__(self, attributes: Iterable[Attribute | Mapping[str, Any]]) -> None:
        if isinstance(attributes, (str, Mapping)) or not isinstance(attributes, Iterable):
            raise ParTypeError(
                "attributes must be a list of Attribute or dict, got "
                f"{type(attributes).__name__}: {shorten(attributes)}"
            )
        self._attributes = tuple(
            item if isinstance(item, Attribute) else Attribute.from_dict(item) for item in attributes
        )
        if not self._attributes:
            raise ParValueError("attributes must hold at least one attribute, got none")
        if len(self._attributes) > MAX_ATTRIBUTES:
            raise ParValueError(
                f"attributes holds {len(self._attributes)} attributes, expected at most {MAX_ATTRIBUTES}"
            )
        self._positions: dict[str, int] = {}
        first_position: dict[str, int] = {}
        for position, attribute in enumerate(self._attributes):
            self._positions[attribute.name] = position
            first = first_position.setdefault(_normal(attribute.name), position)
            if first != position:
                raise ParValueError(
                    f"attribute names must be unique, {shorten(attribute.name)} is at positions {first} and {position}"
                )
        for attribute in self._attributes:
            if isinstance(attribute.mirror, str):
                self._check_mirror_partner(attribute)
            if attribute.requires is not None:
                self._check_condition(attribute)

    def _check_condition(self, attribute: Attribute) -> None:
        name, *labels = attribute.requires
        if name not in self._positions:
            raise ParValueError(
                f"{attribute._who}: requires names {shorten(name)}, which is no attribute of this schema"
                f"{_suggest(name, self.names)}"
            )
        for label in labels:
            if label not in self[name].labels:
                raise ParValueError(
                    f"{attribute._who}: requires the label {shorten(label)} of {shorten(name)}, which has "
                    f"{shorten(list(self[name].labels))}"
                )
        chain = [attribute.name]
        while (condition := self[chain[-1]].requires) is not None and condition[0] in self._positions:
            if condition[0] in chain:
                raise ParValueError(f"{attribute._who}: requires leads back to itself: {' -> '.join(chain)}")
            chain.append(condition[0])

    def _check_mirror_partner(self, attribute: Attribute) -> None:
        if attribute.mirror not in self._positions:
            raise ParValueError(
                f"{attribute._who}: mirror {shorten(attribute.mirror)} is no attribute of this schema"
                f"{_suggest(attribute.mirror, self.names)}"
            )
        partner = self[attribute.mirror]
        if partner.mirror != attribute.name:
            raise ParValueError(
                f"{attribute._who}: its mirror {shorten(partner.name)} must name it back, but has mirror "
                f"{shorten(partner.mirror)}"
            )
        if partner.labels != attribute.labels:
            raise ParValueError(
                f"{attribute._who}: its mirror {shorten(partner.name)} must have the same labels "
                f"{shorten(list(attribute.labels))}, but has {shorten(list(partner.labels))}"
            )

    def __len__(self) -> int:
        return len(self._attributes)

    def __iter__(self) -> Iterator[Attribute]:
        return iter(self._attributes)

    def __getitem__(self, key: int | str) -> Attribute:
        return self._attributes[self.index(key) if isinstance(key, str) else operator.index(key)]

    def __contains__(self, item: object) -> bool:
        return item in self._positions if isinstance(item, str) else item in self._attributes

    def __eq__(self, other: object) -> bool:
        return self._attributes == other._attributes if isinstance(other, AttributeSchema) else NotImplemented

    __hash__ = None

    def __repr__(self) -> str:
        shown = ", ".join(self.names[:4]) + (", ..." if len(self) > 4 else "")
        return f"AttributeSchema({len(self)} attributes: {shown})"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(attribute.name for attribute in self)

    @property
    def num_labels(self) -> tuple[int, ...]:
        """Number of labels of each attribute."""
        return tuple(attribute.num_labels for attribute in self)

    @property
    def max_labels(self) -> int:
        """The largest number of labels: the size of the last axis of the logits."""
        return max(self.num_labels)

    @property
    def questions(self) -> tuple[str, ...]:
        return tuple(attribute.question for attribute in self)

    @property
    def groups(self) -> dict[str, list[int]]:
        """Positions of the attributes of each group, groups in the order of their first member."""
        groups: dict[str, list[int]] = {}
        for position, attribute in enumerate(self):
            if attribute.group is not None:
                groups.setdefault(attribute.group, []).append(position)
        return groups

    def index(self, name: str) -> int:
        """Position of the attribute `name`.

        Raises:
            KeyError: there is no such attribute; the message suggests similar names.
        """
        if name not in self._positions:
            raise ParKeyError(f"no attribute {shorten(name)} in this schema{_suggest(name, self.names)}")
        return self._positions[name]

    def label_mask(self) -> np.ndarray:
        """Bool `(num_attributes, max_labels)`: True for labels that the attribute has."""
        return np.arange(self.max_labels)[None, :] < np.asarray(self.num_labels)[:, None]

    def mirror_labels(self, labels: np.ndarray) -> np.ndarray:
        """Labels of the horizontally flipped images.

        Args:
            labels: int `(..., num_attributes)`, class index per attribute, -100 = unknown; unknown labels stay
                unknown.

        Returns:
            int64 `(..., num_attributes)`, a new array.

        Raises:
            ValueError: the last axis has another size, or a label is neither -100 nor a class index of its attribute.
        """
        labels = np.asarray(labels)
        if labels.ndim == 0 or labels.shape[-1] != len(self):
            raise ParValueError(f"labels must have shape (..., {len(self)}), got {labels.shape}")
        if labels.dtype.kind not in "iu":
            raise ParValueError(f"labels must be integers (class indices, -100 = unknown), got dtype {labels.dtype}")
        labels = labels.astype(np.int64)
        check_label_range(labels, self)
        known = labels != UNKNOWN_LABEL
        flipped = labels.copy()
        for position, attribute in enumerate(self):
            if isinstance(attribute.mirror, str):
                flipped[..., position] = labels[..., self.index(attribute.mirror)]
            elif attribute.mirror is not None:
                column = labels[..., position]
                moved = np.asarray(attribute.mirror)[np.where(known[..., position], column, 0)]
                flipped[..., position] = np.where(known[..., position], moved, UNKNOWN_LABEL)
        return flipped

    def subset(self, names: Iterable[str]) -> "AttributeSchema":
        """The schema of these attributes, in the order of `names`.

        A condition (`requires`) on an attribute that is left out is dropped: there is no answer to compare with.

        Raises:
            TypeError: `names` is one text.
            KeyError: a name is unknown.
            ValueError: an attribute is kept, but not its mirror partner: its label would be wrong after a flip.
        """
        if isinstance(names, str):
            raise ParTypeError(f"names must be a list of attribute names, got the text {names!r}")
        return AttributeSchema(_without_lost_conditions([self[name] for name in names]))

    def without_sensitive(self) -> "AttributeSchema":
        """The schema without the attributes marked sensitive (perceived gender and age), conditions as in `subset`.

        Raises:
            ValueError: no attribute remains.
        """
        return AttributeSchema(_without_lost_conditions([one for one in self if not one.sensitive]))

    def with_questions(self, questions: Mapping[str, str]) -> "AttributeSchema":
        """The same label space with other questions, such as questions in another language.

        `schema.with_questions({"Hat": "la persona indossa un cappello?"})`. SigLIP 2 has read many languages, so
        VLM-PAR over it can be asked in one of them. Names, labels and prompts stay: labels and metrics do not change.

        Args:
            questions: name of an attribute -> its question; other attributes keep theirs.

        Raises:
            KeyError: there is no such attribute.
            TypeError, ValueError: as for `Attribute`.
        """
        if not isinstance(questions, Mapping):
            raise ParTypeError(f"questions must be a dict of attribute names and questions, got {shorten(questions)}")
        for name in questions:
            self.index(name)
        return AttributeSchema([replace(one, question=questions.get(one.name, one.question)) for one in self])

    def diff(self, other: "AttributeSchema", *, label_space_only: bool = False) -> list[str]:
        """The differences from another schema, one sentence each; empty if the two are equal.

        Args:
            other: the schema to compare with.
            label_space_only: compare only names, order and labels. If these are equal, label arrays made for one
                schema are correct for the other, whatever the wording, regions and thresholds.
        """
        other = other if isinstance(other, AttributeSchema) else AttributeSchema(other)
        lines = [f"{name!r} is only in the first schema" for name in self.names if name not in other]
        lines += [f"{name!r} is only in the second schema" for name in other.names if name not in self]
        if not lines:
            for position, (mine, theirs) in enumerate(zip(self.names, other.names)):
                if mine != theirs:
                    lines.append(
                        f"the order differs from position {position}: {mine!r} in the first schema, "
                        f"{theirs!r} in the second"
                    )
                    break
        compared = ["labels"] if label_space_only else [field.name for field in fields(Attribute)]
        for attribute in self:
            if attribute.name in other:
                mine, theirs = attribute.to_dict(), other[attribute.name].to_dict()
                lines += [
                    f"{attribute.name!r}: {field} is {mine[field]!r} in the first schema, "
                    f"{theirs[field]!r} in the second"
                    for field in compared
                    if mine[field] != theirs[field]
                ]
        return lines

    def to_list(self) -> list[dict[str, Any]]:
        """One plain-JSON dict per attribute."""
        return [attribute.to_dict() for attribute in self]

    @classmethod
    def from_list(cls, attributes: Iterable[Attribute | Mapping[str, Any]]) -> "AttributeSchema":
        return cls(attributes)

    @classmethod
    def from_texts(cls, attributes: Any, *, subject: str = SUBJECT) -> "AttributeSchema":
        """A label space in which each attribute is given by a few words, for models that recognise attributes by
        texts.

        `AttributeSchema.from_texts(["wearing a red scarf", "a backpack | a handbag | no bag"])`

        Args:
            attributes: a list, a dict `{name: text or list of texts}`, or a schema, which is returned as it is. An
                element of a list is a text, which makes a binary attribute of that name ("wearing a red scarf" or "a
                red scarf"); texts divided by `|`, or a list of texts, which makes one attribute with these
                alternatives as its labels; or an `Attribute` or its dict, which is used as it is.
            subject: the beginning of the sentences; it is not repeated if a text begins with it already.

        Raises:
            TypeError, ValueError: no attribute, an attribute twice, or an element of another kind.
        """
        if isinstance(attributes, AttributeSchema):
            return attributes
        if isinstance(attributes, str) or not isinstance(attributes, Iterable):
            raise ParTypeError(f"attributes must be a list of texts or attributes, or a dict, got {attributes!r:.80}")
        if isinstance(attributes, Mapping):
            return cls(attribute_fields(text, subject, name) for name, text in attributes.items())
        return cls(attribute_fields(item, subject) for item in attributes)

    def usual_subject(self) -> str:
        """The most frequent beginning of the prompts, up to and including the word "person"; "a photo of a person" if
        no prompt contains that word."""
        parts = [prompt.partition("person") for one in self for prompt in one.prompts]
        starts = Counter(before + word for before, word, _ in parts if word)
        return starts.most_common(1)[0][0] if starts else SUBJECT

    def to_json(self, path: str | Path) -> None:
        """Writes the list of `to_list` to a UTF-8 file."""
        atomic_write_json(path, self.to_list())

    @classmethod
    def from_json(cls, path: str | Path) -> "AttributeSchema":
        """Reads a file that `to_json` wrote, or one written by hand in the same form.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not JSON, or not a list of attributes; the message names the file.
        """
        path = Path(path)
        if not path.is_file():
            raise ParFileNotFoundError(f"schema file {path} does not exist; expected a JSON list of attributes")
        size = path.stat().st_size
        if size > MAX_SCHEMA_BYTES:
            raise ParValueError(f"schema file {path} has {size} bytes, expected at most {MAX_SCHEMA_BYTES}")
        try:
            data = read_json(path.read_text(encoding="utf-8-sig"))  # some editors write a byte order mark
        except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
            raise ParValueError(f"schema file {path} is not JSON: {error}") from error
        if not isinstance(data, list):
            raise ParValueError(f"schema file {path} must hold a JSON list of attributes, got {type(data).__name__}")
        try:
            return cls(data)
        except (TypeError, ValueError) as error:
            raise ParValueError(f"schema file {path}: {error}") from error


def _without_lost_conditions(attributes: list[Attribute]) -> list[Attribute]:
    """The attributes, without conditions on attributes that are not among them."""
    names = {one.name for one in attributes}
    return [
        replace(one, requires=None) if one.requires and one.requires[0] not in names else one for one in attributes
    ]


def check_label_range(labels: np.ndarray, schema: AttributeSchema, where: str = "labels") -> None:
    """Checks that every label is -100 (unknown) or a class index of its attribute.

    Args:
        labels: integers `(A,)` or `(N, A)`; more leading axes are allowed.
        schema: the label space.
        where: name of the labels in the error message.

    Raises:
        ValueError: names the first wrong label, its attribute and row, and the labels that the attribute has.
    """
    wrong = (labels != UNKNOWN_LABEL) & ((labels < 0) | (labels >= np.asarray(schema.num_labels)))
    if not wrong.any():
        return
    *row, column = (int(index) for index in np.argwhere(wrong)[0])
    attribute = schema[column]
    place = f" of row {row[0]}" if row else ""
    raise ParValueError(
        f"{where} holds {labels[(*row, column)]} for attribute {attribute.name!r}{place}, expected 0 to "
        f"{attribute.num_labels - 1} ({', '.join(attribute.labels)[:200]}) or {UNKNOWN_LABEL} for unknown"
    )


def _suggest(word: str, choices: Iterable[str]) -> str:
    """End of an error message: the choices most similar to `word`, ignoring case; all choices if none is similar."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(word)[:100].lower(), by_lower, n=3, cutoff=0.6)
    if near:
        return "; did you mean " + " or ".join(shorten(by_lower[choice]) for choice in near) + "?"
    names = list(by_lower.values())
    more = f" and {len(names) - 60} more" if len(names) > 60 else ""
    return f"; it has {', '.join(names[:60])[:1000]}{more}"


def _normal(text: str) -> str:
    """One form for texts that are composed differently and look the same."""
    return unicodedata.normalize("NFC", text)
