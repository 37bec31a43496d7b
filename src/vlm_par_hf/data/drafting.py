"""A first label space from a table: what each column is for, and attributes from the columns that are labels."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from vlm_par_hf.errors import ParError, ParFileNotFoundError, ParValueError
from vlm_par_hf.images.opening import IMAGE_SUFFIXES
from vlm_par_hf.labels.schema import Attribute, AttributeSchema
from vlm_par_hf.labels.tables import get_schema
from vlm_par_hf.labels.texts import SUBJECT, attribute_fields
from vlm_par_hf.utils import shorten

from .readers.label_cells import UNKNOWN_TEXTS, plain_cell
from .readers.own_tables import SPLIT_NAMES, Roles, Table, find_roles, find_tables, read_rows


__all__ = ["Draft", "draft_schema"]

_ROLE_TEXTS = {
    "image": "path of the image", "split": "split", "person_id": "person", "camera_id": "camera", "box": "box",
}  # fmt: skip
_MOST_VALUES = 1000  # different cells of a column that are counted: more is free text
_LONGEST_LABEL = 60  # characters
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?", re.ASCII | re.IGNORECASE)
# Cells of a binary column -> its labels, the negative one first.
_BINARY = (
    ({"0", "1", "-1", "no", "yes", "false", "true"}, ("no", "yes")),
    ({"n", "y"}, ("n", "y")),
    ({"f", "t"}, ("f", "t")),
)
_DENIALS = ("no", "not", "none", "without", "absent", "negative", "off")
_SENSITIVE = {
    "gender", "sex", "male", "female", "man", "woman", "men", "women", "boy", "girl", "age", "adult", "child",
    "teenager", "elderly", "senior",
}  # fmt: skip
_TABLES_OF_WORDS = ("pa100k", "peta65", "market1501_30", "rapv2", "upar40", "rendered")
_SAME_WORDS = {"male": "personalmale"}
_FILLER = {"is", "has", "have", "attr", "attribute"}


@dataclass
class Draft:
    """What was found in the tables of a folder.

    Attributes:
        root: the folder.
        tables: its tables.
        rows: their rows.
        schema: the attributes; None if no column is one.
        columns: (column, what it is for) of those that are read.
        left_out: (column, why) of those that are not.
        remarks: what to look at before training.
    """

    root: Path
    tables: list[Table]
    rows: int = 0
    schema: AttributeSchema | None = None
    columns: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


class _Column:
    """The cells of one column, counted."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cells: Counter[str] = Counter()
        self.known = 0
        self.too_many = self.has_structures = False

    def add(self, value: Any) -> None:
        if value is None or value != value:
            return
        if isinstance(value, (list, dict)):
            self.has_structures = True
            return
        text = str(value).strip()
        if plain_cell(text) in UNKNOWN_TEXTS and plain_cell(text) not in ("none", "-1"):
            return
        self.known += 1
        if text in self.cells or len(self.cells) < _MOST_VALUES:
            self.cells[text] += 1
        else:
            self.too_many = True

    def values(self) -> dict[str, str]:
        """Cell without case -> its most frequent spelling."""
        found: dict[str, str] = {}
        for text, _ in self.cells.most_common():
            found.setdefault(plain_cell(text), text)
        return found


def draft_schema(
    table: str | Path,
    *,
    names: Sequence[str] | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    max_labels: int = 30,
) -> Draft:
    """Drafts the label space of a table, or of the tables in a folder.

    A column of 0 and 1, yes and no, true and false is a binary attribute; one of few different texts has these as its
    labels. Columns of paths, splits, persons, cameras and boxes are known by their names. Numbers, free text and
    columns that always say the same are left out, with the reason. Questions and prompts are made from the names of
    the columns, or taken from a known data set that has an attribute of that name.

    Args:
        table: a .csv, .tsv, .txt or .jsonl file as `read_folder` reads it, or their folder.
        names: of the attributes of a list without a header, in its order.
        labels: column -> names of its classes 0, 1, 2, ..., for columns of numbers.
        max_labels: a column of more different texts is free text.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: a row that cannot be read, no column with paths of images, or `labels` names no column.
    """
    root, tables = _find(Path(table).absolute())
    draft = Draft(root, tables)
    labels = dict(labels or {})
    columns: dict[str, _Column] = {}
    named_things: Counter[str] = Counter()  # in a column `labels` with lists of names
    roles = Roles()
    for one in tables:
        for _, row in read_rows(one.path, names):
            draft.rows += 1
            if not columns.keys() >= row.keys():
                columns |= {name: _Column(name) for name in row if name not in columns}
                roles = find_roles(list(columns), [*labels, *(names or ())])
            value = row.get(roles.columns.get("labels", ""))
            if isinstance(value, dict):
                row = {**row, **value}
                columns |= {name: _Column(name) for name in value if name not in columns}
            elif isinstance(value, (list, str)):
                named_things.update(_names_in(value))
            for name, cell in row.items():
                columns[name].add(cell)
    if not draft.rows:
        raise ParValueError(f"{', '.join(str(one.path) for one in tables)}: no rows")
    _check_image_column(draft, columns, roles)
    for name in labels:
        if name not in columns:
            raise ParValueError(f"labels names the column {shorten(name)}; the table has {shorten(list(columns))}")
    used = {column: _ROLE_TEXTS[role] for role, column in roles.columns.items() if role != "labels"}
    used |= dict.fromkeys(roles.box_columns, f"box ({roles.box_format})")
    attributes: list[Attribute] = []
    for column in columns.values():
        if column.name in used:
            draft.columns.append((column.name, used[column.name]))
        elif column.name == roles.columns.get("labels") and (named_things or column.has_structures):
            things = [name for name in named_things if name]
            new = [_binary(name) for name in things[:_MOST_VALUES]]
            attributes += new
            draft.columns.append((column.name, f"labels: {len(new)} names" if new else "labels"))
        else:
            found = _read_column(column, labels.get(column.name), max_labels)
            if isinstance(found, str):
                draft.left_out.append((column.name, found))
            else:
                attributes.append(found)
                draft.columns.append((column.name, " / ".join(found.labels)))
                _remark(draft, column, found)
    if attributes:
        draft.schema = AttributeSchema(attributes)
        sensitive = [one.name for one in attributes if one.sensitive]
        if sensitive:
            draft.remarks.append(f"marked as sensitive (perceived gender and age): {', '.join(sensitive)}")
    return draft


def _find(path: Path) -> tuple[Path, list[Table]]:
    if path.is_dir():
        return path, find_tables(path)
    if not path.is_file():
        raise ParFileNotFoundError(f"{path} does not exist; expected a table or the folder that holds it")
    root = path.parent.parent if path.parent.name in SPLIT_NAMES and path.stem == "metadata" else path.parent
    try:
        tables = find_tables(root)
    except ParError:
        tables = []
    if any(table.path == path for table in tables):
        return root, tables
    return root, [Table(path, None)]


def _names_in(value: list | str) -> Iterator[str]:
    """Names of what a person has, where a cell holds several; one text alone may as well be a label."""
    if isinstance(value, str):
        parts = re.split(r"\s*[|;,]\s*", value.strip())
        parts = parts if len(parts) > 1 else []
    else:
        parts = value
    for part in parts:
        if isinstance(part, str) and not _NUMBER.fullmatch(part):
            yield part.strip()


def _check_image_column(draft: Draft, columns: Mapping[str, _Column], roles: Roles) -> None:
    if "image" in roles.columns:
        return
    likely = [one.name for one in columns.values() if one.cells and all(map(_is_image, list(one.cells)[:20]))]
    hint = f": the column {shorten(likely[0])} holds them, rename it to 'image'" if likely else ""
    raise ParValueError(
        f"{draft.tables[0].path}: no column with paths of images (image, file_name, path){hint}; found "
        f"{shorten(list(columns))}"
    )


def _is_image(text: str) -> bool:
    return text.lower().endswith(IMAGE_SUFFIXES)


def _read_column(column: _Column, labels: Sequence[str] | None, max_labels: int) -> Attribute | str:
    """The attribute of a column, or why it is none."""
    values = column.values()
    if column.has_structures:
        return "lists or objects"
    if not values:
        return "no row says anything"
    if labels is not None:
        return _attribute(column.name, labels)
    for cells, pair in _BINARY:
        if values.keys() <= cells:
            return _binary(column.name, pair)
    texts = list(values.values())
    if all(map(_NUMBER.fullmatch, texts)):
        numbers = sorted(map(float, texts))
        span = f"from {numbers[0]:g} to {numbers[-1]:g}"
        if column.too_many or not all(map(float.is_integer, numbers)):
            return f"numbers {span}"
        return f"whole numbers {span}: if they are classes 0, 1, ..., name them (--labels {column.name!r}='a | b')"
    if column.too_many or len(values) > max_labels:
        more = "more than " if column.too_many else ""
        return f"free text: {more}{len(values)} different values (--max-labels N takes up to N)"
    if len(values) > 2 and 2 * len(values) > column.known:
        return f"free text: {len(values)} different values in {column.known} rows"
    longest = max(texts, key=len)
    if len(longest) > _LONGEST_LABEL:
        return f"free text, such as {shorten(longest, 40)}"
    if len(values) < 2:
        return f"every row says {shorten(texts[0])}"
    return _attribute(column.name, sorted(texts, key=lambda text: (not _denies(text) and len(texts) == 2, text)))


def _denies(text: str) -> bool:
    return re.split(r"[\s_-]", text.casefold(), maxsplit=1)[0] in _DENIALS


def _words(name: str) -> str:
    """`HatColor`, `hat_color` and `hat-color` as "hat color"."""
    text = re.sub(r"([a-z0-9])([A-Z])|([A-Z])([A-Z][a-z])", r"\1\3 \2\4", name)
    words = re.sub(r"[\s_./-]+", " ", text).strip().split(" ")
    kept = [word for word in words if word.casefold() not in _FILLER] or words
    return " ".join(word if word.isupper() and len(word) > 1 else word.lower() for word in kept)


@cache
def _known_attributes() -> dict[str, Attribute]:
    """Attributes of the known data sets by their names, without case and punctuation."""
    found: dict[str, Attribute] = {}
    for table in _TABLES_OF_WORDS:
        for one in get_schema(table):
            if one.labels == ("no", "yes"):
                found.setdefault(_key(one.name), one)
    return found


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _is_sensitive(name: str, labels: Iterable[str] = ()) -> bool:
    words = {word for text in (name, *labels) for word in re.findall("[a-z]+", _words(text).lower())}
    return bool(words & _SENSITIVE)


def _binary(name: str, labels: tuple[str, str] = ("no", "yes")) -> Attribute:
    known = _known_attributes().get(_SAME_WORDS.get(_key(name), _key(name)))
    if known is not None:
        return replace(known, name=name, labels=labels, group=None, mirror=None, requires=None)
    fields = attribute_fields(_words(name).replace("|", " "), SUBJECT, name)
    return Attribute(**fields, labels=labels, sensitive=_is_sensitive(name))


def _attribute(name: str, labels: Sequence[str]) -> Attribute:
    """An attribute with several labels, in words made from its name."""
    words = _words(name)
    thing, _, last = words.rpartition(" ")
    if thing and last in ("color", "colour"):
        question = f"what {last} is the {thing}?"
        prompts = [f"{SUBJECT} with {_words(label)} {thing}" for label in labels]
    else:
        question = f"what is the {words}?"
        prompts = [f"{SUBJECT}, {words}: {_words(label)}" for label in labels]
    if len(set(prompts)) < len(prompts):  # labels that differ by case or punctuation only
        prompts = [f"{SUBJECT}, {words}: {label}" for label in labels]
    return Attribute(
        name=name,
        question=question,
        labels=tuple(labels),
        prompts=tuple(prompts),
        sensitive=_is_sensitive(name, labels),
    )


def _remark(draft: Draft, column: _Column, attribute: Attribute) -> None:
    values = column.values()
    if attribute.labels == ("no", "yes"):
        if len(values) == 1:
            draft.remarks.append(f"{column.name}: every row says {shorten(next(iter(values.values())))}")
        return
    if attribute.is_binary and not _denies(attribute.labels[0]):
        draft.remarks.append(
            f"{column.name}: of two labels the second, {attribute.labels[1]!r}, counts as the positive one"
        )
    if "none" in values:
        draft.remarks.append(f"{column.name}: 'none' is taken for a label; if it means unknown, remove it")
