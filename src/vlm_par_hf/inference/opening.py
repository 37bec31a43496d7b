"""Opens what the pipeline takes as a picture: files, URLs, open files, arrays, pictures in memory."""

import os
from typing import Any

from PIL import Image

from vlm_par_hf.errors import ParTypeError, ParValueError
from vlm_par_hf.images.downloading import download, is_url
from vlm_par_hf.images.opening import MAX_FILE_BYTES, Opened, describe_image_source, open_with_size
from vlm_par_hf.utils import shorten_text


__all__ = ["is_name", "open_picture", "read_file_object"]


def is_name(source: Any) -> bool:
    """Whether a source is a path or a URL, which takes no memory to remember."""
    return isinstance(source, (str, os.PathLike)) and len(os.fspath(source)) <= 4096


def open_picture(
    source: Any, *, one_person: bool = True, timeout: float = 30.0, allow_private: bool = False
) -> Opened:
    """What the pipeline takes as a picture, as upright RGB, and the size that boxes refer to.

    Args:
        source: a URL, an open binary file, or what `open_image` takes.
        one_person: as for `open_with_size`.
        timeout, allow_private: as for `download`.

    Raises:
        ValueError, TypeError, OSError: it cannot be read.
    """
    if is_url(source):
        data = download(source, timeout=timeout, allow_private=allow_private)
        try:
            return open_with_size(data, one_person=one_person)
        except (OSError, ValueError) as error:
            name = describe_image_source(source)
            raise ParValueError(f"{name} holds no picture that can be read: {error}") from error
    if hasattr(source, "read") and not isinstance(source, Image.Image):
        source = read_file_object(source)
    return open_with_size(source, one_person=one_person)


def read_file_object(file: Any) -> bytes:
    """All bytes of an open binary file, from its beginning, wherever it stands; it is left where it was.

    Raises:
        TypeError: it is open as text.
        ValueError: it holds nothing that is left to read, more than an image file may hold, or is closed.
    """
    name = shorten_text(str(getattr(file, "name", type(file).__name__)))
    try:
        position = file.tell() if getattr(file, "seekable", bool)() else None
        if position is not None:
            file.seek(0)
        data = file.read(MAX_FILE_BYTES + 1)
        if position is not None:
            file.seek(position)
    except ValueError as error:  # a closed file, or text that is no UTF-8
        raise ParValueError(f"the open file {name!r} cannot be read: {error}") from error
    if not isinstance(data, (bytes, bytearray)):
        raise ParTypeError(
            f"the open file {name!r} gives {type(data).__name__}, expected bytes: open it with mode 'rb'"
        )
    if not data and position is None:
        raise ParValueError(f"the open file {name!r} has nothing left to read and cannot be rewound")
    if len(data) > MAX_FILE_BYTES:
        raise ParValueError(f"the open file {name!r} has more than {MAX_FILE_BYTES} bytes, expected an image file")
    return bytes(data)
