"""Pictures: patch relevance over a crop, boxes with labels, and a grid of people with their attributes.

Everything is drawn by Pillow with its bundled font, so no display, no font file and no plotting package is needed;
names that it has no letters for are drawn in a font of this machine (see `vlm_par_hf.images.fonts`).
Right and wrong answers differ by a mark (tick or cross) and by words, not only by colour, so the pictures can be read
without seeing colours.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vlm_par_hf.errors import ParTypeError, ParValueError
from vlm_par_hf.images.fonts import Lettering
from vlm_par_hf.images.opening import open_image
from vlm_par_hf.labels.decisions import answer_text, is_answered, is_positive_answer, is_unknown
from vlm_par_hf.labels.schema import AttributeSchema


__all__ = ["draw_boxes", "explanation_grid", "is_positive_answer", "overlay_relevance", "people_grid", "tag_lines"]

# Dark violet to light yellow, with increasing lightness, so that it can be read in grey too.
_HEAT_ANCHORS = np.array(
    [[20, 11, 53], [87, 16, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]],
    dtype=np.float64,
)
# Eight colours that can be told apart with the common forms of colour blindness.
_BOX_COLOURS = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
    (90, 90, 90),
)
_TAG_LINES = 6  # answers that stand beside a box at most
_PAPER, _CARD, _LINE = (247, 247, 245), (255, 255, 255), (222, 222, 218)
_INK, _FAINT = (28, 30, 33), (112, 116, 122)
_RIGHT, _WRONG, _WRONG_TINT = (0, 121, 88), (190, 62, 8), (253, 237, 227)


def overlay_relevance(image: Image.Image, relevance: np.ndarray, *, opacity: float = 0.7) -> Image.Image:
    """Lay a relevance map over a picture.

    The map is scaled to its own range (the least relevant patch is not tinted, the most relevant one is light yellow),
    so colours must not be compared between pictures. A constant map leaves the picture as it is.

    Args:
        image (`PIL.Image.Image`): the picture; shown in RGB at its own size.
        relevance (`np.ndarray` of shape `(rows, columns)`): one number per patch, any range.
        opacity (`float`): weight of the colour on the most relevant patch, in [0, 1].

    Returns:
        `PIL.Image.Image`: RGB, the size of `image`.

    Raises:
        ValueError: if `relevance` is not a finite matrix, or `opacity` is outside [0, 1].
    """
    relevance = np.asarray(relevance, dtype=np.float64)
    if relevance.ndim != 2 or relevance.size == 0:
        raise ParValueError(f"relevance has shape {relevance.shape}, expected (rows, columns) of patches")
    if not np.isfinite(relevance).all():
        raise ParValueError("relevance holds NaN or infinite values, expected finite numbers")
    if not 0.0 <= opacity <= 1.0:
        raise ParValueError(f"opacity is {opacity}, expected a number in [0, 1]")
    image = image.convert("RGB")
    low, high = relevance.min(), relevance.max()
    # Do not scale up rounding errors: attention that is uniform up to rounding would become a pattern.
    if high - low <= 1e-6 * max(abs(high), abs(low)):
        return image
    heat = ((relevance - low) / (high - low)).astype(np.float32)
    heat = np.asarray(Image.fromarray(heat).resize(image.size, Image.Resampling.BICUBIC))
    heat = np.clip(heat, 0.0, 1.0)
    stops = np.linspace(0.0, 1.0, len(_HEAT_ANCHORS))
    colour = np.stack([np.interp(heat, stops, channel) for channel in _HEAT_ANCHORS.T], axis=-1)
    weight = opacity * heat[..., None]
    blend = np.asarray(image, dtype=np.float64) * (1.0 - weight) + colour * weight
    return Image.fromarray(np.rint(blend).astype(np.uint8))


def draw_boxes(
    image: Any,
    boxes: Sequence[Sequence[float]] | Sequence[Mapping[str, Any]],
    labels: Sequence[str | Sequence[str]] | None = None,
    *,
    font_size: int | None = None,
    numbers: Sequence[int] | None = None,
) -> Image.Image:
    """Draw boxes, each with a tag, on a copy of a picture.

    `draw_boxes(image, pipe(image, boxes=boxes))` shows the people of a picture with their positive answers.

    Args:
        image: the picture, of any kind that `open_image` takes; it is shown upright.
        boxes (sequence): boxes `[x0, y0, x1, y1]` in pixels of the upright picture, origin in the upper left corner;
            or results of the pipeline or of a detector: dicts with such a `"box"`, or with one of `xmin`, `ymin`,
            `xmax`, `ymax`.
        labels (sequence, *optional*): one per box, a string or a list of lines; an empty one draws no tag. By default
            the tags of results are their positive answers, those of detections label and score.
        font_size (`int`, *optional*): in pixels; chosen from the size of the picture by default.
        numbers (sequence, *optional*): one per box; boxes of the same number have the same colour, so that a person
            keeps theirs from frame to frame. By default the positions.

    Returns:
        `PIL.Image.Image`: RGB, the size of the upright picture.

    Raises:
        ValueError: if the number of labels is not the number of boxes, or a result has no box.
        TypeError: if `boxes` is a single result.
    """
    image = open_image(image).copy()
    if isinstance(boxes, Mapping):
        raise ParTypeError("boxes is one result, expected a list of boxes or of results: pass [result]")
    if any(isinstance(one, Mapping) for one in boxes):
        labels = [tag_lines(one) for one in boxes] if labels is None else labels
        boxes = [_box_of(one, index) for index, one in enumerate(boxes)]
    if labels is not None and len(labels) != len(boxes):
        raise ParValueError(f"labels has {len(labels)} entries, expected one per box ({len(boxes)})")
    font_size = font_size or max(11, round(min(image.size) / 32))
    stroke = max(2, font_size // 6)
    draw = ImageDraw.Draw(image)
    colours = [_colour_of(number) for number in (range(len(boxes)) if numbers is None else numbers)]
    for (x0, y0, x1, y1), colour in zip(boxes, colours):
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=stroke)
    # Tags are drawn after all boxes, so that no outline crosses the words of a tag.
    for index, (x0, y0, _, _) in enumerate(boxes):
        lines = labels[index] if labels is not None else ()
        lines = [lines] if isinstance(lines, str) else list(lines)
        text = "\n".join(line for line in lines if line)
        if not text:
            continue
        font, text = Lettering(font_size).fit(text)
        left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=font, spacing=2)
        pad = max(2, font_size // 4)
        width, height = right - left + 2 * pad, bottom - top + 2 * pad
        # Above the box if there is room, else inside its upper edge; never outside the picture.
        x = max(0, min(x0, image.width - width))
        y = y0 - height if y0 >= height else max(0, min(y0, image.height - height))
        colour = colours[index]
        draw.rectangle((x, y, x + width, y + height), fill=colour)
        luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
        ink = (0, 0, 0) if luminance > 140 else (255, 255, 255)
        draw.multiline_text((x + pad - left, y + pad - top), text, font=font, fill=ink, spacing=2)
    return image


def _box_of(result: Any, index: int) -> Sequence[float]:
    box = result.get("box") if isinstance(result, Mapping) else result
    if box is None:
        raise ParValueError(
            f"boxes[{index}] is a result without a box, expected those of a call with boxes= or detector="
        )
    return [box[side] for side in ("xmin", "ymin", "xmax", "ymax")] if isinstance(box, Mapping) else box


def tag_lines(result: Any, most: int = _TAG_LINES) -> list[str]:
    """The lines that stand beside the box of a person: the positive answers, `most` of them and how many more there
    are; or of a detection: label and score."""
    if not isinstance(result, Mapping):
        return []
    if "attributes" not in result:
        score = result.get("score")
        return [f"{result.get('label', '')}  {_format_probability(score)}" if score is not None else ""]
    positive = {
        name: one
        for name, one in result["attributes"].items()
        if is_answered(one) and is_positive_answer(one["label"])
    }
    lines = [
        f"{name if one['label'] == 'yes' else name + ': ' + one['label']}  {_format_probability(one['score'])}"
        for name, one in positive.items()
    ]
    # Why nothing is answered for a person; single answers that are left open are no positive ones.
    lines = list(dict.fromkeys(answer_text(one) for one in result["attributes"].values() if one.get("reason"))) + lines
    more = len(lines) - most
    return lines if more <= 0 else [*lines[:most], f"{more} more"]


def people_grid(
    images: Sequence[Image.Image],
    predictions: Sequence[Mapping[str, Any]],
    labels: Any = None,
    schema: AttributeSchema | None = None,
    *,
    columns: int | None = None,
    names: Sequence[str] | None = None,
    title: str | None = None,
    note: str | None = None,
    max_lines: int = 14,
    picture_height: int | None = None,
    font_size: int = 15,
) -> Image.Image:
    """People in a grid, each with the attributes predicted for them and, if known, the true ones.

    All positive answers (see `is_positive_answer`) and all wrong answers are listed; the remaining answers "no", and
    those that are left open ("unknown"), are only counted in a last line; those that make no sense for a person are
    left out. A right answer is marked by a tick; a wrong
    one by a cross, a tint and the true label in words; an answer whose true label is unknown by a dash.

    Args:
        images (sequence of `PIL.Image.Image`): one person each; scaled to fit, aspect ratio kept.
        predictions (sequence of `dict`): one per image, `{name: {"label", "score", ...}}` as
            `post_process_attributes` returns them, or the pipeline's `{"attributes": {...}}`.
        labels (int array of shape `(len(images), A)`, *optional*): class index per attribute, -100 for unknown.
        schema (`AttributeSchema`, *optional*): needed with `labels`.
        columns (`int`, *optional*): people per row; by default so that the picture is slightly wider than high.
        names (sequence of `str`, *optional*): a heading per person; "person 1", ... by default.
        title, note (`str`, *optional*): a heading and a line under it.
        max_lines (`int`): attributes listed per person at most, wrong answers first.
        picture_height (`int`, *optional*): height of the pictures in pixels; by default that of the longest list, at
            least 256.
        font_size (`int`): in pixels.

    Returns:
        `PIL.Image.Image`: RGB.

    Raises:
        ValueError: if the numbers of images, predictions, labels or names differ, if `labels` come without `schema`
            or with another number of attributes, or if there is no image.
    """
    if len(images) == 0:
        raise ParValueError("images is empty, expected at least one person")
    if len(predictions) != len(images):
        raise ParValueError(f"predictions has {len(predictions)} entries, expected one per image ({len(images)})")
    if names is not None and len(names) != len(images):
        raise ParValueError(f"names has {len(names)} entries, expected one per image ({len(images)})")
    if labels is not None:
        if schema is None:
            raise ParValueError(
                "labels were given without schema, expected the AttributeSchema that they are indices of"
            )
        labels = np.asarray(labels)
        if labels.shape != (len(images), len(schema)):
            raise ParValueError(f"labels has shape {labels.shape}, expected ({len(images)}, {len(schema)})")
    if columns is None:
        # A card is about as wide as high, but a screen is wider than high.
        columns = max(1, round((1.3 * len(images)) ** 0.5))
    columns = min(columns, len(images))
    names = names or [f"person {index + 1}" for index in range(len(images))]

    cards = [
        _card_lines(prediction, None if labels is None else labels[index], schema, max_lines)
        for index, prediction in enumerate(predictions)
    ]
    font, small = Lettering(font_size), Lettering(font_size - 2)
    line_height, gap, mark = round(font_size * 1.5), font_size, round(font_size * 0.95)
    name_width = max([font.length(line[1]) for lines, *_ in cards for line in lines] + [4 * font_size])
    answer_width = max([font.length(line[2]) for lines, *_ in cards for line in lines] + [4 * font_size])
    text_width = round(mark + font_size // 2 + name_width + font_size + answer_width)
    most_lines = max(len(lines) + bool(footer) for lines, footer, _ in cards)
    text_height = round(1.3 * line_height) + most_lines * line_height
    picture_height = picture_height or max(256, text_height)
    picture_width = round(min(picture_height, max(picture_height * image.width / image.height for image in images)))
    card_height = 2 * gap + max(picture_height, text_height)
    # The heading of a card may be wider than its lines.
    heading_width = max(
        font.length(str(name)) + 2 * font_size + small.length(summary) for name, (_, _, summary) in zip(names, cards)
    )
    card_width = round(3 * gap + picture_width + max(text_width, heading_width, *_footer_widths(cards, small)))

    rows = -(-len(images) // columns)
    header = line_height if labels is not None else 0
    size = (gap + columns * (card_width + gap), rows * (card_height + gap))
    page, draw, y = _new_page(size, title, note, header, font_size)
    header = page.height - size[1]
    if labels is not None:
        x = gap * 2
        legend = {"right": "right", "wrong": "wrong, with the true answer"}
        if (labels < 0).any():
            legend["unknown"] = "truth unknown"
        for kind, words in legend.items():
            page.paste(*_mark_at(kind, mark, (x, y + 1)))
            font.draw(draw, (x + mark + font_size // 2, y), words, fill=_FAINT)
            x += mark + font_size * 2 + round(font.length(words))

    for index, (image, name, (lines, footer, summary)) in enumerate(zip(images, names, cards)):
        left = gap + (index % columns) * (card_width + gap)
        top = header + (index // columns) * (card_height + gap)
        draw.rounded_rectangle(
            (left, top, left + card_width, top + card_height), radius=font_size // 2, fill=_CARD, outline=_LINE
        )
        picture = _scale_to_fit(image, picture_width, picture_height)
        page.paste(picture, (left + gap + (picture_width - picture.width) // 2, top + gap))
        x, y = left + 2 * gap + picture_width, top + gap
        font.draw(draw, (x, y), str(name), fill=_INK, stroke_width=0.4, stroke_fill=_INK)
        small.draw(draw, (left + card_width - gap, y + 1), summary, fill=_FAINT, anchor="ra")
        y += round(line_height * 1.3)
        for kind, attribute, answer in lines:
            if kind == "wrong":
                draw.rectangle(
                    (x - gap // 3, y - 3, left + card_width - gap + gap // 3, y + line_height - 4), fill=_WRONG_TINT
                )
            if kind is not None:
                page.paste(*_mark_at(kind, mark, (x, y + 1)))
            indent = 0 if kind is None else mark + font_size // 2
            font.draw(draw, (x + indent, y), attribute, fill=_INK)
            colour = _WRONG if kind == "wrong" else _FAINT
            font.draw(draw, (left + card_width - gap, y), answer, fill=colour, anchor="ra")
            y += line_height
        if footer:
            small.draw(draw, (x, y + 1), footer, fill=_FAINT)
    return page


def explanation_grid(
    images: Sequence[Image.Image],
    results: Sequence[Mapping[str, Any]],
    *,
    names: Sequence[str] | None = None,
    title: str | None = None,
    note: str | None = None,
    picture_height: int = 256,
    font_size: int = 15,
) -> Image.Image:
    """One row per person: the picture, then the overlay of every explained attribute with its answer under it.

    Args:
        images (sequence of `PIL.Image.Image`): one person each.
        results (sequence of `dict`): one per image, from the pipeline with `explain=[...]`: `"attributes"` and
            `"overlays"`.
        names (sequence of `str`, *optional*): a caption per person; "person 1", ... by default.
        title, note (`str`, *optional*): a heading and a line under it.
        picture_height (`int`): height of the pictures in pixels.
        font_size (`int`): in pixels.

    Returns:
        `PIL.Image.Image`: RGB.

    Raises:
        ValueError: if there is no image, the numbers of images, results or names differ, or a result has no overlays.
    """
    if len(images) == 0:
        raise ParValueError("images is empty, expected at least one person")
    for argument, values in (("results", results), ("names", names)):
        if values is not None and len(values) != len(images):
            raise ParValueError(f"{argument} has {len(values)} entries, expected one per image ({len(images)})")
    rows = []
    for index, (image, result) in enumerate(zip(images, results)):
        if "overlays" not in result:
            raise ParValueError(
                f"results[{index}] has no overlays, expected the result of a pipeline call with explain="
            )
        row = [(image, names[index] if names else f"person {index + 1}", "")]
        for name, overlay in result["overlays"].items():
            answer = result["attributes"].get(name)
            row.append((overlay, name, _with_probability(answer) if answer and answer["label"] else ""))
        rows.append(row)
    font, small = Lettering(font_size), Lettering(font_size - 2)
    gap, line_height = font_size, round(font_size * 1.5)
    widest = max(image.width / image.height for row in rows for image, *_ in row)
    words = max(font.length(text) for row in rows for cell in row for text in cell[1:])
    cell_width = round(max(min(1.0, widest) * picture_height, words)) + gap
    cell_height = picture_height + 2 * line_height + 2 * gap
    size = (2 * gap + max(len(row) for row in rows) * cell_width, len(rows) * cell_height)
    page, draw, _ = _new_page(size, title, note, 0, font_size)
    top = page.height - size[1]
    for row in rows:
        for column, (image, name, answer) in enumerate(row):
            left = gap + column * cell_width
            picture = _scale_to_fit(image, cell_width - gap, picture_height)
            page.paste(picture, (left, top + picture_height - picture.height))
            font.draw(draw, (left, top + picture_height + gap // 3), name, fill=_INK)
            small.draw(draw, (left, top + picture_height + gap // 3 + line_height), answer, fill=_FAINT)
        top += cell_height
    return page


def _new_page(
    size: tuple[int, int], title: str | None, note: str | None, legend_height: int, font_size: int
) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """A new page with heading and note.

    Args:
        size: width and height of the space left free at the bottom.
        title, note, font_size: as in `people_grid`.
        legend_height: of the space left free for a legend under the note; 0 for none.

    Returns:
        The page, an object to draw on it, and the y at which the legend begins.
    """
    heading, font = Lettering(font_size + 9), Lettering(font_size)
    width = max(size[0], round(heading.length(title or "")) + 4 * font_size, 40 * font_size if note else 0)
    lines = _wrap(note or "", font, width - 4 * font_size)
    title_height, note_height = round(font_size * 2.4) * bool(title), round(font_size * 1.5) * len(lines)
    header = title_height + note_height + legend_height
    header += 2 * font_size if header else font_size
    width = max([width, *(round(font.length(line)) + 4 * font_size for line in lines)])
    page = Image.new("RGB", (width, header + size[1]), _PAPER)
    draw = ImageDraw.Draw(page)
    y = font_size
    if title:
        heading.draw(draw, (font_size * 2, y), title, fill=_INK)
    for number, line in enumerate(lines):
        font.draw(draw, (font_size * 2, y + title_height + number * round(font_size * 1.5)), line, fill=_FAINT)
    return page, draw, y + title_height + note_height


def _wrap(text: str, font: Lettering, width: int) -> list[str]:
    """The lines of a text, no wider than `width` pixels where words allow it."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.length(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _format_probability(score: float) -> str:
    """A probability in whole percent, from 1% to 99%: after rounding, 0% or 100% would look certain."""
    return f"{min(99, max(1, round(100 * score)))}%"


def _with_probability(answer: Mapping[str, Any]) -> str:
    return answer_text(answer) if is_unknown(answer) else f"{answer['label']}  {_format_probability(answer['score'])}"


def _colour_of(index: int) -> tuple[int, int, int]:
    return _BOX_COLOURS[index % len(_BOX_COLOURS)]


def _scale_to_fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """The picture in RGB, scaled to the largest size that fits into `width` x `height`."""
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _footer_widths(cards: list, font) -> list[float]:
    return [font.length(footer) for _, footer, _ in cards]


def _card_lines(prediction, truth, schema, max_lines: int) -> tuple[list[tuple[str | None, str, str]], str, str]:
    """The texts of one person's card.

    Returns:
        `(mark, attribute, answer)` for each line (mark None without `truth`), the last line, and the summary that is
        printed beside the person's name.
    """
    prediction = prediction.get("attributes", prediction)
    lines, left_open, num_negative, right, known = [], [], 0, 0, 0
    for name, answer in prediction.items():
        attribute = schema[name] if schema is not None else None
        if is_unknown(answer):  # neither right nor wrong
            left_open.append(answer_text(answer))
            continue
        if answer["label"] is None:  # the question makes no sense for this person
            continue
        label, kind, wanted = answer["label"], None, ""
        if truth is not None:
            true_class = int(truth[schema.index(name)])
            kind = "unknown" if true_class < 0 else "right" if attribute.labels[true_class] == label else "wrong"
            wanted = attribute.labels[true_class] if kind == "wrong" else ""
            known += kind != "unknown"
            right += kind == "right"
        if kind != "wrong" and not is_positive_answer(label, attribute):
            num_negative += 1
            continue
        lines.append((kind, name, f"{label} (true: {wanted})" if wanted else _with_probability(answer)))
    kept = sorted(range(len(lines)), key=lambda index: (lines[index][0] != "wrong", index))[:max_lines]
    hidden = len(lines) - len(kept)
    footer = [f"{hidden} more not shown"] if hidden else []
    footer += [f"{left_open.count(text)} {text}" for text in dict.fromkeys(left_open)]
    if num_negative:
        footer.append(
            f"{num_negative} more answered no" if truth is None else f"{num_negative} more answered no, none wrong"
        )
    summary = f"{right} of {known} right" if known else ""
    return [lines[index] for index in sorted(kept)], "; ".join(footer), summary


@lru_cache(maxsize=64)
def _mark(kind: str, size: int) -> Image.Image:
    """A tick, a cross or a dash on a transparent square. Drawn large and scaled down, because Pillow draws lines
    without antialiasing."""
    scale = 8
    side = size * scale
    mark = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mark)
    if kind == "right":
        strokes, colour = [[(0.10, 0.55), (0.38, 0.82), (0.90, 0.20)]], _RIGHT
    elif kind == "wrong":
        strokes, colour = [[(0.18, 0.18), (0.82, 0.82)], [(0.82, 0.18), (0.18, 0.82)]], _WRONG
    else:
        strokes, colour = [[(0.2, 0.5), (0.8, 0.5)]], _FAINT
    for stroke in strokes:
        draw.line([(x * side, y * side) for x, y in stroke], fill=255, width=side // 6, joint="curve")
    mark = mark.resize((size, size), Image.Resampling.LANCZOS)
    picture = Image.new("RGBA", (size, size), (*colour, 0))
    picture.putalpha(mark)
    return picture


def _mark_at(kind: str, size: int, where: tuple[int, int]) -> tuple[Image.Image, tuple[int, int], Image.Image]:
    """The arguments with which `Image.paste` draws a mark at `where`."""
    mark = _mark(kind, size)
    return mark.convert("RGB"), where, mark.getchannel("A")
