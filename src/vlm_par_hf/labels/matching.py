"""Which attributes two label spaces have in common, and the answers of one in terms of the other.

Data sets name the same thing differently ("Hat", "accessoryHat", "hs-Hat"), turn it around (`personalMale` and
`Female`), and divide it otherwise (`View` with four labels, or `Front`, `Side` and `Back`). What a mapping does not
settle is matched by the question and by the name; nothing is matched by likeness.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParFileNotFoundError, ParKeyError, ParTypeError, ParValueError
from vlm_par_hf.utils import read_json, shorten

from .schema import UNKNOWN_LABEL, Attribute, AttributeSchema


__all__ = ["LabelMatch", "match_label_spaces", "match_labels", "read_mapping"]

_SPELLINGS = {"grey": "gray"}
_FORMS = (
    'null, the name of an attribute of the checkpoint, {"attribute": name, "inverse": true}, {"attribute": name, '
    '"labels": ...} or {"attributes": {label: name, ...}}'
)
Source = tuple[int, int]  # attribute and label of the model


@dataclass(frozen=True, eq=False)
class LabelMatch:
    """The attributes of a data set that a model answers, and how.

    Attributes:
        schema: these attributes as the data set has them, with the labels that the model can tell apart; thresholds
            are the model's.
        columns: int `(A',)`, their positions in the label space of the data set.
        sources: per attribute and label the labels of the model whose probabilities are summed.
        described: per attribute what of the model answers it, in words.
        by_name: those that are matched by their name alone and ask another question: is the same meant?
        unmatched: names of the data set's attributes that the model does not answer.
        data_schema: the label space of the data set.
    """

    schema: AttributeSchema
    columns: np.ndarray
    sources: tuple[tuple[tuple[Source, ...], ...], ...]
    described: tuple[str, ...]
    by_name: tuple[str, ...]
    unmatched: tuple[str, ...]
    data_schema: AttributeSchema

    def labels(self, labels: np.ndarray) -> np.ndarray:
        """Labels of the data set, int `(N, A)`, as labels of `schema`, int64 `(N, A')`. A label that the model cannot
        give becomes unknown."""
        found = np.full((len(labels), len(self.schema)), UNKNOWN_LABEL, np.int64)
        for position, (column, attribute) in enumerate(zip(self.columns, self.schema)):
            own = self.data_schema[int(column)].labels
            for index, label in enumerate(attribute.labels):
                found[labels[:, column] == own.index(label), position] = index
        return found

    def probabilities(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities of the model, `(N, A, C)`, as those of `schema`, float64 `(N, A', C')`, which add up to 1 over
        an attribute's labels."""
        found = np.zeros((len(probabilities), len(self.schema), self.schema.max_labels))
        for position, labels in enumerate(self.sources):
            for index, sources in enumerate(labels):
                found[:, position, index] = sum(probabilities[:, a, k] for a, k in sources)
            total = found[:, position].sum(-1, keepdims=True)
            even = np.full_like(found[:, position], 1 / len(labels)) * self.schema.label_mask()[position]
            found[:, position] = np.where(total > 0, found[:, position] / np.where(total > 0, total, 1), even)
        return found


def read_mapping(path: str | Path) -> dict[str, Any]:
    """A mapping file: a JSON object, name of an attribute of the data set -> what answers it (see
    `match_label_spaces`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON object, or has a key twice.
    """
    path = Path(path)
    if not path.is_file():
        raise ParFileNotFoundError(f"mapping file {path} does not exist; expected a JSON object")
    try:
        found = read_json(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ParValueError(f"mapping file {path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ParValueError(f"mapping file {path} must hold a JSON object, got {type(found).__name__}")
    return found


def match_label_spaces(
    model: AttributeSchema, data: AttributeSchema, mapping: Mapping[str, Any] | None = None
) -> LabelMatch:
    """The attributes of `data` that a model for `model` answers.

    The mapping goes first. Then attributes that ask the same question, each as the only one of its label space to ask
    it; then, of those that remain, attributes of the same name (upper and lower case alike). Two labels each are
    matched in their order if the question is the same; all other labels are matched by name, and two of them at least
    must be in both.

    Args:
        model: the label space of the model.
        data: that of the data set.
        mapping: name of an attribute of the data set -> one of

            - None: it is left out;
            - a name of the model's label space;
            - `{"attribute": name, "inverse": True}`: two labels each, in reverse order (`personalMale`, `Female`);
            - `{"attribute": name, "labels": {data label: label or list of labels of the model}}`, and for an attribute
              with two labels also a list, the labels that mean its second one: `{"Side": {"attribute": "View",
              "labels": ["left", "right"]}}`;
            - `{"attributes": {data label: name of a binary attribute of the model}}`: each label is the second label
              of another attribute, `{"Age": {"attributes": {"child": "AgeLess18", "adult": "Age18-60"}}}`.

    Raises:
        KeyError: the mapping names an attribute that is not there.
        ValueError: it has another form, names labels that are not there, or two attributes of the data set are mapped
            to the same labels of the model; or no attribute is matched.
        TypeError: it is no dict.
    """
    mapping = {} if mapping is None else mapping
    if not isinstance(mapping, Mapping):
        raise ParTypeError(f"mapping must be a dict of attribute names, got {shorten(mapping)}")
    found: dict[str, _Answer] = {}
    for name, target in mapping.items():
        with _named("mapping names an attribute that the data set lacks"):
            data.index(name)
        if target is not None:
            with _named(f"mapping of {shorten(name)} names an attribute that the checkpoint lacks"):
                found[name] = _read_target(data[name], target, model)
    _check_claims(found, model)
    taken = {attribute for answer in found.values() for attribute in answer.attributes}
    by_name = []
    for one, other, key in _pairs(model, data, mapping, taken):
        answer = _match_labels(one, other, model, in_order=key is _question)
        if answer is not None:
            found[one.name] = answer
            taken |= answer.attributes
            by_name += [] if key is _question else [one.name]
    if not found:
        raise ParValueError(
            "the checkpoint and the data set have no attribute in common: the checkpoint has "
            f"{', '.join(model.names)[:300]}; the data set has {', '.join(data.names)[:300]}; a mapping file "
            "(--mapping) says which mean the same"
        )
    names = [name for name in data.names if name in found]
    return LabelMatch(
        schema=AttributeSchema(_settle([found[name].attribute for name in names])),
        columns=np.array([data.index(name) for name in names]),
        sources=tuple(found[name].sources for name in names),
        described=tuple(found[name].describe(model) for name in names),
        by_name=tuple(by_name),
        unmatched=tuple(name for name in data.names if name not in found),
        data_schema=data,
    )


def match_labels(
    first: AttributeSchema, second: AttributeSchema, same: Mapping[str, str | None] | None = None
) -> dict[str, tuple[int, np.ndarray]]:
    """The attributes of `second` that are attributes of `first` too, one for one, by the rules of
    `match_label_spaces`.

    Args:
        first, second: label spaces.
        same: name of an attribute of `second` -> that of `first`, or None if it is none of them.

    Returns:
        Name of an attribute of `second` -> the position of that of `first`, and per label the class index there, -1
        for a label that it lacks.

    Raises:
        KeyError: `same` names an attribute that is not there.
        ValueError: `same` says it of two attributes that have fewer than two labels in common, or of one twice.
    """
    same = same or {}
    found: dict[str, _Answer] = {}
    for name, target in same.items():
        one = second[name]
        if target is not None:
            answer = _match_labels(one, first[target], first, in_order=True)
            if answer is None:
                raise ParValueError(
                    f"same says that {shorten(name)} is {shorten(target)}, but {shorten(list(one.labels))} and "
                    f"{shorten(list(first[target].labels))} have fewer than two labels in common"
                )
            found[name] = answer
    _check_claims(found, first)
    taken = {attribute for answer in found.values() for attribute in answer.attributes}
    for one, other, key in _pairs(first, second, same, taken):
        answer = _match_labels(one, other, first, in_order=key is _question)
        if answer is not None and one.is_binary == other.is_binary:
            found[one.name] = answer
            taken |= answer.attributes
    result = {}
    for name, answer in found.items():
        indices = np.full(second[name].num_labels, -1)
        for label, ((_, index),) in zip(answer.attribute.labels, answer.sources):
            indices[second[name].labels.index(label)] = index
        (position,) = answer.attributes
        result[name] = position, indices
    return result


@dataclass(frozen=True, eq=False)
class _Answer:
    """How one attribute of the data set is answered: its labels that can be, and the model's labels for each."""

    attribute: Attribute
    sources: tuple[tuple[Source, ...], ...]
    inverse: bool = False

    @property
    def attributes(self) -> set[int]:
        return {a for sources in self.sources for a, _ in sources}

    @property
    def claims(self) -> set[Source]:
        """The labels of the model that nothing else may mean: those of the second label of two, else of all."""
        return {source for sources in self.sources[1 if self.attribute.is_binary else 0 :] for source in sources}

    def describe(self, model: AttributeSchema) -> str:
        names = [model[a].name for a in sorted(self.attributes)]
        if len(names) > 1:
            return ", ".join(names)
        if self.inverse:
            return f"not {names[0]}"
        other, labels = model[names[0]], self.attribute.labels
        same = all(
            [_label(label)] == [_label(other.labels[k]) for _, k in part] for label, part in zip(labels, self.sources)
        )
        if not same and self.attribute.is_binary:
            positive = ", ".join(other.labels[k] for _, k in self.sources[1])
            return other.name if other.is_binary else f"{other.name}: {positive}"
        return other.name if same and len(labels) == other.num_labels else f"{other.name}, {len(labels)} labels"


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Says what a name was for that a label space does not know."""
    try:
        yield
    except ParKeyError as error:
        raise ParKeyError(f"{what}: {error.args[0]}") from None


def _read_target(one: Attribute, target: Any, model: AttributeSchema) -> _Answer:
    where = f"mapping of {shorten(one.name)}"
    if isinstance(target, str):
        target = {"attribute": target}
    if not isinstance(target, Mapping) or set(target) not in (
        {"attribute"}, {"attribute", "inverse"}, {"attribute", "labels"}, {"attributes"},
    ):  # fmt: skip
        raise ParValueError(f"{where} is {shorten(target)}, expected {_FORMS}")
    if "attributes" in target:
        return _from_attributes(one, target["attributes"], model, where)
    if not isinstance(target["attribute"], str):
        raise ParValueError(f"{where}: attribute is {shorten(target['attribute'])}, expected a name")
    position = model.index(target["attribute"])
    other = model[position]
    if "labels" in target:
        return _from_labels(one, target["labels"], other, position, where)
    if target.get("inverse", False) not in (True, False):
        raise ParValueError(f"{where}: inverse is {shorten(target['inverse'])}, expected true or false")
    if one.is_binary and other.is_binary:
        inverse = target.get("inverse", False)
        sources = (((position, 0),), ((position, 1),))
        threshold = 1 - other.threshold if inverse else other.threshold
        return _Answer(replace(one, threshold=threshold), sources[::-1] if inverse else sources, inverse)
    if target.get("inverse", False):
        raise ParValueError(f"{where}: inverse is for two labels each, got {one.num_labels} and {other.num_labels}")
    answer = _match_labels(one, other, model, in_order=False)
    if answer is None:
        raise ParValueError(
            f"{where}: {shorten(list(one.labels))} and {shorten(list(other.labels))} of {shorten(other.name)} have "
            'fewer than two labels in common; say which mean the same: {"attribute": ..., "labels": {...}}'
        )
    return answer


def _from_attributes(one: Attribute, labels: Any, model: AttributeSchema, where: str) -> _Answer:
    if (
        not isinstance(labels, Mapping)
        or len(labels) < 2
        or not all(isinstance(name, str) for name in labels.values())
    ):
        raise ParValueError(f"{where}: attributes is {shorten(labels)}, expected {{label: name, ...}} for two or more")
    _check_labels(labels, one, where)
    sources = {}
    for label, name in labels.items():
        position = model.index(name)
        if not model[position].is_binary:
            raise ParValueError(f"{where}: {shorten(name)} has {model[position].num_labels} labels, expected two")
        sources[label] = [(position, 1)]
    return _combine(one, sources, where)


def _from_labels(one: Attribute, labels: Any, other: Attribute, position: int, where: str) -> _Answer:
    if isinstance(labels, list) and one.is_binary:
        labels = {one.labels[0]: [label for label in other.labels if label not in labels], one.labels[1]: labels}
    if not isinstance(labels, Mapping) or len(labels) < 2:
        raise ParValueError(f"{where}: labels is {shorten(labels)}, expected {{label: labels, ...}} for two or more")
    _check_labels(labels, one, where)
    sources = {}
    for label, names in labels.items():
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not names:
            raise ParValueError(
                f"{where}: label {shorten(label)} is {shorten(names)}, expected labels of {shorten(other.name)}"
            )
        _check_labels(names, other, where)
        sources[label] = [(position, other.labels.index(name)) for name in names]
    return _combine(one, sources, where)


def _check_labels(names: Iterable[Any], attribute: Attribute, where: str) -> None:
    for name in names:
        if name not in attribute.labels:
            raise ParValueError(
                f"{where}: {shorten(name)} is no label of {shorten(attribute.name)}, which has "
                f"{shorten(list(attribute.labels))}"
            )


def _match_labels(one: Attribute, other: Attribute, model: AttributeSchema, *, in_order: bool) -> _Answer | None:
    """Matches the labels of two attributes; None if fewer than two are in both."""
    position = model.index(other.name)
    theirs = {_label(label): index for index, label in enumerate(other.labels)}
    shared = [label for label in one.labels if _label(label) in theirs]
    both_binary = one.is_binary and other.is_binary
    if both_binary and len(shared) < 2 and in_order:
        return _Answer(replace(one, threshold=other.threshold), (((position, 0),), ((position, 1),)))
    if len(shared) < 2 or (both_binary and theirs[_label(one.labels[0])] != 0):
        return None
    answer = _combine(one, {label: [(position, theirs[_label(label)])] for label in shared}, other.name)
    if both_binary:
        return replace(answer, attribute=replace(answer.attribute, threshold=other.threshold))
    return answer


def _combine(one: Attribute, sources: Mapping[str, list[Source]], where: str) -> _Answer:
    """The answer to an attribute of which only some labels may be left."""
    used = [source for part in sources.values() for source in part]
    if len(set(used)) < len(used):
        raise ParValueError(f"{where}: two labels of {shorten(one.name)} are mapped to one, expected different ones")
    kept = [index for index, label in enumerate(one.labels) if label in sources]
    attribute = replace(
        one,
        labels=tuple(one.labels[index] for index in kept),
        prompts=tuple(one.prompts[index] for index in kept),
        mirror=None,
        threshold=0.5,
    )
    return _Answer(attribute, tuple(tuple(sources[one.labels[index]]) for index in kept))


def _settle(attributes: list[Attribute]) -> list[Attribute]:
    """Without what refers to attributes and labels that are not among them."""
    labels = {one.name: one.labels for one in attributes}
    return [
        replace(
            one,
            mirror=None,
            requires=None
            if one.requires is None or not set(one.requires[1:]) <= set(labels.get(one.requires[0], ()))
            else one.requires,
        )
        for one in attributes
    ]


def _check_claims(found: Mapping[str, _Answer], model: AttributeSchema) -> None:
    claimed: dict[Source, str] = {}
    for name, answer in found.items():
        for a, k in sorted(answer.claims):
            first = claimed.setdefault((a, k), name)
            if first != name:
                raise ParValueError(
                    f"the mapping maps both {shorten(first)} and {shorten(name)} to {shorten(model[a].name)} "
                    f"({shorten(model[a].labels[k])}), expected one of them"
                )


def _pairs(first: AttributeSchema, second: AttributeSchema, settled: Iterable[str], taken: set[int]):
    """Yields pairs of attributes of `second` and `first` that may be the same, and whether by question or by name.
    `taken` are positions of `first`, to which the caller adds those that it takes."""
    done = set(settled)
    for key in (_question, _name):
        theirs = _only_ones(first, key)
        for name, one in _only_ones(second, key).items():
            other = theirs.get(name)
            if other is not None and one.name not in done and first.index(other.name) not in taken:
                yield one, other, key
                if first.index(other.name) in taken:
                    done.add(one.name)


def _only_ones(schema: AttributeSchema, key) -> dict[str, Attribute]:
    """Attributes by `key`, without those that share it."""
    found: dict[str, list[Attribute]] = {}
    for one in schema:
        found.setdefault(key(one), []).append(one)
    return {name: ones[0] for name, ones in found.items() if len(ones) == 1}


def _question(one: Attribute) -> str:
    return one.question.casefold()


def _name(one: Attribute) -> str:
    return one.name.casefold()


def _label(label: str) -> str:
    return _SPELLINGS.get(label.casefold(), label.casefold())
