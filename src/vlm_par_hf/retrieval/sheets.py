"""Pictures of a search: a sheet of the people who were found, and a map of queries and people."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vlm_par_hf.annotation.inputs import TABLE_SUFFIX, Boxed, Columns, Segment, open_row, read_segments
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.utils import require
from vlm_par_hf.visualization import search_sheet

from .searching import SearchResult


__all__ = ["draw_search", "map_of_people", "open_person", "principal_axes"]


def open_person(one: Mapping[str, Any], *, image_column: str = "image") -> Image.Image | None:
    """The picture of a person that a search found; None if it cannot be read any more.

    Args:
        one: an entry of `SearchResult.people`.
        image_column: of a parquet file.
    """
    path, row = one["path"], one["row"]
    is_table = row is not None and path.lower().endswith(TABLE_SUFFIX)
    try:
        segment = Segment(0, path, row if is_table else None, 1)
        image = next(iter(read_segments([segment], Columns(image_column), os.getcwd()))).image
        # With a video, the box is that of its frame, and the image was cut out of it.
        if one["box"] is not None and one["video"] is None:
            opened = open_row(Boxed(image, [one["box"]]))
            return opened.crop(opened.boxes[0])
        return open_row(image).picture
    except (OSError, ValueError, TypeError, StopIteration):
        return None


def draw_search(
    result: SearchResult,
    path: str | os.PathLike | None = None,
    *,
    title: str | None = None,
    most: int = 60,
    image_column: str = "image",
) -> Image.Image:
    """A sheet of the people who were found: each with rank, score, and for every condition whether it is met.

    Args:
        result: what `Gallery.search` returned.
        path: the file to write, .png or .jpg; None: none.
        title: the heading; None: the query.
        most: people on the sheet.
        image_column: of parquet files.

    Raises:
        ValueError: the ending of `path` is none of an image.
    """
    people = result.people[:most]
    counts = result.counts
    notes = [f"{counts['passed']} of {counts['people']} people pass the filter {result.filter}."] * bool(result.filter)
    if "all" in counts:
        notes.append(f"The answers for {counts['all']} of {counts['passed']} people meet the whole query.")
    notes += [f"{result.message}."] * bool(result.message)
    notes.append(f"Ranked by {result.score.replace('_', ' ')}.")
    notes.append("Perceived appearance, as a model answers: no evidence of who somebody is.")
    sheet = search_sheet(
        [open_person(one, image_column=image_column) for one in people],
        [[(why["met"], why["condition"], _percent(why["probability"])) for why in one["why"]] for one in people],
        names=[f"{one['rank']}   {one['score']:.2f}" for one in people],
        title=title or result.query or result.score,
        note=" ".join(notes),
    )
    if path is not None:
        try:
            sheet.save(path)
        except ValueError as error:
            raise ParValueError(f"path={os.fspath(path)!r}: {error}; expected an ending such as .png") from error
    return sheet


def _percent(probability: float) -> str:
    """In whole percent from 1 to 99: after rounding, 0 or 100 would look certain."""
    return f"{min(99, max(1, round(100 * probability)))}%"


def principal_axes(vectors: np.ndarray, count: int = 2) -> np.ndarray:
    """Vectors `(N, D)` on their first principal axes, `(N, count)`: centred, the signs such that the largest entry of
    each axis is positive."""
    centred = np.asarray(vectors, dtype=np.float64) - np.mean(vectors, axis=0, dtype=np.float64)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:count]
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])
    return centred @ (axes * signs[:, None]).T


def neighbour_map(vectors: np.ndarray, *, perplexity: float = 15.0, steps: int = 500) -> np.ndarray:
    """t-SNE (van der Maaten and Hinton, 2008) of some hundred vectors `(N, D)`, `(N, 2)`: near ones lie together.

    Exact, by gradient descent from the principal axes, so that the same vectors give the same map. Distances between
    groups mean nothing.

    Args:
        vectors: at most 2000, because all pairs are compared.
        perplexity: about how many neighbours count; less than N / 3.
        steps: of the descent.

    Raises:
        ValueError: fewer than 4 vectors, or more than 2000.
    """
    count = len(vectors)
    if not 4 <= count <= 2000:
        raise ParValueError(f"vectors has {count} rows, expected 4 to 2000")
    perplexity = min(perplexity, (count - 1) / 3)
    vectors = np.asarray(vectors, dtype=np.float64)
    square = (vectors**2).sum(1)
    distances = np.maximum(square[:, None] + square[None] - 2 * vectors @ vectors.T, 0)
    np.fill_diagonal(distances, np.inf)
    near = np.zeros((count, count))
    for i in range(count):  # the width of each Gaussian that gives this perplexity, by bisection
        low, high, width = 0.0, np.inf, 1.0
        row = distances[i] - distances[i].min()
        for _ in range(60):
            p = np.exp(-row * width)
            p /= p.sum()
            entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
            if entropy > np.log(perplexity):
                low, width = width, width * 2 if high == np.inf else (width + high) / 2
            else:
                high, width = width, (low + width) / 2
        near[i] = p
    near = np.maximum((near + near.T) / (2 * count), 1e-12)
    points = principal_axes(vectors)
    points = points / points[:, 0].std() * 1e-2
    speed, gains = np.zeros_like(points), np.ones_like(points)
    for step in range(steps):
        square = (points**2).sum(1)
        weights = 1 / (1 + np.maximum(square[:, None] + square[None] - 2 * points @ points.T, 0))
        np.fill_diagonal(weights, 0)
        pull = near * (12 if step < steps // 4 else 1) - weights / weights.sum()
        pull *= weights
        gradient = 4 * (pull.sum(1)[:, None] * points - pull @ points)
        same = np.sign(gradient) == np.sign(speed)
        gains = np.maximum(np.where(same, gains * 0.8, gains + 0.2), 0.01)
        speed = (0.5 if step < steps // 4 else 0.8) * speed - max(count / 12, 50) * gains * gradient
        points = points + speed
        points = points - points.mean(0)
    return points


def map_of_people(
    queries: np.ndarray,
    people: Sequence[np.ndarray],
    path: str | os.PathLike,
    *,
    names: Sequence[str],
    title: str = "Queries (stars) and the people who match them (circles)",
) -> None:
    """Draws queries and the people who match each of them in two dimensions, as figure 4 of CLEAR.

    By t-SNE, and beside it on the first two principal axes, whose distances can be compared.

    Args:
        queries: `(Q, D)` embeddings of queries.
        people: for each query the embeddings `(N, D)` of people who match it.
        path: the file to write.
        names: of the queries.
        title: the heading.

    Raises:
        ValueError: the numbers of queries, people and names differ.
        ImportError: matplotlib is not installed.
    """
    if not len(queries) == len(people) == len(names):
        raise ParValueError(f"there are {len(queries)} queries, {len(people)} groups of people and {len(names)} names")
    figures = require("matplotlib.figure", "demo")
    everything = np.concatenate([np.asarray(queries), *map(np.asarray, people)])
    owner = np.concatenate([np.arange(len(queries)), np.repeat(np.arange(len(queries)), [len(one) for one in people])])
    figure = figures.Figure(figsize=(13, 6.2), layout="constrained")
    figure.suptitle(title)
    colours = require("matplotlib", "demo").colormaps["tab10"]
    for axes, (what, points) in zip(
        figure.subplots(1, 2),
        (("t-SNE", neighbour_map(everything)), ("first two principal axes", principal_axes(everything))),
    ):
        for number, name in enumerate(names):
            mine = np.flatnonzero(owner == number)
            colour = colours(number % 10)
            axes.scatter(*points[mine[1:]].T, s=28, facecolors="none", edgecolors=[colour], linewidths=1.2)
            axes.scatter(
                *points[mine[:1]].T, s=230, marker="*", color=[colour], edgecolors="black", label=name, zorder=3
            )
        axes.set_title(what)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, dpi=110)
