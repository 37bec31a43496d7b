"""Files of a stopped or finished annotation that were damaged before it goes on."""

import shutil
from pathlib import Path

import pytest
from hypothesis import strategies as st

from modeling_tests.fuzz.fuzzing import Area
from modeling_tests.fuzz.mutations import damaged_bytes, damages
from modeling_tests.image_folders import save_image, save_model
from vlm_par_hf.annotation import Annotator, annotate, running


AREA = Area("parts", "the bytes of a run whose files nobody damaged")
STOPPED = ("part-000000.jsonl", "part-000001.jsonl", "run.json", "inputs.jsonl")
STATE: dict = {}


@pytest.fixture(scope="module", autouse=True)
def whole(tmp_path_factory):
    """A finished run, and one that was stopped after two of three parts, under one model that stays loaded."""
    root = tmp_path_factory.mktemp("parts")
    save_model(root / "model")
    for number in range(6):
        save_image(root / "images" / f"{number}.png", number)
    (root / "images" / "3.png").write_bytes(b"<html>")
    annotator = Annotator(str(root / "model"), batch_size=2)
    digest = annotator.fingerprint()
    annotator.fingerprint = lambda: digest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "Annotator", lambda *given, **named: annotator)
        STATE.update(root=root, out=root / "work" / "out.jsonl")
        (root / "work").mkdir()
        stop = running.assemble
        patch.setattr(running, "assemble", lambda *given: None)
        go_on()
        partial = Path(f"{STATE['out']}.partial")
        (partial / "part-000002.jsonl").unlink()
        STATE["stopped"] = {path.name: path.read_bytes() for path in partial.iterdir()}
        patch.setattr(running, "assemble", stop)
        STATE["report"] = go_on()
        names = ("out.jsonl", "out.report.json")
        STATE["finished"] = {name: (root / "work" / name).read_bytes() for name in names}
        yield


def go_on(**options):
    return annotate(
        STATE["root"] / "images", STATE["out"], model=str(STATE["root"] / "model"), images_per_part=2, progress=False,
        **options,
    )  # fmt: skip


def is_whole(report):
    work = STATE["out"].parent
    found = {path.name: path.read_bytes() for path in work.iterdir() if path.is_file()}
    assert found == STATE["finished"], "other files"
    assert report == STATE["report"], "another report"
    return True


def begin(folder: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(STATE["out"].parent)
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


@AREA.fuzz(
    1500,
    changes=st.lists(st.tuples(st.sampled_from(STOPPED), damages()), min_size=1, max_size=2),
    swapped=st.booleans(),
    overwrite=st.booleans(),
)
def test_a_stopped_run_goes_on(changes, swapped, overwrite):
    files = dict(STATE["stopped"])
    if swapped and changes[0][1][1] % 5 == 0:
        files["part-000000.jsonl"], files["part-000001.jsonl"] = files["part-000001.jsonl"], files["part-000000.jsonl"]
    for name, damage in changes:
        files[name] = damaged_bytes(files[name], damage)
    begin(Path(f"{STATE['out']}.partial"), files)
    AREA.judge(lambda: go_on(overwrite=overwrite), is_whole)


@AREA.fuzz(700, name=st.sampled_from(["out.jsonl", "out.report.json"]), damage=damages(), overwrite=st.booleans())
def test_a_finished_run_is_started_again(name, damage, overwrite):
    files = dict(STATE["finished"])
    files[name] = damaged_bytes(files[name], damage)
    begin(STATE["out"].parent, files)
    AREA.judge(lambda: go_on(overwrite=overwrite), is_whole)
