"""Queries for people: attributes with wanted and unwanted labels, everything else open. Needs no torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from vlm_par_hf.errors import ParTypeError, ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, Attribute, AttributeSchema
from vlm_par_hf.utils import shorten

from .wording import QueryWords, suggest


__all__ = ["Condition", "Query"]


class Condition(NamedTuple):
    """One condition of a query.

    Attributes:
        attribute: its name.
        labels: one or more of its labels.
        wanted: True: the person must have one of them; False: the person must have none of them.
    """

    attribute: str
    labels: tuple[str, ...]
    wanted: bool = True

    def __str__(self) -> str:
        return f"{self.attribute}{'=' if self.wanted else '!='}{'|'.join(self.labels)}"


@dataclass(frozen=True)
class Query:
    """Which people are searched for. Make one with `from_dict`, `parse` or `from_labels`, which check it.

    Args:
        wanted: attribute -> the labels that are accepted; of several, any of them.
        unwanted: attribute -> the labels that are not accepted. A binary attribute is never here: not "yes" is "no".

    Attributes that are in neither are open.
    """

    wanted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unwanted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def from_dict(
        cls,
        wanted: Mapping[str, Any],
        schema: AttributeSchema,
        *,
        unwanted: Mapping[str, Any] | None = None,
        allow_sensitive: bool = False,
    ) -> "Query":
        """A query from attributes and labels.

        `Query.from_dict({"UpperColor": "red", "Backpack": "yes", "ShoeColor": ["black", "white"]}, schema)`

        What an attribute requires is required too: who searches for a red hat searches for a hat.

        Args:
            wanted: attribute -> label, or a list of labels of which any is accepted. `True` and `False` stand for
                "yes" and "no".
            schema: the label space.
            unwanted: attribute -> label or labels that are not accepted.
            allow_sensitive: admit attributes that are marked sensitive (perceived gender and age).

        Raises:
            TypeError: no dict, or a label that is no text.
            KeyError: there is no such attribute; the message suggests similar names.
            ValueError: an attribute has no such label, a condition contradicts another one or holds for everybody, an
                attribute is sensitive and `allow_sensitive` is not set, or nothing is asked for.
        """
        conditions = []
        for argument, given, is_wanted in (("wanted", wanted, True), ("unwanted", unwanted or {}, False)):
            if not isinstance(given, Mapping):
                raise ParTypeError(f"{argument} must be a dict of attributes and labels, got {shorten(given)}")
            for name, labels in given.items():
                if not isinstance(name, str):
                    raise ParTypeError(f"{argument} names {shorten(name)}, expected the name of an attribute")
                conditions.append((schema[name], _read_labels(schema[name], labels), is_wanted))
        return cls._settle(conditions, schema, allow_sensitive)

    @classmethod
    def parse(cls, text: str, schema: AttributeSchema, *, allow_sensitive: bool = False) -> "Query":
        """A query in words: "red top, backpack, not hat".

        The parts, divided by commas or "and", are read by the names, prompts and questions of the label space
        (`wording`); `UpperColor=red`, `ShoeColor=black|white` and `LowerColor!=blue` are exact, so that
        `Query.parse(query.describe(), schema)` is the same query.

        Raises:
            TypeError: no text.
            ValueError: as `from_dict`; also for a part that is not understood.
        """
        if not isinstance(text, str):
            raise ParTypeError(f"a query in words must be text, got {shorten(text)}")
        conditions = [
            (schema[part.attribute], _read_labels(schema[part.attribute], part.labels), not part.negated)
            for part in QueryWords(schema).read(text)
        ]
        return cls._settle(conditions, schema, allow_sensitive)

    @classmethod
    def from_labels(cls, labels: Iterable[int], schema: AttributeSchema) -> "Query":
        """The query for exactly these labels, sensitive ones included: a category of attribute-based retrieval.

        Args:
            labels: int `(A,)`, class indices; -100 = open.
            schema: the label space.

        Raises:
            ValueError: another number of labels, a label that its attribute does not have, or all are open.
        """
        labels = np.asarray(labels)
        if labels.shape != (len(schema),):
            raise ParValueError(f"labels must have shape ({len(schema)},), got {labels.shape}")
        wanted = {}
        for attribute, label in zip(schema, labels.tolist()):
            if label == UNKNOWN_LABEL:
                continue
            if not 0 <= label < attribute.num_labels:
                raise ParValueError(f"labels holds {label} for {attribute.name!r}, expected 0 to less than "
                                    f"{attribute.num_labels}, or {UNKNOWN_LABEL}")  # fmt: skip
            wanted[attribute.name] = (attribute.labels[label],)
        if not wanted:
            raise ParValueError(f"labels are all {UNKNOWN_LABEL} (open): expected at least one class index")
        return cls(wanted)

    @classmethod
    def _settle(cls, conditions, schema: AttributeSchema, allow_sensitive: bool) -> "Query":
        """The query of conditions `(attribute, labels, wanted)`, checked."""
        if not conditions:
            raise ParValueError("the query asks for nothing: name at least one attribute, such as 'backpack'")
        accepted: dict[str, set[str]] = {}
        refused: dict[str, set[str]] = {}
        for attribute, labels, is_wanted in conditions:
            if attribute.sensitive and not allow_sensitive:
                raise ParValueError(
                    f"the query asks for {attribute.name!r}, which is marked sensitive: searching people by perceived "
                    "gender or age is a decision to take on purpose (allow_sensitive=True, --allow-sensitive)"
                )
            _narrow(accepted, refused, attribute, labels, is_wanted)
        pending = list(accepted)
        while pending:  # what is required may itself require something
            attribute = schema[pending.pop()]
            if attribute.requires is not None:
                name, *labels = attribute.requires
                if schema[name].sensitive and not allow_sensitive:
                    continue
                pending += [name] if name not in accepted else []
                _narrow(accepted, refused, schema[name], tuple(labels), True, because=attribute.name)
        for group, members in schema.groups.items():
            positive = [schema[m].name for m in members if accepted.get(schema[m].name) == {schema[m].labels[1]}]
            if len(positive) > 1:
                raise ParValueError(
                    f"the query contradicts itself: {' and '.join(map(repr, positive))} exclude each other (group "
                    f"{group!r}); search for each"
                )
        wanted, unwanted = {}, {}
        for attribute in schema:
            labels, without = accepted.get(attribute.name), refused.get(attribute.name)
            if labels is not None:
                wanted[attribute.name] = tuple(one for one in attribute.labels if one in labels)
            elif without is not None:
                unwanted[attribute.name] = tuple(one for one in attribute.labels if one in without)
        return cls(wanted, unwanted)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions, those on wanted labels first."""
        return tuple(
            Condition(name, tuple(labels), is_wanted)
            for given, is_wanted in ((self.wanted, True), (self.unwanted, False))
            for name, labels in given.items()
        )

    def describe(self) -> str:
        """The query in one line, as `parse` reads it: `UpperColor=red, Hat=no, ShoeColor=black|white`."""
        return ", ".join(map(str, self.conditions))

    def to_dict(self) -> dict[str, dict[str, list[str]]]:
        """Plain JSON: `{"wanted": {attribute: [label, ...]}, "unwanted": {...}}`."""
        return {
            "wanted": {name: list(labels) for name, labels in self.wanted.items()},
            "unwanted": {name: list(labels) for name, labels in self.unwanted.items()},
        }


def _read_labels(attribute: Attribute, given: Any) -> tuple[str, ...]:
    """The labels of an attribute that are named, in any upper and lower case."""
    values = [given] if isinstance(given, (str, bool)) else given
    if isinstance(values, Mapping) or not isinstance(values, Iterable):
        raise ParTypeError(f"the query has {shorten(given)} for {attribute.name!r}, expected one label or several")
    own = {label.casefold(): label for label in attribute.labels}
    found = []
    for value in values:
        if isinstance(value, bool) and set(own) == {"no", "yes"}:
            value = "yes" if value else "no"
        if not isinstance(value, str):
            raise ParTypeError(
                f"the query has {shorten(value)} for {attribute.name!r}, expected one of {list(attribute.labels)}"
            )
        if value.strip().casefold() not in own:
            raise ParValueError(
                f"the query has {shorten(value)} for {attribute.name!r}{suggest(value.strip(), attribute.labels)}"
            )
        found.append(own[value.strip().casefold()])
    if not found:
        raise ParValueError(f"the query has no label for {attribute.name!r}: leave it out, then it is open")
    return tuple(found)


def _narrow(
    accepted: dict[str, set[str]],
    refused: dict[str, set[str]],
    attribute: Attribute,
    labels: tuple[str, ...],
    is_wanted: bool,
    because: str | None = None,
) -> None:
    """Adds a condition to those on the same attribute."""
    name, every = attribute.name, set(attribute.labels)
    if set(labels) == every:
        what = "holds for everybody: leave it out" if is_wanted else "holds for nobody"
        raise ParValueError(f"the query names all labels of {name!r}, which {what}")
    before = accepted.get(name, every) - refused.get(name, set())
    left = before & set(labels) if is_wanted else before - set(labels)
    if not left:
        reason = f"{because!r} is asked of people with {name}={'|'.join(labels)} only" if because else (
            f"no {name!r} fits all that is said about it"
        )  # fmt: skip
        raise ParValueError(f"the query contradicts itself: {reason}")
    if is_wanted or attribute.is_binary or name in accepted:
        accepted[name] = left
        refused.pop(name, None)
    else:
        refused[name] = refused.get(name, set()) | set(labels)
