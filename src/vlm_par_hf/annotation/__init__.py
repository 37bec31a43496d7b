"""Attributes of very many people: folders, globs and parquet files in, one JSON Lines, parquet or CSV file out.

    from vlm_par_hf import Annotator, annotate

    report = annotate("crops/", "out.jsonl", model=folder)      # what `vlm-par predict crops/ --out out.jsonl` runs
    report = annotate("crops/", "out.parquet", ray_workers=8)   # the same on Ray
    dataset.map(Annotator(folder), batched=True)                # inside your own `datasets` or Ray Data flow

A run keeps its answers in `OUT.partial`, in parts that get their names when they are complete. It may be killed at any
moment; started again, it computes the missing parts. Batches hold the same images in every run, so the output equals
that of an uninterrupted run, byte for byte on the same machine and with the same batch size.
"""

from vlm_par_hf.images.opening import IMAGE_SUFFIXES

from .annotator import Annotator
from .box_files import read_boxes
from .inputs import ImageList, Row
from .running import annotate, draw_annotation, list_images


__all__ = [
    "IMAGE_SUFFIXES",
    "Annotator",
    "ImageList",
    "Row",
    "annotate",
    "draw_annotation",
    "list_images",
    "read_boxes",
]
