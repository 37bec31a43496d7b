"""The sentences that describe a query in words (CLEAR, equation 7), and which of their words a query fills.

A sentence has slots, each filled by the words of one or more attributes. In the generic one each attribute is a slot,
filled by the prompt of its label. The paper's has one slot for age, one for gender, one for accessories, and so on;
which of them there are, and what fills them, differs between data sets, and the paper shows its words in figures only:
those below are ours. NumPy only.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import AttributeSchema

from .wording import shown_phrase


__all__ = ["TEMPLATES", "Template", "Word", "find_template"]

TEMPLATES = ("prompts", "paper")


@dataclass(frozen=True)
class Word:
    """What may stand in a slot.

    Attributes:
        slot: position of the slot.
        text: the word or phrase.
        column: of `(Q, L)`, the label that it stands for; None: it stands where the slot is asked about and no other
            word of it fits ("no bag").
    """

    slot: int
    text: str
    column: int | None


@dataclass(frozen=True, eq=False)
class Template:
    """A sentence with slots for the labels of a schema.

    Attributes:
        name: one of `TEMPLATES`.
        start: of the sentence.
        frames: per slot what stands around its words, with a field `{}`; left out where the slot is open.
        slots: the names of the slots.
        words: all words of all slots.
        columns: per slot the columns of `(Q, L)` that say whether the slot is asked about.
    """

    name: str
    start: str
    frames: tuple[str, ...]
    slots: tuple[str, ...]
    words: tuple[Word, ...]
    columns: tuple[tuple[int, ...], ...]

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        slots = np.array([word.slot for word in self.words])
        columns = np.array([-1 if word.column is None else word.column for word in self.words])
        return slots, columns

    def weights(self, labels: np.ndarray) -> np.ndarray:
        """How much of each slot each word fills.

        Args:
            labels: `(Q, L)`, how much of a query each label is (`label_weights`): 0 or 1, or shares where several
                labels of an attribute are accepted.

        Returns:
            float32 `(Q, words)`; the words of a slot add up to 1, or to 0 where the query leaves the slot open.
        """
        slots, columns = self._places
        labels = np.asarray(labels, np.float32)
        found = np.where(columns >= 0, labels[:, np.maximum(columns, 0)], 0).astype(np.float32)
        in_slot = np.eye(len(self.slots), dtype=np.float32)[slots]  # (words, slots)
        asked = np.stack([labels[:, list(own)].sum(1) > 0 for own in self.columns], 1)
        empty = asked & (found @ in_slot == 0)
        found = np.where(columns >= 0, found, empty[:, slots].astype(np.float32))
        total = (found @ in_slot)[:, slots]
        return np.divide(found, total, out=np.zeros_like(found), where=total > 0)

    def _said(self, word: Word) -> str:
        """A word as it stands in the sentence, which does not begin anew with each prompt."""
        return shown_phrase(word.text) if self.name == "prompts" else word.text

    def sentences(self, labels: np.ndarray) -> list[str]:
        """The sentences of queries `(Q, L)`; words of open slots are left out."""
        slots, _ = self._places
        found = []
        for row in self.weights(labels):
            parts = [self.start]
            for slot, frame in enumerate(self.frames):
                said = [self._said(self.words[w]) for w in np.flatnonzero((slots == slot) & (row > 0))]
                parts += [frame.format(" and ".join(said))] if said else []
            found.append(" ".join(parts).removesuffix(","))
        return found


def find_template(schema: AttributeSchema, name: str | None = None) -> Template:
    """The sentence for a label space.

    Args:
        schema: the label space.
        name: `"prompts"`: generic, from the schema's prompts; `"paper"`: the paper's, for the attributes of
            Market-1501, PA-100K, PETA and UPAR; None: the paper's where there is one.

    Raises:
        ValueError: another name, or there is no sentence of the paper for these attributes.
    """
    if name not in (None, *TEMPLATES):
        raise ParValueError(f"template={name!r}, expected one of {', '.join(TEMPLATES)}")
    table = next((one for one in _PAPER if all(a.name in one for a in schema)), None)
    if name == "paper" and table is None:
        raise ParValueError(
            "template='paper': the paper has sentences for the attributes of Market-1501, PA-100K, PETA and UPAR, and "
            f"this label space has others ({', '.join(schema.names[:4])}, ...); expected 'prompts'"
        )
    return _generic(schema) if table is None or name == "prompts" else _paper(schema, table)


def _first_columns(schema: AttributeSchema) -> list[int]:
    return [0, *np.cumsum(schema.num_labels).tolist()]


def _generic(schema: AttributeSchema) -> Template:
    first = _first_columns(schema)
    words, columns = [], []
    for slot, attribute in enumerate(schema):
        columns.append(tuple(range(first[slot], first[slot + 1])))
        words += [Word(slot, prompt, columns[-1][k]) for k, prompt in enumerate(attribute.prompts)]
    frames = ("{},",) * len(schema)
    return Template("prompts", f"{schema.usual_subject()},", frames, schema.names, tuple(words), tuple(columns))


def _paper(schema: AttributeSchema, table: dict[str, str]) -> Template:
    """Slots in the order of equation 7, those without an attribute left out."""
    first = _first_columns(schema)
    words: list[Word] = []
    names, parts, columns = [], [], []
    for slot, (name, frame, nothing) in _SLOTS.items():
        own = [(place, one) for place, one in enumerate(schema) if table[one.name].partition(":")[0] == slot]
        if not own:
            continue
        index = len(names)
        for place, attribute in own:
            texts = table[attribute.name].partition(":")[2].split("|")
            texts = ["", *texts] if len(texts) == attribute.num_labels - 1 else texts
            words += [Word(index, text, first[place] + k) for k, text in enumerate(texts) if text]
        words.append(Word(index, nothing, None))
        names.append(name)
        parts.append(frame)
        columns.append(tuple(c for place, _ in own for c in range(first[place], first[place + 1])))
    return Template("paper", "this is a photo of", tuple(parts), tuple(names), tuple(words), tuple(columns))


# Slot -> its name, the words around it, what stands in it where none of its attributes is positive.
_SLOTS = {
    "age": ("AGE", "a {}", "unknown"),
    "gender": ("GENDER", "{}", "person"),
    "view": ("CAMERA ANGLE", "taken from {},", "an unknown side"),
    "hair": ("HAIR LENGTH", "with {} hair,", "some"),
    "lower_color": ("LOWER COLOR", "is dressed in a {}", "other"),
    "lower": ("LOWER BODY CLOTHING", "{}", "lower clothing"),
    "lower_length": ("LOWER LENGTH", "that is {}", "of some length"),
    "lower_motif": ("LOWER BODY MOTIF", "with {} motif,", "no"),
    "upper_color": ("UPPER COLOR", "and a {}", "other"),
    "upper": ("UPPER BODY CLOTHING", "{}", "upper clothing"),
    "sleeves": ("SLEEVES LENGTH", "with {} sleeves,", "long"),
    "upper_motif": ("UPPER BODY MOTIF", "with {} motif,", "no"),
    "accessory": ("ACCESSORY", "is wearing {},", "no accessory"),
    "shoes": ("FOOTWEAR", "{},", "shoes"),
    "bag": ("BAG", "carrying {}", "no bag"),
    "backpack": ("BACKPACK", "and {}", "no backpack"),
}
_COLORS = (
    "black", "blue", "brown", "green", "grey", "gray", "orange", "pink", "purple", "red", "white", "yellow", "other",
)  # fmt: skip
_MARKET = {
    "age": "age:young|teenage|adult|old", "young": "age:young", "teenager": "age:teenage", "adult": "age:adult",
    "old": "age:old", "gender": "gender:man|woman", "hair": "hair:short|long", "up": "sleeves:long|short",
    "down": "lower_length:long|short", "clothes": "lower:dress|pants", "hat": "accessory:hat", "bag": "bag:bag",
    "handbag": "bag:handbag", "backpack": "backpack:backpack",
    **{f"up{color}": f"upper_color:{color}" for color in _COLORS},
    **{f"down{color}": f"lower_color:{color}" for color in _COLORS},
}  # fmt: skip
_PA100K = {
    "AgeOver60": "age:old", "Age18-60": "age:adult", "AgeLess18": "age:young", "Female": "gender:man|woman",
    "Front": "view:front", "Side": "view:side", "Back": "view:back", "Hat": "accessory:hat",
    "Glasses": "accessory:glasses", "HandBag": "bag:handbag", "ShoulderBag": "bag:shoulder bag",
    "Backpack": "backpack:backpack", "HoldObjectsInFront": "bag:object in front", "ShortSleeve": "sleeves:short",
    "LongSleeve": "sleeves:long", "UpperStride": "upper_motif:striped", "UpperLogo": "upper_motif:logo",
    "UpperPlaid": "upper_motif:spliced", "UpperSplice": "upper_motif:plaid", "LowerStripe": "lower_motif:striped",
    "LowerPattern": "lower_motif:patterned", "LongCoat": "upper:long coat", "Trousers": "lower:trousers",
    "Shorts": "lower:shorts", "Skirt&Dress": "lower:skirt or dress", "boots": "shoes:boots",
}  # fmt: skip
_PETA = {
    "personalLess30": "age:young", "personalLess45": "age:adult", "personalLess60": "age:middle-aged",
    "personalLarger60": "age:old", "personalMale": "gender:woman|man", "carryingBackpack": "backpack:backpack",
    "carryingOther": "bag:other things", "lowerBodyCasual": "lower:casual", "upperBodyCasual": "upper:casual",
    "lowerBodyFormal": "lower:formal", "upperBodyFormal": "upper:formal", "accessoryHat": "accessory:hat",
    "upperBodyJacket": "upper:jacket", "lowerBodyJeans": "lower:jeans", "footwearLeatherShoes": "shoes:leather shoes",
    "upperBodyLogo": "upper_motif:logo", "hairLong": "hair:long", "carryingMessengerBag": "bag:messenger bag",
    "accessoryMuffler": "accessory:muffler", "accessoryNothing": "accessory:nothing",
    "carryingNothing": "bag:nothing", "upperBodyPlaid": "upper_motif:plaid", "carryingPlasticBags": "bag:plastic bags",
    "footwearSandals": "shoes:sandals", "footwearShoes": "shoes:shoes", "lowerBodyShorts": "lower:shorts",
    "upperBodyShortSleeve": "sleeves:short", "lowerBodyShortSkirt": "lower:short skirt",
    "footwearSneaker": "shoes:sneakers", "upperBodyThinStripes": "upper_motif:striped",
    "accessorySunglasses": "accessory:sunglasses", "lowerBodyTrousers": "lower:trousers",
    "upperBodyTshirt": "upper:t-shirt", "upperBodyOther": "upper:other upper clothing",
    "upperBodyVNeck": "upper:v-neck",
}  # fmt: skip
_UPAR = {
    "Age-Young": "age:young", "Age-Adult": "age:adult", "Age-Old": "age:old", "Gender-Female": "gender:man|woman",
    "Hair-Length-Short": "hair:short", "Hair-Length-Long": "hair:long", "Hair-Length-Bald": "hair:no",
    "UpperBody-Length-Short": "sleeves:short", "LowerBody-Length-Short": "lower_length:short",
    "LowerBody-Type-Trousers&Shorts": "lower:trousers or shorts", "LowerBody-Type-Skirt&Dress": "lower:skirt or dress",
    "Accessory-Backpack": "backpack:backpack", "Accessory-Bag": "bag:bag",
    "Accessory-Glasses-Normal": "accessory:glasses", "Accessory-Glasses-Sun": "accessory:sunglasses",
    "Accessory-Hat": "accessory:hat",
    **{f"UpperBody-Color-{color.title()}": f"upper_color:{color}" for color in _COLORS},
    **{f"LowerBody-Color-{color.title()}": f"lower_color:{color}" for color in _COLORS},
}  # fmt: skip
_PAPER = (_MARKET, _PA100K, _PETA, _UPAR)
