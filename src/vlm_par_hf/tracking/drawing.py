"""A video with the people of another one framed, and their answers beside them."""

import os
import uuid
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from huggingface_hub.utils import tqdm
from PIL import Image

from vlm_par_hf.inference.following import pixel_box
from vlm_par_hf.inference.track_files import TrackFile
from vlm_par_hf.inference.videos import Video
from vlm_par_hf.utils import require
from vlm_par_hf.visualization import draw_boxes, tag_lines


__all__ = ["draw_video"]

# Encoders in the order of wishes; the first is under the GPL, and not in every build of FFmpeg.
_CODECS = ("libx264", "libopenh264", "mpeg4")
_TIME_BASE = Fraction(1, 90_000)
_TAG_LINES = 4  # answers beside a person: more would hide others


def draw_video(
    video: Video,
    rows: Sequence[Mapping[str, Any]],
    boxes: TrackFile,
    path: str | os.PathLike,
    *,
    progress: bool = True,
) -> None:
    """Writes a video in which each person has a box, their id and their positive answers; without sound.

    Frames keep their times. The file is written as a whole: another one appears under its name only when it is
    complete.

    Args:
        video: that was followed.
        rows: of the people, as `track` writes them.
        boxes: of the frames, as `track` writes them.
        path: the file to write (`.mp4`).
        progress: show a bar on standard error.
    """
    av = require("av", "video")
    path = Path(path)
    tags = {row["id"]: [f"#{row['id']}", *tag_lines(row, _TAG_LINES)] for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.tmp{path.suffix}")
    # Encoders want even sizes.
    width, height = (size + size % 2 for size in video.size)
    try:
        with av.open(str(temporary), "w") as container:
            codec = next(name for name in _CODECS if name in av.codecs_available)
            stream = container.add_stream(codec, rate=Fraction(video.rate).limit_denominator(1001))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.time_base = _TIME_BASE
            if codec == "libx264":
                stream.options = {"preset": "veryfast", "crf": "21"}
            else:
                stream.bit_rate = max(1_000_000, width * height * 4)
            bar = tqdm(total=video.num_frames, desc="draw", unit="frame", disable=not progress)
            with bar:
                for frame in video.frames():
                    here = boxes.of(frame.index)
                    shown = [
                        (number, box)
                        for number, box in zip(boxes.ids[here].tolist(), boxes.boxes[here])
                        if pixel_box(box, video.size) is not None
                    ]
                    picture = Image.fromarray(frame.pixels)
                    if shown:
                        picture = draw_boxes(
                            picture,
                            [box.tolist() for _, box in shown],
                            [tags[number] for number, _ in shown],
                            numbers=[number for number, _ in shown],
                            font_size=max(11, round(min(video.size) / 44)),
                        )
                    if picture.size != (width, height):
                        picture = picture.crop((0, 0, width, height))
                    drawn = av.VideoFrame.from_image(picture)
                    drawn.pts, drawn.time_base = round(frame.time / _TIME_BASE), _TIME_BASE
                    container.mux(stream.encode(drawn))
                    bar.update(1)
            container.mux(stream.encode(None))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
