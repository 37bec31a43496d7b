"""A page of the people of a video: a row for each, with the best picture, the answers, and what changed over time."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw

from vlm_par_hf.images.fonts import Lettering
from vlm_par_hf.images.opening import open_image
from vlm_par_hf.visualization import tag_lines


__all__ = ["contact_sheet"]

_HEIGHT, _PICTURE, _ANSWERS, _NAMES, _TIMES, _GAP = 216, 110, 250, 170, 520, 16
_LINE = 19  # of text
_MOST = 7  # attributes with changes that are shown for a person
_PAPER, _INK, _FAINT, _PRESENT = (255, 255, 255), (28, 30, 33), (112, 116, 122), (222, 222, 218)
# Of an attribute's labels in the order in which they appear; told apart in grey too, and written into the strips.
_COLOURS = ((0, 90, 140), (240, 190, 60), (150, 200, 180), (120, 60, 110), (230, 130, 90))


def contact_sheet(
    rows: Sequence[Mapping[str, Any]], pictures: Sequence[Any], *, duration: float | None = None
) -> Image.Image:
    """Draws the people whom `track` or the pipeline answered for.

    Beside the best picture stand the positive answers, and beside them when the person was seen: a mark for each
    picture that was asked about, and a strip for each attribute whose answers to single pictures differ, those with
    the most changes first.

    Args:
        rows: of `track`, or results of the pipeline for a video with tracks.
        pictures: the best picture of each person, of the kinds that `open_image` takes.
        duration: of the video in seconds; None: up to the last person.

    Returns:
        `PIL.Image.Image`: RGB.
    """
    duration = duration or max([one["last_time"] for one in rows], default=0.0) or 1.0
    width = _PICTURE + _ANSWERS + _NAMES + _TIMES + 5 * _GAP
    page = Image.new("RGB", (width, max(1, len(rows)) * (_HEIGHT + _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(page)
    if not rows:
        _write(draw, (_GAP, _GAP), "nobody was seen", _INK, width)
    for number, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
        top = _GAP + number * (_HEIGHT + _GAP)
        if number:
            draw.line((_GAP, top - _GAP // 2, width - _GAP, top - _GAP // 2), fill=_PRESENT)
        image = open_image(picture)
        scale = min(_PICTURE / image.width, _HEIGHT / image.height)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        page.paste(image.resize(size, Image.Resampling.LANCZOS), (_GAP, top))
        left = _PICTURE + 2 * _GAP
        seen = f"#{row['id']}   {row['first_time']:.1f} to {row['last_time']:.1f} s, {len(row['times'])} pictures"
        _write(draw, (left, top), seen, _FAINT, _ANSWERS)
        for line, text in enumerate(tag_lines(row, most=9), start=1):
            _write(draw, (left, top + line * _LINE), text, _INK, _ANSWERS)
        _draw_times(draw, row, left + _ANSWERS + _GAP, top, duration)
    return page


def _draw_times(draw: ImageDraw.ImageDraw, row: Mapping[str, Any], left: int, top: int, duration: float) -> None:
    """When a person was seen and asked about, and the answers that changed."""
    start = left + _NAMES

    def x(time: float) -> int:
        return start + round(_TIMES * min(1.0, time / duration))

    _write(draw, (left, top), "seen", _FAINT, _NAMES)
    draw.rectangle((start, top + 3, start + _TIMES, top + 13), fill=_PRESENT)
    draw.rectangle((x(row["first_time"]), top + 3, x(row["last_time"]), top + 13), fill=_FAINT)
    for time in row["times"]:
        draw.line((x(time), top, x(time), top + 16), fill=_INK, width=2)
    changes = {name: sum(a != b for a, b in zip(labels, labels[1:])) for name, labels in row["timeline"].items()}
    changed = sorted((name for name, count in changes.items() if count), key=lambda name: -changes[name])
    # An answer holds until the middle between two pictures.
    times = row["times"]
    edges = [row["first_time"], *((a + b) / 2 for a, b in zip(times, times[1:])), row["last_time"]]
    for line, name in enumerate(changed[:_MOST], start=1):
        y, labels = top + 6 + line * (_LINE + 4), row["timeline"][name]
        _write(draw, (left, y - 2), name, _INK, _NAMES - 8)
        known = list(dict.fromkeys(labels))
        place = 0
        while place < len(labels):
            end = place
            while end + 1 < len(labels) and labels[end + 1] == labels[place]:
                end += 1
            colour = _COLOURS[known.index(labels[place]) % len(_COLOURS)]
            box = (x(edges[place]), y, max(x(edges[end + 1]), x(edges[place]) + 1), y + _LINE - 2)
            draw.rectangle(box, fill=colour, outline=_PAPER)
            light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
            text = "-" if labels[place] is None else labels[place]
            _write(draw, (box[0] + 3, y), text, (0, 0, 0) if light else (255, 255, 255), box[2] - box[0] - 5)
            place = end + 1
    rest = len(changed) - _MOST
    last = top + 6 + (min(len(changed), _MOST) + 1) * (_LINE + 4) - 2
    if rest > 0:
        _write(draw, (left, last), f"and {rest} more that changed", _FAINT, _NAMES + _TIMES)
    elif not changed:
        _write(draw, (left, last), "all answers stayed the same", _FAINT, _NAMES + _TIMES)


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, colour: tuple, width: int) -> None:
    """Writes a line, cut off where it does not fit."""
    font, text = Lettering(14).fit(text)
    while text and draw.textlength(text, font=font) > width:
        text = text[:-1]
    draw.text(place, text, font=font, fill=colour)
