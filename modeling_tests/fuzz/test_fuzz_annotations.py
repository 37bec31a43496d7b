"""Text lists of the public data sets: UPAR's tables, PETA's Label.txt and PA-100K's person groups."""

import csv
import io
import tempfile
from pathlib import Path

from hypothesis import strategies as st
from scipy.io import savemat

from modeling_tests.fuzz.fuzzing import Area
from modeling_tests.original_files import PETA_NAMES
from modeling_tests.pa100k_files import pa100k_variables
from vlm_par_hf.data import read_pa100k, read_peta, read_upar
from vlm_par_hf.labels.tables import get_schema


AREA = Area("annotation lists", "the drawn labels and persons")

ROOT = Path(tempfile.mkdtemp(prefix="lists"))
UPAR = get_schema("upar40").names


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# ---- UPAR ----


@st.composite
def upar_tables(draw):
    rows = [
        draw(st.lists(st.sampled_from([0, 1, -1]), min_size=40, max_size=40)) for _ in range(draw(st.integers(1, 5)))
    ]
    return rows, draw(st.permutations(range(40)))


def upar_text(rows, order, line_end="\n", quoting=csv.QUOTE_MINIMAL) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=quoting, lineterminator=line_end)
    writer.writerow(["# image", *(UPAR[position] for position in order)])
    for number, row in enumerate(rows):
        writer.writerow([f"PA100k/{number}.jpg", *(row[position] for position in order)])
    return stream.getvalue()


def read_upar_labels(data: bytes):
    write(ROOT / "upar" / "train.csv", data)
    return [record.labels.tolist() for record in read_upar(ROOT / "upar")[1]["train"]]


@AREA.fuzz(
    400,
    table=upar_tables(),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    mark=st.booleans(),
)
def test_upar(table, line_end, quoting, mark):
    rows, order = table
    data = upar_text(rows, order, line_end, quoting).encode("utf-8-sig" if mark else "utf-8")
    wanted = [[-100 if value == -1 else value for value in row] for row in rows]
    AREA.judge(lambda: read_upar_labels(data), lambda found: found == wanted)


UPAR_FAULTS = {
    "value": lambda text: text.replace(".jpg,", ".jpg,2,", 1),
    "cell less": lambda text: text.rstrip().rsplit(",", 1)[0],
    "cell more": lambda text: text.rstrip() + ",1",
    "float": lambda text: text.rstrip() + ".5",
    "column": lambda text: text.replace(",Age-Young", ",Age-Yung", 1),
    "twice": lambda text: text + text.rstrip().rsplit("\n", 1)[1],
    "above": lambda text: text.replace("PA100k/", "../", 1),
    "null": lambda text: text.replace("PA100k/", "\0/", 1),
    "no header": lambda text: text.split("\n", 1)[1],
    "quote": lambda text: text + '"',
    "empty": lambda text: "",
    "header only": lambda text: text.split("\n", 1)[0],
    "long": lambda text: text.replace("PA100k/", "a" * 200_000, 1),
}


@AREA.fuzz(
    300,
    table=upar_tables(),
    fault=st.sampled_from(sorted(UPAR_FAULTS)),
    encoding=st.sampled_from(["utf-8"] * 4 + ["utf-16"]),
)
def test_faults_of_upar(table, fault, encoding):
    data = UPAR_FAULTS[fault](upar_text(*table)).encode(encoding)
    AREA.judge(lambda: read_upar_labels(data), lambda found: False, must_refuse=True)


# ---- Label.txt ----


def peta_answer():
    schema, splits, _ = read_peta(ROOT / "peta")
    return {
        record.image_id: {name for name, value in zip(schema.names, record.labels) if value == 1}
        for records in splits.values()
        for record in records
    }


@AREA.fuzz(
    400,
    persons=st.lists(st.sets(st.sampled_from(PETA_NAMES[:35]), min_size=1, max_size=6), min_size=4, max_size=6),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    space=st.sampled_from([" ", "\t", "  "]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "latin-1"]),
    strange=st.booleans(),
)
def test_label_txt(persons, line_end, space, encoding, strange):
    folder = ROOT / "peta" / "PETA dataset" / "VIPeR" / "archive"
    for number in range(6):
        write(folder / f"{number:03d}_0.png", b"")
    lines = [space.join([f"{number:03d}", *sorted(names)]) for number, names in enumerate(persons)]
    if strange:
        lines.append(f"999{space}hairLong{space}café")
    write(folder / "Label.txt", line_end.join([*lines, ""]).encode(encoding))
    wanted = {f"VIPeR/{number:03d}_0.png": names for number, names in enumerate(persons)}
    AREA.judge(peta_answer, lambda found: found == wanted)


@AREA.fuzz(
    300,
    data=st.one_of(
        st.binary(max_size=60), st.text(max_size=40).map(lambda text: ("0" + text).encode("utf-8", "replace"))
    ),
)
def test_other_label_txt(data):
    folder = ROOT / "peta" / "PETA dataset" / "VIPeR" / "archive"
    for number in range(6):
        write(folder / f"{number:03d}_0.png", b"")
    known = "\n".join(f"{number:03d} hairLong" for number in range(6))
    write(folder / "Label.txt", known.encode() + b"\n" + data)
    wanted = {f"VIPeR/{number:03d}_0.png": {"hairLong"} for number in range(6)}
    AREA.judge(peta_answer, lambda found: found == wanted)


# ---- person_groups.csv ----

savemat(write(ROOT / "pa100k" / "annotation.mat", b""), pa100k_variables((4, 1, 1)))


def groups_answer(text: str, encoding: str = "utf-8"):
    write(ROOT / "pa100k" / "person_groups.csv", text.encode(encoding))
    return [record.person_id for record in read_pa100k(ROOT / "pa100k", "train")]


SPELLED = {None: ["", "-1", "nan", "unknown"], **{n: [str(n), f"{n:04d}", f"{n}.0"] for n in (0, 7, 12)}}


@AREA.fuzz(
    400,
    groups=st.lists(st.sampled_from(list(SPELLED)), min_size=4, max_size=4),
    choice=st.randoms(use_true_random=False),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig"]),
)
def test_person_groups(groups, choice, line_end, encoding):
    rows = [f"{number:06d}.jpg,{choice.choice(SPELLED[group])}" for number, group in enumerate(groups, start=1)]
    AREA.judge(
        lambda: groups_answer(line_end.join(["image,group", *rows, ""]), encoding), lambda found: found == groups
    )


@AREA.fuzz(
    200,
    line=st.sampled_from(
        ["000001.jpg,2", "000009.jpg", "x,y", ",1", "000009.jpg,1,1", '"', "000009.jpg,1e99", "a,1.5"]
    ),
    encoding=st.sampled_from(["utf-8"] * 3 + ["utf-16"]),
)
def test_faults_of_person_groups(line, encoding):
    rows = [f"{number:06d}.jpg,1" for number in range(1, 5)]
    AREA.judge(
        lambda: groups_answer("\n".join(["image,group", *rows, line]), encoding), lambda found: False, must_refuse=True
    )
