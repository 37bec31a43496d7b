"""MATLAB files of a few images, written by scipy and then damaged, against scipy's own reader in another process.

scipy's reader ends its process on some of these files; there it is enough that ours does not.
"""

import io
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from scipy.io import savemat

from modeling_tests.fuzz.fuzzing import Area
from modeling_tests.original_files import peta_data, peta_variables
from modeling_tests.pa100k_files import cell, pa100k_variables
from vlm_par_hf.data.readers.matlab import load_mat_variables


AREA = Area("MATLAB files", "the drawn arrays, or scipy's reading of the damaged bytes")

PATH = Path(tempfile.mkdtemp(prefix="mat")) / "a.mat"
# Reads paths and variables from standard input, answers with the canonical form as JSON, null where scipy refuses.
REFERENCE = """
import json, sys
import numpy as np
import scipy.io

def plain(value):
    if isinstance(value, np.ndarray) and value.dtype.names:
        fields = [{name: plain(entry[name]) for name in value.dtype.names} for entry in value.ravel(order="F")]
        return ["struct", list(value.shape), fields]
    if isinstance(value, np.ndarray) and value.dtype == object:
        return ["cell", list(value.shape), [plain(entry) for entry in value.ravel(order="F")]]
    if isinstance(value, np.ndarray) and value.dtype.kind == "U":
        return ["text", [str(row) for row in value.ravel()]]
    if isinstance(value, np.ndarray):
        return ["numbers", list(value.shape), np.asarray(value, float).ravel(order="F").tolist()]
    raise TypeError(type(value))

for line in sys.stdin:
    path, *names = json.loads(line)
    try:
        found = scipy.io.loadmat(path, variable_names=names)
        answer = {name: plain(found[name]) for name in names}
    except Exception as error:
        answer = None
    print(json.dumps(answer), flush=True)
"""


def plain(value):
    """The canonical form of what our reader gives."""
    if isinstance(value, str):
        return ["text", [value] if value else []]
    if value.dtype == object and value.size and isinstance(value.ravel()[0], dict):
        entries = value.ravel(order="F")
        return ["struct", list(value.shape), [{k: plain(v) for k, v in entry.items()} for entry in entries]]
    if value.dtype == object and value.ndim == 1:
        return ["text", value.tolist()]
    if value.dtype == object:
        return ["cell", list(value.shape), [plain(entry) for entry in value.ravel(order="F")]]
    return ["numbers", list(value.shape), np.asarray(value, float).ravel(order="F").tolist()]


ENDED = {"ended": True}


class Reference:
    """scipy in a process of its own, started again when a file ended it."""

    process = None

    def read(self, names) -> dict | None:
        """The variables, None where scipy refuses them, and `ENDED` where it ended its process."""
        if self.process is None:
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                [sys.executable, "-c", REFERENCE], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
            )
        try:
            self.process.stdin.write(json.dumps([str(PATH), *names]) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self.process.wait()
            self.process = None
            return ENDED
        return json.loads(answer)


reference = Reference()


def _files() -> list[tuple[str, tuple[str, ...], bytes]]:
    small = peta_data(40)[:6].copy()
    small[:, 0] = np.arange(1, 7)
    pa100k = pa100k_variables((3, 2, 2))
    texts = {"texts": cell(["a", "", "été", "some words"]), "odd": np.array(["ab ", "cde"]), "none": np.zeros((0, 3))}
    nested = np.empty((2, 2), object)
    nested[:] = [[np.arange(3.0), cell(["x"])], [np.int8([[1, -2]]), np.zeros((2, 3, 2), np.float32)]]
    kinds = [
        (pa100k, ("attributes", "train_images_name", "train_label")),
        (peta_variables(small, sizes=(3, 1, 2)), ("peta",)),
        ({**texts, "nested": nested, "flags": np.array([[True, False]])}, ("texts", "odd", "nested", "flags", "none")),
    ]
    files = []
    for variables, names in kinds:
        for compressed in (False, True):
            stream = io.BytesIO()
            savemat(stream, variables, do_compression=compressed)
            files.append((names, stream.getvalue(), compressed))
    return files


FILES = _files()
DRAWN = []
for _names, _data, _ in FILES:
    PATH.write_bytes(_data)
    DRAWN.append(reference.read(_names))


def judge(number: int, data: bytes, *, must_refuse: bool = False) -> None:
    names, _, _ = FILES[number]
    PATH.write_bytes(data)

    def right(found):
        answer = {name: plain(value) for name, value in found.items()}
        same = json.dumps(answer) == json.dumps(DRAWN[number])
        if same:
            return True
        wanted = reference.read(names)
        # NumPy's texts lose zero characters at their end.
        return wanted is ENDED or json.dumps(answer).replace("\\u0000", "") == json.dumps(wanted).replace(
            "\\u0000", ""
        )

    AREA.judge(lambda: load_mat_variables(PATH, names, "PA-100K"), right, must_refuse=must_refuse)


def test_whole_files():
    for number, (_, data, _) in enumerate(FILES):
        assert DRAWN[number] is not None
        judge(number, data)


@AREA.fuzz(400, number=st.integers(0, len(FILES) - 1), share=st.floats(0, 0.999))
def test_truncated(number, share):
    data = FILES[number][1]
    judge(number, data[: int(share * len(data))])


@AREA.fuzz(
    1600,
    number=st.integers(0, len(FILES) - 1),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_other_bytes(number, changes):
    data = bytearray(FILES[number][1])
    for share, value in changes:
        data[128 + int(share * (len(data) - 128))] = value
    judge(number, bytes(data))


@AREA.fuzz(
    1200,
    number=st.sampled_from([n for n, (_, _, compressed) in enumerate(FILES) if not compressed]),
    share=st.floats(0, 0.999),
    word=st.one_of(
        st.sampled_from([0, 1, 2, 4, 5, 6, 8, 14, 15, 16, 255, 0x00040001, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]),
        st.integers(0, 2**32 - 1),
    ),
)
def test_other_kinds_sizes_and_dimensions(number, share, word):
    """Tags, flags and dimensions are words of four bytes."""
    data = bytearray(FILES[number][1])
    position = 128 + 4 * int(share * ((len(data) - 128) // 4 - 1))
    struct.pack_into("<I", data, position, word)
    judge(number, bytes(data))


@AREA.fuzz(200, number=st.integers(0, len(FILES) - 1), start=st.binary(min_size=0, max_size=200))
def test_other_headers(number, start):
    data = FILES[number][1]
    judge(number, start + data[128:], must_refuse=len(start) != 128 or start[124:128] != b"\x00\x01IM")
