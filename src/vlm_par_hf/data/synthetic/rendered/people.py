"""Who is rendered and how a camera sees them: persons and shots, plain values drawn from integers.

Marginals and dependences are those of PA-100K's 80,000 training labels, with rare attributes raised roughly to the
square root of their share (boots 0.6 % to about 5, long coats 2.8 to about 6), so that some ten thousand pictures hold
hundreds of each. Build and skin come from random streams of their own: they say nothing about any attribute.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from vlm_par_hf.errors import ParValueError

from .colors import RGB, color_distance


__all__ = ["Garment", "RenderedPerson", "Shot", "Thing", "logo_place", "sample_tracklet", "view_of"]


@dataclass(frozen=True)
class Garment:
    """What covers the upper or the lower body.

    Attributes:
        kind: upper: `"top"`, `"shirt"`, `"jacket"`, `"coat"`, `"dress"`, `"vest"` (sleeveless, over a shirt whose
            sleeves have the second color); lower: `"trousers"`, `"shorts"`, `"skirt"`.
        colors: main, second (of the pattern), and inner (what an open garment shows).
        pattern: `"plain"`, `"stripes"`, `"plaid"`, `"logo"`, `"splice"`, `"floral"`, `"camouflage"`, `"dots"`; lower
            garments also `"side_stripe"` and `"denim"`.
        scale: of the pattern, 0.5 to 2.
        phase: where the pattern begins, 0 to 1; of a logo, where it sits (`logo_place`).
        sleeve: share of the arm that is covered, from shoulder (0) to wrist (1).
        hem: of an upper garment metres below the hip joint of somebody 1.75 m tall (negative: above); of a lower one
            the share of the leg that is covered, from hip (0) to ankle (1).
        fit: 0 tight, 1 wide.
        open: in front.
        hood, collar: whether there is one.
        shine: 0 matt cloth, 1 glossy.
    """

    kind: str
    colors: tuple[RGB, RGB, RGB]
    pattern: str = "plain"
    scale: float = 1.0
    phase: float = 0.0
    sleeve: float = 1.0
    hem: float = 0.0
    fit: float = 0.3
    open: bool = False
    hood: bool = False
    collar: bool = False
    shine: float = 0.0


@dataclass(frozen=True)
class Thing:
    """What is worn on the head or feet, or carried.

    Attributes:
        kind: which of its sort, such as `"cap"` of the hats.
        color, color2: main color and that of details.
        side: 1 the person's left hand or shoulder, -1 the right one.
        size: 0.7 to 1.3.
    """

    kind: str
    color: RGB
    color2: RGB
    side: int = 1
    size: float = 1.0


@dataclass(frozen=True)
class RenderedPerson:
    """Who a rendered person is. Constant over all pictures of the person, as clothes are in a re-identification set.

    Attributes:
        person_id: number within the population.
        seed: of the population.
        female: perceived gender.
        age: `"child"`, `"adult"` or `"elderly"`.
        body: in [0, 1), picks the build among those of this age and gender.
        skin, hair: colors.
        hair_style: `"bald"`, `"short"`, `"bob"`, `"long"`, `"ponytail"`, `"bun"` or `"afro"`.
        beard: whether there is one.
        upper, lower: what is worn; `lower` is None under a dress.
        legs: color of stockings or leggings under a skirt, a dress or shorts; None for bare legs.
        shoes: of kind `"shoes"`, `"boots"` or `"sandals"`.
        things: name -> thing, for those of `hat` (cap, beanie, brim, helmet), `glasses` (clear, dark), `mask`,
            `scarf`, `headphones`, `backpack`, `shoulder_bag` (cross, side), `handbag` (handbag, shopping), `suitcase`,
            `umbrella`, `phone` (ear, look), `in_front` (box, folder, bag, papers) and `cane` that the person has.
        suit: the upper garment is a suit jacket, the trousers match.
    """

    person_id: int
    seed: int
    female: bool
    age: str
    body: float
    skin: RGB
    hair: RGB
    hair_style: str
    beard: bool
    upper: Garment
    lower: Garment | None
    legs: RGB | None
    shoes: Thing
    things: dict[str, Thing]
    suit: bool = False

    @classmethod
    def sample(cls, seed: int, person_id: int) -> "RenderedPerson":
        """Draw person number `person_id` of the population `seed`."""
        draw = _Draw((seed, person_id, 0))
        age = draw.choice(_AGES)
        female = draw.yes(_FEMALE[age])
        season = draw.choice(_CHILD_SEASONS if age == "child" else _SEASONS)
        upper, lower, suit = _sample_clothes(draw, female, age, season)
        style = draw.choice(_HAIR_STYLES[female, age])
        hair = draw.shade(_HAIRS[draw.choice(_OLD_HAIR if age == "elderly" else _HAIR)], 0.10, 4)
        shoes = _sample_shoes(draw, female, age, season, upper, suit)
        legs = _sample_stockings(draw, season, upper, lower)
        return cls(
            person_id=person_id,
            seed=seed,
            female=female,
            age=age,
            body=float(np.random.default_rng((seed, person_id, 1)).random()),
            skin=_sample_skin(np.random.default_rng((seed, person_id, 2))),
            hair=hair,
            hair_style=style,
            beard=not female and age != "child" and draw.yes(0.13),
            upper=upper,
            lower=lower,
            legs=legs,
            shoes=shoes,
            things=_sample_things(draw, female, age, season, upper),
            suit=suit,
        )


@dataclass(frozen=True)
class Shot:
    """What changes between two pictures of a person.

    Attributes:
        index: number of the picture; with `seed` it decides what differs from frame to frame, such as noise.
        camera: 0, or 1 (a second domain: higher, dimmer, bluish, noisier).
        azimuth: degrees; 0 the person faces the camera, 90 the picture's right, 180 away, 270 the picture's left. At
            least 4 degrees from the borders between the views.
        pitch: degrees that the camera looks down, 0 to 45.
        distance: metres, 4 to 20.
        pose: `"standing"`, `"walking"`, `"running"` or `"cycling"`.
        phase: position in the stride, in [0, 1).
        aspect: width / height of the crop, 0.25 to 0.65.
        height: pixels, 96 to 256.
        zoom: 1 = the person's box fills the height of the crop; below 1 loose, above it cut.
        shift: of the crop's centre, shares of the crop's size.
        light: azimuth and elevation of the sun in degrees, its strength and that of the sky, both 0 to 1.
        others: numbers of people behind, none of whom is in a data set.
        occluder: `"pole"`, `"car"`, `"bush"`, `"person"`, `"box"` or None.
        infrared: a night picture without color.
        seed: of the place and of the camera's settings: equal over a tracklet.
    """

    index: int
    camera: int
    azimuth: float
    pitch: float
    distance: float
    pose: str
    phase: float
    aspect: float
    height: int
    zoom: float
    shift: tuple[float, float]
    light: tuple[float, float, float, float]
    others: tuple[int, ...]
    occluder: str | None
    infrared: bool
    seed: int

    @classmethod
    def sample(cls, person: RenderedPerson, index: int, camera: int = 0) -> "Shot":
        """Draw the shot number `index` of `person`, seen by `camera` (0 or 1)."""
        draw = _Draw((person.seed, person.person_id, 3, index, camera))
        view = draw.choice(_VIEWS)
        turn = float(np.clip(draw.normal(0, 15), -41, 41))
        azimuth = (_AZIMUTHS[view] + turn) % 360
        pitch = float(np.clip(draw.normal(33, 6) if camera else draw.normal(22, 8), 0, 45))
        sunny = draw.yes(0.3 if camera else 0.45)
        light = (
            draw.uniform(0, 360),
            draw.uniform(22, 75),
            draw.uniform(0.4, 1.0) if sunny else draw.uniform(0.0, 0.25),
            draw.uniform(0.3, 0.65) if camera else draw.uniform(0.45, 0.95),
        )
        zoom, shift = _sample_framing(draw)
        return cls(
            index=index,
            camera=camera,
            azimuth=azimuth,
            pitch=pitch,
            distance=draw.uniform(8, 20) if camera else draw.uniform(4.5, 16),
            pose=draw.choice(_possible_poses(person)),
            phase=draw.uniform(0, 1),
            aspect=draw.percentile(_ASPECTS),
            height=round(draw.percentile(_HEIGHTS)),
            zoom=zoom,
            shift=shift,
            light=light,
            others=tuple(_STRANGERS + draw.integer(1_000_000) for _ in range(int(draw.choice(_NUM_OTHERS)))),
            occluder=draw.choice(_OCCLUDERS) or None,
            infrared=draw.yes(0.05 if camera else 0.01),
            seed=draw.integer(2**31),
        )


def sample_tracklet(person: RenderedPerson, num_frames: int, camera: int = 0, track: int = 0) -> list[Shot]:
    """The shots of a tracklet: one view, place and light, the stride going on from frame to frame.

    Args:
        num_frames: at least 1; usual are 8 to 16.
        camera: 0 or 1.
        track: number of the tracklet, at least 0; other numbers give other views.

    Raises:
        ValueError: `num_frames` or `track` is too small.
    """
    if num_frames < 1:
        raise ParValueError(f"num_frames is {num_frames!r}; expected at least 1")
    if track < 0:
        raise ParValueError(f"track is {track!r}; expected at least 0")
    first = Shot.sample(person, 1_000_000 + track, camera)
    draw = _Draw((person.seed, person.person_id, 4, track, camera))
    step = {"standing": 0.0, "walking": 0.11, "running": 0.17, "cycling": 0.13}[first.pose]
    shots = []
    for t in range(num_frames):
        shift = tuple(float(s + draw.normal(0, 0.012)) for s in first.shift)
        shots.append(
            replace(
                first,
                index=10_000 * (track + 200) + t,
                phase=(first.phase + step * t) % 1.0,
                zoom=first.zoom * float(np.exp(draw.normal(0, 0.012))),
                shift=shift,
            )
        )
    return shots


def view_of(shot: Shot) -> str:
    """`"front"`, `"back"`, `"left"` or `"right"` (where the person faces in the picture), by sectors of 90 degrees."""
    return ("front", "right", "back", "left")[int(((shot.azimuth + 45) % 360) // 90)]


def logo_place(garment: Garment) -> str:
    """Where the print of a garment with the pattern `"logo"` sits: `"chest"`, `"badge"` (small, left) or `"back"`."""
    return "chest" if garment.phase < 0.62 else "badge" if garment.phase < 0.78 else "back"


# --- drawing ---------------------------------------------------------------------------------------------------------


class _Draw:
    """Random choices; who a number stands for depends on their order."""

    def __init__(self, seed: tuple[int, ...]):
        self.rng = np.random.default_rng(seed)

    def yes(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def normal(self, mean: float, deviation: float) -> float:
        return float(self.rng.normal(mean, deviation))

    def integer(self, stop: int) -> int:
        return int(self.rng.integers(stop))

    def choice(self, table: dict):
        """A key, by weight."""
        rest = self.rng.random() * sum(table.values())
        for key, weight in table.items():
            rest -= weight
            if rest < 0:
                return key
        return key

    def percentile(self, values: tuple[float, ...]) -> float:
        """From the distribution with these values at 0, 2, 10, 25, 50, 75, 90, 98 and 100 %."""
        return float(np.interp(self.rng.random(), (0, 0.02, 0.10, 0.25, 0.50, 0.75, 0.90, 0.98, 1), values))

    def shade(self, color: RGB, brightness: float = 0.14, spread: float = 6.0) -> RGB:
        """A color near `color`: no two blacks are the same."""
        light, *shift = self.rng.standard_normal(4).tolist()
        factor = math.exp(light * brightness)
        return tuple(min(max(int(c * factor + s * spread), 6), 248) for c, s in zip(color, shift, strict=True))

    def cloth(self, palette: dict[str, float]) -> RGB:
        return self.shade(_SHADES[self.choice(palette)])

    def contrasting(self, color: RGB, palette: dict[str, float], distance: float) -> RGB:
        """A color of the palette at least `distance` from `color`, in Lab; the farthest of eight if none is."""
        tries = []
        for _ in range(8):
            tries.append(self.cloth(palette))
            if color_distance(color, tries[-1]) >= distance:
                return tries[-1]
        return max(tries, key=lambda c: color_distance(color, c))


# --- tables ----------------------------------------------------------------------------------------------------------

_AGES = {"child": 0.09, "adult": 0.835, "elderly": 0.075}
_FEMALE = {"child": 0.41, "adult": 0.46, "elderly": 0.34}
_SEASONS = {"winter": 0.27, "mild": 0.29, "summer": 0.44}
_CHILD_SEASONS = {"winter": 0.13, "mild": 0.17, "summer": 0.70}
_SHORT_SLEEVES = {"winter": 0.02, "mild": 0.44, "summer": 0.96}
# (female, short sleeves) -> lower garment, of adults.
_LOWERS = {
    (True, True): {"trousers": 0.42, "shorts": 0.26, "skirt": 0.16, "dress": 0.16},
    (True, False): {"trousers": 0.82, "shorts": 0.02, "skirt": 0.10, "dress": 0.06},
    (False, True): {"trousers": 0.68, "shorts": 0.32},
    (False, False): {"trousers": 0.99, "shorts": 0.01},
}
_CHILD_LOWERS = {
    (True, True): {"trousers": 0.18, "shorts": 0.62, "skirt": 0.10, "dress": 0.10},
    (True, False): {"trousers": 0.80, "shorts": 0.06, "skirt": 0.08, "dress": 0.06},
    (False, True): {"trousers": 0.22, "shorts": 0.78},
    (False, False): {"trousers": 0.95, "shorts": 0.05},
}
_OLD_LOWERS = {True: {"trousers": 0.93, "skirt": 0.05, "dress": 0.02}, False: {"trousers": 0.97, "shorts": 0.03}}
# (female, short sleeves) -> pattern of the upper garment.
_UPPER_PATTERNS = {
    (True, True): {
        "plain": 0.51, "stripes": 0.09, "logo": 0.13, "floral": 0.09, "dots": 0.03, "splice": 0.10, "plaid": 0.05,
    },
    (False, True): {
        "plain": 0.46, "stripes": 0.12, "logo": 0.21, "floral": 0.02, "camouflage": 0.02, "splice": 0.11,
        "plaid": 0.06,
    },
    (True, False): {
        "plain": 0.61, "stripes": 0.07, "logo": 0.07, "floral": 0.03, "dots": 0.02, "splice": 0.13, "plaid": 0.07,
    },
    (False, False): {
        "plain": 0.54, "stripes": 0.06, "logo": 0.08, "camouflage": 0.02, "splice": 0.18, "plaid": 0.12,
    },
}  # fmt: skip
_DRESS_PATTERNS = {"plain": 0.52, "floral": 0.20, "dots": 0.07, "stripes": 0.09, "plaid": 0.06, "splice": 0.06}
_LONG_COAT = {True: 0.26, False: 0.05}  # of women and men with long sleeves
_LOWER_PATTERNS = {
    "trousers": {"plain": 0.90, "side_stripe": 0.06, "camouflage": 0.012, "plaid": 0.012, "floral": 0.008,
                 "stripes": 0.008},
    "shorts": {"plain": 0.83, "side_stripe": 0.08, "floral": 0.03, "camouflage": 0.02, "plaid": 0.03, "stripes": 0.01},
    "skirt": {"plain": 0.72, "stripes": 0.07, "floral": 0.09, "dots": 0.05, "plaid": 0.07},
}  # fmt: skip
_HAIR_STYLES = {
    (True, "adult"): {"ponytail": 0.33, "long": 0.34, "bob": 0.16, "bun": 0.06, "short": 0.09, "afro": 0.02},
    (True, "child"): {"ponytail": 0.40, "long": 0.18, "bob": 0.24, "bun": 0.08, "short": 0.09, "afro": 0.01},
    (True, "elderly"): {"bob": 0.40, "short": 0.42, "bun": 0.11, "long": 0.04, "ponytail": 0.03},
    (False, "adult"): {"short": 0.89, "bald": 0.06, "long": 0.02, "ponytail": 0.01, "afro": 0.02},
    (False, "child"): {"short": 0.96, "bob": 0.02, "afro": 0.02},
    (False, "elderly"): {"short": 0.72, "bald": 0.28},
}
_HAIRS = {
    "black": (28, 25, 24), "dark brown": (62, 44, 34), "brown": (104, 72, 48), "blond": (206, 172, 108),
    "red": (150, 66, 34), "gray": (142, 142, 142), "white": (212, 212, 210),
}  # fmt: skip
_HAIR = {"black": 0.60, "dark brown": 0.17, "brown": 0.11, "blond": 0.06, "red": 0.03, "gray": 0.03}
_OLD_HAIR = {"gray": 0.50, "white": 0.32, "black": 0.09, "dark brown": 0.06, "blond": 0.03}
# From dark to light.
_SKINS = ((58, 38, 28), (92, 62, 44), (132, 90, 62), (172, 124, 90), (206, 160, 126), (232, 192, 162), (246, 216, 194))

_SHADES: dict[str, RGB] = {
    "black": (26, 26, 28), "charcoal": (56, 57, 60), "gray": (118, 120, 124), "light gray": (176, 177, 178),
    "white": (234, 234, 232), "cream": (232, 224, 204), "navy": (28, 36, 70), "blue": (44, 84, 172),
    "sky": (146, 182, 220), "denim": (64, 88, 126), "light denim": (122, 150, 186), "red": (190, 36, 42),
    "maroon": (112, 28, 38), "pink": (232, 160, 182), "magenta": (212, 66, 128), "purple": (108, 56, 140),
    "lilac": (164, 132, 194), "green": (44, 122, 62), "lime": (140, 190, 80), "olive": (90, 96, 62),
    "teal": (44, 132, 124), "turquoise": (60, 168, 190), "yellow": (228, 198, 60), "mustard": (200, 164, 52),
    "orange": (228, 112, 40), "beige": (200, 174, 138), "khaki": (160, 134, 96), "brown": (104, 70, 46),
}  # fmt: skip
_UPPER_COLORS = {
    "black": 0.22, "charcoal": 0.06, "gray": 0.08, "light gray": 0.05, "white": 0.19, "cream": 0.02, "navy": 0.07,
    "blue": 0.05, "sky": 0.04, "denim": 0.02, "red": 0.05, "maroon": 0.02, "pink": 0.025, "magenta": 0.015,
    "purple": 0.03, "lilac": 0.015, "green": 0.02, "lime": 0.012, "olive": 0.02, "teal": 0.015, "turquoise": 0.015,
    "yellow": 0.025, "mustard": 0.015, "orange": 0.03, "beige": 0.025, "khaki": 0.015, "brown": 0.025,
}  # fmt: skip
_FEMALE_COLORS = _UPPER_COLORS | {
    "black": 0.18, "navy": 0.04, "charcoal": 0.04, "red": 0.07, "pink": 0.06, "magenta": 0.03, "lilac": 0.025,
    "beige": 0.04,
}  # fmt: skip
_COAT_COLORS = {
    "black": 0.22, "charcoal": 0.08, "gray": 0.08, "navy": 0.09, "khaki": 0.07, "beige": 0.10, "red": 0.10,
    "pink": 0.05, "white": 0.05, "cream": 0.03, "olive": 0.05, "mustard": 0.03, "brown": 0.05, "blue": 0.03,
    "purple": 0.02, "orange": 0.02,
}  # fmt: skip
_LOWER_COLORS = {
    "black": 0.33, "charcoal": 0.08, "gray": 0.07, "light gray": 0.03, "navy": 0.11, "denim": 0.14,
    "light denim": 0.05, "white": 0.04, "beige": 0.03, "khaki": 0.04, "brown": 0.025, "olive": 0.02, "blue": 0.02,
    "red": 0.02, "green": 0.015, "pink": 0.018, "purple": 0.018, "yellow": 0.015, "orange": 0.015,
}  # fmt: skip
_SKIRT_COLORS = {
    "black": 0.34, "charcoal": 0.05, "gray": 0.06, "navy": 0.09, "denim": 0.08, "white": 0.08, "cream": 0.03,
    "red": 0.06, "pink": 0.05, "beige": 0.04, "blue": 0.04, "green": 0.03, "yellow": 0.02, "purple": 0.02,
    "orange": 0.02, "brown": 0.02,
}  # fmt: skip
_SHOE_COLORS = {
    "black": 0.42, "white": 0.22, "brown": 0.09, "gray": 0.07, "red": 0.045, "blue": 0.045, "beige": 0.03,
    "pink": 0.025, "green": 0.02, "yellow": 0.02, "orange": 0.02, "purple": 0.015,
}  # fmt: skip
_LEATHER = {"black": 0.64, "brown": 0.24, "khaki": 0.08, "maroon": 0.04}
_BAG_COLORS = {
    "black": 0.48, "brown": 0.12, "gray": 0.08, "red": 0.09, "beige": 0.05, "navy": 0.06, "blue": 0.04, "white": 0.04,
    "pink": 0.04,
}  # fmt: skip
_SCHOOL_BAGS = {
    "black": 0.25, "blue": 0.22, "red": 0.13, "pink": 0.14, "turquoise": 0.10, "lime": 0.06, "purple": 0.06,
    "yellow": 0.04,
}  # fmt: skip
_SHOPPING_BAGS = {
    "white": 0.38, "khaki": 0.14, "red": 0.14, "green": 0.08, "sky": 0.08, "yellow": 0.05, "black": 0.08, "pink": 0.05,
}  # fmt: skip
_HAT_COLORS = {
    "black": 0.42, "navy": 0.13, "white": 0.13, "red": 0.10, "gray": 0.07, "beige": 0.05, "blue": 0.05, "pink": 0.05,
    "green": 0.03, "purple": 0.03, "orange": 0.02, "brown": 0.03,
}  # fmt: skip
_HELMET_COLORS = {"yellow": 0.42, "orange": 0.24, "red": 0.14, "white": 0.12, "blue": 0.08}
_SCARF_COLORS = _UPPER_COLORS | {"red": 0.15, "black": 0.10}

_VIEWS = {"front": 0.36, "back": 0.36, "right": 0.14, "left": 0.14}
_AZIMUTHS = {"front": 0.0, "right": 90.0, "back": 180.0, "left": 270.0}
_POSES = {"walking": 0.63, "standing": 0.26, "running": 0.06, "cycling": 0.05}
_HELD = ("handbag", "suitcase", "umbrella", "phone", "in_front", "cane")
# Of the crops of PA-100K at 0, 2, 10, 25, 50, 75, 90, 98 and 100 %; heights end at 256, which bounds the work.
_ASPECTS = (0.25, 0.286, 0.326, 0.348, 0.373, 0.403, 0.437, 0.508, 0.62)
_HEIGHTS = (100, 127, 144, 163, 188, 216, 240, 256, 256)
_NUM_OTHERS = {0: 0.72, 1: 0.20, 2: 0.08}
_STRANGERS = 10_000_000  # beyond every person of a data set
_OCCLUDERS = {"": 0.87, "person": 0.035, "pole": 0.03, "car": 0.025, "bush": 0.02, "box": 0.02}


# --- clothes ---------------------------------------------------------------------------------------------------------


def _sample_skin(rng: np.random.Generator) -> RGB:
    tone = rng.random() * (len(_SKINS) - 1)
    low = min(int(tone), len(_SKINS) - 2)
    color = np.array(_SKINS[low]) * (low + 1 - tone) + np.array(_SKINS[low + 1]) * (tone - low)
    return tuple(int(v) for v in np.clip(color + rng.normal(0, 4, 3), 6, 250))


def _sample_clothes(draw: _Draw, female: bool, age: str, season: str) -> tuple[Garment, Garment | None, bool]:
    """Upper garment, lower garment (None under a dress), and whether they are a suit."""
    short = draw.yes(_SHORT_SLEEVES[season])
    if age == "elderly":
        kinds = _OLD_LOWERS[female]
    else:
        kinds = (_CHILD_LOWERS if age == "child" else _LOWERS)[female, short]
    kind = draw.choice(kinds)
    long_coat = not short and age != "child" and draw.yes(_LONG_COAT[female])
    suit = age != "child" and not (short or long_coat) and kind == "trousers" and draw.yes(0.06 if female else 0.16)
    if kind == "dress" and not long_coat:
        return _sample_dress(draw, short), None, False
    if long_coat:
        upper = _sample_coat(draw, season)
    elif suit:
        upper = _sample_suit_jacket(draw)
    else:
        upper = _sample_upper(draw, female, age, season, short)
    lower = _sample_lower(draw, "skirt" if kind == "dress" else kind, female, age)
    if suit:
        color = upper.colors[0] if draw.yes(0.7) else draw.cloth({"black": 0.5, "charcoal": 0.3, "navy": 0.2})
        lower = replace(lower, pattern="plain", colors=(color, color, color), fit=0.3)
    return upper, lower, suit


def _sample_dress(draw: _Draw, short: bool) -> Garment:
    main = draw.cloth(_FEMALE_COLORS)
    pattern = draw.choice(_DRESS_PATTERNS)
    return Garment(
        kind="dress",
        colors=_pattern_colors(draw, main, pattern, _FEMALE_COLORS),
        pattern=pattern,
        scale=_pattern_scale(draw),
        phase=draw.uniform(0, 1),
        sleeve=(0.0 if draw.yes(0.45) else draw.uniform(0.15, 0.42)) if short else draw.uniform(0.9, 1.0),
        hem=draw.choice({0: 0.25, 1: 0.5, 2: 0.25}) * 0.17 + draw.uniform(0.25, 0.4),
        fit=draw.uniform(0.1, 0.9),
    )


def _sample_coat(draw: _Draw, season: str) -> Garment:
    main = draw.cloth(_COAT_COLORS)
    pattern = draw.choice({"plain": 0.88, "plaid": 0.08, "splice": 0.04})
    return Garment(
        kind="coat",
        colors=_pattern_colors(draw, main, pattern, _COAT_COLORS),
        pattern=pattern,
        scale=_pattern_scale(draw),
        phase=draw.uniform(0, 1),
        sleeve=draw.uniform(0.92, 1.0),
        hem=draw.uniform(0.20, 0.58),
        fit=draw.uniform(0.25, 0.8),
        open=draw.yes(0.3 if season == "winter" else 0.55),
        hood=draw.yes(0.15),
        collar=draw.yes(0.7),
        shine=draw.uniform(0.3, 0.9) if draw.yes(0.15) else 0.0,
    )


def _sample_suit_jacket(draw: _Draw) -> Garment:
    main = draw.cloth({"black": 0.5, "charcoal": 0.22, "navy": 0.22, "gray": 0.06})
    shirt = draw.cloth({"white": 0.75, "sky": 0.15, "black": 0.05, "pink": 0.05})
    return Garment(
        "jacket", (main, shirt, shirt), sleeve=0.97, hem=draw.uniform(0.02, 0.10), fit=0.3, open=True, collar=True
    )


def _sample_upper(draw: _Draw, female: bool, age: str, season: str, short: bool) -> Garment:
    palette = _FEMALE_COLORS if female else _UPPER_COLORS
    pattern = draw.choice(_UPPER_PATTERNS[female, short])
    kind = _upper_kind(draw, pattern, season, short, age)
    main = draw.cloth(palette)
    if kind == "shirt" and pattern == "plain" and draw.yes(0.45):  # most plain shirts are light
        main = draw.cloth({"white": 0.6, "sky": 0.3, "light gray": 0.1})
    warm = kind == "jacket"
    is_open = warm and draw.yes(0.4) or kind == "vest" and draw.yes(0.35)
    if short:
        sleeveless = kind == "top" and draw.yes(0.14 if female else 0.04)
        sleeve = 0.0 if sleeveless else draw.uniform(0.22, 0.48)
    elif kind in ("shirt", "top") and draw.yes(0.12):  # rolled up
        sleeve = draw.uniform(0.58, 0.74)
    else:
        sleeve = draw.uniform(0.92, 1.0)
    return Garment(
        kind=kind,
        colors=_pattern_colors(draw, main, pattern, palette),
        pattern=pattern,
        scale=_pattern_scale(draw),
        phase=draw.uniform(0, 1),
        sleeve=sleeve,
        hem=draw.uniform(-0.08, 0.02) if draw.yes(0.3) else draw.uniform(0.0, 0.15 if female else 0.12),
        fit=draw.uniform(0.1, 0.6) if female else draw.uniform(0.25, 0.75),
        open=is_open,
        hood=kind == "jacket" and draw.yes(0.35) or kind == "top" and not short and draw.yes(0.2),
        collar=kind == "shirt" or warm and draw.yes(0.5) or kind == "vest" and draw.yes(0.5),
        shine=draw.uniform(0.3, 1.0) if warm and draw.yes(0.4 if season == "winter" else 0.15) else 0.0,
    )


def _upper_kind(draw: _Draw, pattern: str, season: str, short: bool, age: str) -> str:
    if pattern == "plaid":
        return "shirt" if draw.yes(0.9) else "jacket" if not short else "top"
    if pattern == "splice":
        if draw.yes(0.4):
            return "vest"
        return "top" if short or draw.yes(0.3) else "jacket"
    if short:
        return "shirt" if pattern != "logo" and draw.yes(0.5 if age == "elderly" else 0.28) else "top"
    if season == "winter":
        return "jacket" if draw.yes(0.75) else "top"
    return draw.choice({"top": 0.36, "shirt": 0.30 if pattern != "logo" else 0.0, "jacket": 0.34})


def _pattern_colors(draw: _Draw, main: RGB, pattern: str, palette: dict[str, float]) -> tuple[RGB, RGB, RGB]:
    """Main, second and inner color. The second one must be seen on the main one, as white and black most often are."""
    inner = draw.contrasting(
        main, {"white": 0.4, "black": 0.2, "gray": 0.15, "red": 0.08, "sky": 0.1, "navy": 0.07}, 20
    )
    if pattern in ("stripes", "logo", "dots", "side_stripe") and draw.yes(0.7):
        light = color_distance(main, (0, 0, 0)) > 62
        second = draw.shade(
            _SHADES[draw.choice({"black": 0.6, "navy": 0.4} if light else {"white": 0.85, "cream": 0.15})]
        )
    elif pattern == "plain":
        second = draw.contrasting(main, palette, 12)
    else:
        second = draw.contrasting(main, palette, 32 if draw.yes(0.7) else 18)
    return main, second, inner


def _pattern_scale(draw: _Draw) -> float:
    return min(max(math.exp(draw.normal(0, 0.38)), 0.5), 2.0)


def _sample_lower(draw: _Draw, kind: str, female: bool, age: str) -> Garment:
    name = draw.choice(_SKIRT_COLORS if kind == "skirt" else _LOWER_COLORS)
    main = draw.shade(_SHADES[name])
    pattern = draw.choice(_LOWER_PATTERNS[kind])
    if pattern == "plain" and name in ("denim", "light denim"):
        pattern = "denim"
    if kind == "trousers":
        hem, fit = draw.uniform(0.90, 1.0), draw.uniform(0.0, 0.45) if female else draw.uniform(0.2, 0.65)
        if draw.yes(0.06):
            fit = draw.uniform(0.65, 1.0)
    elif kind == "shorts":
        low, high = (0.12, 0.42) if female and age != "child" else (0.38, 0.68) if age == "child" else (0.38, 0.62)
        hem, fit = draw.uniform(low, high), draw.uniform(0.2, 0.8)
    else:
        low, high = draw.choice({(0.22, 0.40): 0.30, (0.40, 0.60): 0.50, (0.70, 0.92): 0.20})
        hem, fit = draw.uniform(low, high), draw.uniform(0.05, 0.95)
    return Garment(
        kind=kind,
        colors=_pattern_colors(draw, main, pattern, _LOWER_COLORS),
        pattern=pattern,
        scale=_pattern_scale(draw),
        phase=draw.uniform(0, 1),
        sleeve=0.0,
        hem=hem,
        fit=fit,
    )


def _sample_stockings(draw: _Draw, season: str, upper: Garment, lower: Garment | None) -> RGB | None:
    if lower is not None and lower.kind == "trousers":
        return None
    if not draw.yes({"winter": 0.85, "mild": 0.35, "summer": 0.06}[season]):
        return None
    return draw.cloth({"black": 0.7, "charcoal": 0.1, "navy": 0.07, "gray": 0.05, "white": 0.04, "beige": 0.04})


def _sample_shoes(draw: _Draw, female: bool, age: str, season: str, upper: Garment, suit: bool) -> Thing:
    boots = {"winter": 0.26 if female else 0.13, "mild": 0.07 if female else 0.03, "summer": 0.01}[season]
    if upper.kind == "coat":
        boots += 0.15
    sandals = (0.30 if female else 0.12) if season == "summer" else 0.01
    kind = draw.choice({"boots": 0.0 if suit else boots, "sandals": 0.0 if suit else sandals, "shoes": 0.75})
    leather = suit or kind == "boots" and draw.yes(0.85) or age == "elderly" and draw.yes(0.5)
    color = draw.cloth(_LEATHER if leather else _SHOE_COLORS)
    return Thing(kind, color, draw.cloth({"white": 0.5, "black": 0.3, "gray": 0.2}), size=draw.uniform(0.85, 1.2))


# --- things ----------------------------------------------------------------------------------------------------------


def _sample_things(draw: _Draw, female: bool, age: str, season: str, upper: Garment) -> dict[str, Thing]:
    things: dict[str, Thing] = {}

    def add(name: str, kind: str, palette: dict[str, float], side: int | None = None) -> None:
        side = side or (1 if draw.yes(0.5) else -1)
        color = draw.cloth(palette)
        second = draw.cloth({"black": 0.4, "white": 0.3, "gray": 0.2, "red": 0.1})
        things[name] = Thing(kind, color, second, side, min(max(draw.normal(1, 0.14), 0.7), 1.3))

    _add_worn(draw, add, things, female, age, season, upper)
    _add_bags(draw, add, things, female, age)
    _add_held(draw, add, things, female, age, season)
    return things


def _add_worn(draw, add, things, female, age, season, upper) -> None:
    """What the head and neck wear."""
    if draw.yes({"child": 0.09, "elderly": 0.15}.get(age, 0.06 if female else 0.15) + 0.06 * (season == "winter")):
        if age == "adult" and not female and draw.yes(0.28):
            add("hat", "helmet", _HELMET_COLORS)
        else:
            kinds = {
                "cap": 0.6,
                "beanie": 0.45 if season == "winter" else 0.02,
                "brim": 0.3 if season != "winter" else 0.08,
            }
            add("hat", draw.choice(kinds), _HAT_COLORS)
    glasses = {"child": 0.12, "elderly": 0.12}.get(age, 0.11 if female else 0.25)
    dark = 0.09 if season == "summer" else 0.025
    if draw.yes(dark if age != "child" else 0.01):
        add("glasses", "dark", {"black": 1.0})
    elif draw.yes(glasses):
        add("glasses", "clear", {"black": 0.75, "brown": 0.15, "gray": 0.1})
    if draw.yes(0.07):
        add("mask", "mask", {"white": 0.5, "sky": 0.3, "black": 0.2})
    if draw.yes({"winter": 0.30 if female else 0.18, "mild": 0.03, "summer": 0.0}[season]):
        add("scarf", "scarf", _SCARF_COLORS)
    if age != "elderly" and "hat" not in things and draw.yes(0.05):
        add("headphones", "headphones", {"black": 0.7, "white": 0.2, "red": 0.1})


def _add_bags(draw, add, things, female, age) -> None:
    """What hangs on the shoulders."""
    if draw.yes({"child": 0.62, "elderly": 0.03}.get(age, 0.14)):
        add("backpack", "backpack", _SCHOOL_BAGS if age == "child" else _BAG_COLORS)
    bag = {"child": 0.04, "elderly": 0.14 if female else 0.06}.get(age, 0.32 if female else 0.11)
    if draw.yes(bag * (0.1 if "backpack" in things else 1.0)):
        add("shoulder_bag", draw.choice({"cross": 0.6, "side": 0.4 if female else 0.15}), _BAG_COLORS)


def _add_held(draw, add, things, female, age, season) -> None:
    """What the hands hold: whatever needs a hand takes it, and what comes too late stays at home."""
    free = [1, -1] if draw.yes(0.45) else [-1, 1]
    handbag = {"child": 0.05, "elderly": 0.28}.get(age, 0.25 if female else 0.15)
    if "shoulder_bag" in things or "backpack" in things:
        handbag *= 0.5
    umbrella = 0.05 if season == "winter" else 0.06 if season == "summer" and female else 0.03
    for name, probability, hands in (
        ("in_front", 0.055, 2),
        ("cane", 0.35 if age == "elderly" else 0.006 if age == "adult" else 0.0, 1),
        ("suitcase", 0.0 if age == "child" else 0.045, 1),
        ("umbrella", umbrella, 1),
        ("handbag", handbag, 1),
        ("phone", {"child": 0.02, "elderly": 0.03}.get(age, 0.13), 1),
    ):
        if len(free) < hands or not draw.yes(probability):
            continue
        side = free.pop()
        if hands == 2:
            free.clear()
        if name == "in_front":
            kind = draw.choice({"box": 0.45, "papers": 0.15, "folder": 0.2, "bag": 0.2})
            papers = {"white": 1.0}
            boxes = {"khaki": 0.6, "beige": 0.15, "white": 0.15, "blue": 0.1}
            add(name, kind, papers if kind == "papers" else boxes if kind == "box" else _BAG_COLORS, side)
        elif name == "handbag":
            kind = "handbag" if draw.yes(0.55 if female else 0.3) else "shopping"
            add(name, kind, _BAG_COLORS if kind == "handbag" else _SHOPPING_BAGS, side)
        elif name == "phone":
            add(name, "look" if draw.yes(0.65) else "ear", {"black": 0.7, "white": 0.2, "red": 0.1}, side)
        elif name == "umbrella":
            add(name, name, _SCARF_COLORS, side)
        else:
            add(name, name, {"brown": 0.6, "black": 0.4} if name == "cane" else _BAG_COLORS, side)


# --- shots -----------------------------------------------------------------------------------------------------------


def _possible_poses(person: RenderedPerson) -> dict[str, float]:
    """Poses that what the hands hold, and a long skirt, leave possible."""
    poses = dict(_POSES)
    holds = [name for name in _HELD if name in person.things]
    if holds or person.lower is None or person.lower.kind == "skirt" or person.upper.kind == "coat":
        poses["cycling"] = 0.0
    if set(holds) - {"handbag"} or person.age == "elderly":
        poses["running"] = 0.0
    if "phone" in person.things or "in_front" in person.things:
        poses["standing"] = 0.5
    return poses


def _sample_framing(draw: _Draw) -> tuple[float, tuple[float, float]]:
    """Zoom and shift of the crop. Detectors' boxes are tight; a quarter cuts the head or the feet."""
    dx = draw.normal(0, 0.04)
    if draw.yes(0.22):
        zoom = 1.0 + abs(draw.normal(0.06, 0.16))
        edge = (zoom - 1) / 2  # moves the crop so far that it cuts the head, the feet or both
        return min(zoom, 1.7), (dx, draw.uniform(-1, 1) * min(edge, 0.35) + draw.normal(0, 0.01))
    zoom = float(np.clip(draw.normal(0.955, 0.035), 0.78, 1.02))
    return zoom, (dx, draw.normal(0, 0.012))
