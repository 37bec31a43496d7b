"""`prepare_dataset`: everything is checked, what is written reads back equal, and interrupted work goes on."""

import json
import os
import re
import subprocess
import sys

import datasets
import pyarrow.parquet
import pytest
from PIL import Image

from modeling_tests.hub_server import DROP, HubServer
from vlm_par_hf.cli.main import main
from vlm_par_hf.data import dataset_schema, load_par_dataset, prepare_dataset
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.output_folders import LIST, OutputFolder


SCHEMA = AttributeSchema(
    [
        {"name": "Hat", "question": "is there a hat?", "prompts": ["no hat", "a hat"], "group": "top"},
        {"name": "Cap", "question": "is there a cap?", "prompts": ["no cap", "a cap"], "group": "top"},
    ]
)
SIZES = {"train": 7, "validation": 3, "test": 3}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def root(tmp_path):
    """13 pictures of their own red; jpg, bmp and png."""
    folder = tmp_path / "mine"
    folder.mkdir()
    SCHEMA.to_json(folder / "schema.json")
    lines, number = ["image,split,Hat,Cap,person_id"], 0
    for split, size in SIZES.items():
        for _ in range(size):
            name = f"{number:02d}.{('jpg', 'bmp', 'png')[number % 3]}"
            Image.new("RGB", (6, 14 + number), (10 * number, 0, 0)).save(folder / name)
            lines.append(f"{name},{split},{number % 2},{'' if number % 5 else 0},{split}{number // 2}")
            number += 1
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_what_is_written_reads_back_equal(root, tmp_path):
    out = tmp_path / "out"
    report = prepare_dataset("folder", root, out, images_per_file=4)
    names = sorted(path.name for path in (out / "data").iterdir())
    assert names == [
        "test-00000-of-00001.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet",
        "validation-00000-of-00001.parquet",
    ]  # fmt: skip
    source = load_par_dataset("folder", root)
    # The folder alone holds everything, for our loader and for one that knows nothing of this package.
    for path in root.iterdir():
        path.rename(path.with_name("gone_" + path.name))
    for data in (load_par_dataset("hub", out), datasets.load_dataset(str(out))):
        assert {split: len(part) for split, part in data.items()} == SIZES
        for split, part in data.items():
            assert part.column_names == source[split].column_names
            for column in ("labels", "image_id", "person_id"):
                assert part[column][:] == source[split][column][:]
            raw = part.cast_column("image", datasets.Image(decode=False))
            for row in raw:
                assert row["image"]["bytes"] == (root / f"gone_{row['image_id']}").read_bytes()
            assert part[0]["image"].size[0] == 6
    assert dataset_schema(load_par_dataset("hub", out)) == SCHEMA == AttributeSchema.from_json(out / "schema.json")
    assert json.loads((out / "report.json").read_text()) == report
    code = (
        f"import datasets, sys; datasets.load_dataset({str(out)!r}, cache_dir={str(tmp_path)!r})['test'][0]['image']"
    )
    assert subprocess.run([sys.executable, "-c", code + "; sys.exit('vlm_par_hf' in sys.modules)"]).returncode == 0


def test_the_report_counts(root, tmp_path):
    report = prepare_dataset("folder", root, tmp_path / "out")
    train = report["splits"]["train"]
    assert train["images"] == 7 and train["persons"] == 4
    assert train["labels"]["Hat"] == {"counts": {"no": 4, "yes": 3}, "unknown": 0, "priors": [0.571429, 0.428571]}
    assert train["labels"]["Cap"]["unknown"] == 5
    assert train["size"] == {"smallest": [6, 14], "median": [6, 17], "largest": [6, 20]}
    assert report["broken_images"]["count"] == report["same_content_across_splits"]["count"] == 0


def test_duplicates_people_and_groups(root, tmp_path, caplog):
    Image.open(root / "00.jpg").save(root / "11.png")  # the same pixels in another format
    (root / "04.bmp").write_bytes((root / "01.bmp").read_bytes())
    text = (root / "labels.csv").read_text().replace("11.png,test,1,,test5", "11.png,test,1,1,train0")
    (root / "labels.csv").write_text(text)
    report = prepare_dataset("folder", root, tmp_path / "out")
    assert report["same_content_across_splits"] == {"count": 1, "first": [["train", "00.jpg", "test", "11.png"]]}
    assert report["same_content_within_a_split"] == {"count": 1, "first": [["train", "01.bmp", "train", "04.bmp"]]}
    assert report["persons_in_several_splits"] == {"count": 1, "first": ["train0"]}
    assert report["splits"]["test"]["images_that_break_a_group"] == {"top": 1}
    assert "1 images have the content of an image in another split" in caplog.text


def test_broken_images_are_all_named_then_mended_or_left_out(root, tmp_path, caplog):
    good = (root / "05.png").read_bytes()
    (root / "05.png").write_bytes(good[:50])
    (root / "08.png").write_bytes(b"<!DOCTYPE html><html>404 Not Found</html>")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="2 images cannot be read, the first is '05.png'.*broken=\"skip\""):
        prepare_dataset("folder", root, out)
    assert not (out / "schema.json").exists()  # nothing that looks finished
    errors = json.loads((out / "report.json").read_text())["broken_images"]["first"]
    assert [item["image_id"] for item in errors] == ["05.png", "08.png"]
    assert "is a web page, not an image" in errors[1]["error"] and errors[1]["split"] == "validation"
    (root / "05.png").write_bytes(good)
    report = prepare_dataset("folder", root, out, broken="skip")
    assert report["broken_images"]["count"] == 1 and report["splits"]["validation"]["images"] == 2
    assert "1 images could not be read and are left out" in caplog.text
    data = load_par_dataset("hub", out)
    assert data["validation"]["image_id"][:] == ["07.bmp", "09.jpg"] and len(data["train"]) == 7
    notes = json.loads(data["validation"].info.description)
    assert notes["skipped_images"]["validation"] == 1 and notes["name"] == "out"


def test_interrupted_work_goes_on(root, tmp_path, monkeypatch):
    from vlm_par_hf.data import prepare

    out, check, seen = tmp_path / "out", prepare._check_image, []

    def stop_at_nine(row):
        seen.append(row["image_id"])
        if row["image_id"] == "08.png":
            raise KeyboardInterrupt
        return check(row)

    monkeypatch.setattr(prepare, "_check_image", stop_at_nine)
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset("folder", root, out, images_per_file=4)
    assert {path.name for path in (out / "data").glob("*.parquet")} == {
        "train-00000-of-00002.parquet", "train-00001-of-00002.parquet",
    }  # fmt: skip
    first = (out / "data" / "train-00000-of-00002.parquet").stat().st_mtime_ns
    seen.clear()
    monkeypatch.setattr(prepare, "_check_image", lambda row: seen.append(row["image_id"]) or check(row))
    prepare_dataset("folder", root, out, images_per_file=4)
    assert sorted(seen) == ["07.bmp", "08.png", "09.jpg", "10.bmp", "11.png", "12.jpg"]
    assert (out / "data" / "train-00000-of-00002.parquet").stat().st_mtime_ns == first
    assert {split: len(part) for split, part in load_par_dataset("hub", out).items()} == SIZES


def test_other_work_is_not_mixed_in(root, tmp_path):
    out = tmp_path / "out"
    prepare_dataset("folder", root, out)
    with pytest.raises(ValueError, match="holds the work of other arguments"):
        prepare_dataset("folder", root, out, images_per_file=4)
    prepare_dataset("folder", root, out, images_per_file=4, overwrite=True)
    assert len(list((out / "data").glob("train-*"))) == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is not empty; expected a new folder"):
        prepare_dataset("folder", root, tmp_path / "full")


def test_drawings_are_written_too(tmp_path):
    sizes = {"num_train": 4, "num_validation": 2, "num_test": 2}
    prepare_dataset("synthetic", None, tmp_path / "out", num_proc=1, **sizes)
    drawn, data = load_par_dataset("synthetic", num_proc=1, **sizes), load_par_dataset("hub", tmp_path / "out")
    assert data["test"]["labels"][:] == drawn["test"]["labels"][:] and dataset_schema(data) == dataset_schema(drawn)
    assert data["test"][1]["image"].tobytes() == drawn["test"][1]["image"].tobytes()
    # Drawings stay drawings wherever they are loaded from, and say which ones they are.
    first, second = (json.loads(one["test"].info.description) for one in (drawn, data))
    assert first["name"] == second["name"] == "synthetic" and first["options"] == second["options"]
    assert first["options"]["num_train"] == 4
    assert "# synthetic\n\n**SYNTHETIC**" in (tmp_path / "out" / "README.md").read_text()


# Where the Hub answers badly, its library tries again half a minute long; a test has no time for that.
HASTE = "import time; time.sleep = lambda seconds: None"
UPLOAD = f"""
{HASTE}
import sys
from vlm_par_hf.data import prepare_dataset

root, out, *numbers = sys.argv[1:]
try:
    for number in numbers:
        prepare_dataset("folder", root, out + number, images_per_file=int(number), push_to_hub="org/mine")
except OSError as error:
    print(error)
"""
LOAD = f"""
{HASTE}
import json, sys
from vlm_par_hf.data import dataset_schema, load_par_dataset

data = load_par_dataset("hub", "org/mine")
rows = {{split: [part["image_id"][:], part["labels"][:]] for split, part in data.items()}}
name = json.loads(data["test"].info.description)["name"]
print(json.dumps([rows, dataset_schema(data).names, data["test"][0]["image"].size, name]))
for name in sys.argv[1:]:
    try:
        load_par_dataset("hub", f"org/{{name}}")
        print("loaded")
    except (OSError, ValueError) as error:
        print(json.dumps(f"{{type(error).__name__}}: {{error}}"))
"""


def run_against(hub, home, code, *arguments):
    environment = {**os.environ, **hub.environment(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    found = subprocess.run(command, env=environment, timeout=300, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


def test_upload_and_load_from_the_hub_in_fresh_processes(root, tmp_path):
    out, home = tmp_path / "out", tmp_path / "home"
    with HubServer(tmp_path / "server", lfs_over=1000) as hub:
        hub.fail("PUT", "/lfs/datasets/org/mine/", status=DROP, after=1)
        told = run_against(hub, home, UPLOAD, root, out, 4)
        assert "uploading to 'org/mine' failed" in told and "Nothing was committed: push again" in told
        assert hub.files("datasets/org/mine") == []
        hub.mend()
        # Again, and then in fewer files: what the first upload left in their folder must not be read with them.
        assert run_against(hub, home, UPLOAD, root, out, 4, 100) == ""
        repo = hub.repos["datasets/org/mine"]
        assert repo.private and repo.messages == ["initial commit", *2 * ["Data set prepared with vlm_par_hf"]]
        parquet = {f"data/{split}-00000-of-00001.parquet" for split in SIZES}
        card = hub.read("datasets/org/mine", "README.md").decode()
        assert "# mine\n" in card and 'load_par_dataset("hub", "org/mine")' in card
        assert "path: data/validation-*.parquet" in card and "license: other" in card
        assert set(hub.files("datasets/org/mine")) == {"schema.json", "report.json", "README.md", *parquet}

        hub.fail("GET", "/api/datasets/org/forbidden", status=403)
        hub.fail("GET", "/api/datasets/org/broken", status=500)
        hub.create("datasets/org/broken")
        answer = run_against(hub, home, LOAD, "nothing", "forbidden", "broken").splitlines()
        assert not hub.unknown
    rows, names, size, name = json.loads(answer[0])
    assert name == "org/mine"
    source = load_par_dataset("folder", root)
    assert rows == {split: [part["image_id"][:], part["labels"][:]] for split, part in source.items()}
    assert tuple(names) == SCHEMA.names and tuple(size) == source["test"][0]["image"].size
    missing, forbidden, broken = map(json.loads, answer[1:])
    assert "FileNotFoundError: the data set 'org/nothing' is not on the Hub, or not for you" in missing
    assert "FileNotFoundError: the data set 'org/forbidden' is not on the Hub, or not for you" in forbidden
    assert "500" in broken and "org/broken" in broken


def test_public_upload_of_what_must_not_be_passed_on(tmp_path):
    from scipy.io import savemat

    from modeling_tests.original_files import rapv2_variables, write_picture

    variables = rapv2_variables(images=10)
    (tmp_path / "rap" / "RAP_annotation").mkdir(parents=True)
    savemat(tmp_path / "rap" / "RAP_annotation" / "RAP_annotation.mat", variables)
    for name in variables["RAP_annotation"][0, 0]["name"].ravel():
        write_picture(tmp_path / "rap" / "RAP_dataset" / str(name[0]))
    with pytest.raises(ValueError, match="'rapv2' must not be passed on"):
        prepare_dataset("rapv2", tmp_path / "rap", tmp_path / "out", push_to_hub="org/rap", private=False)


def test_command_line(root, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["prepare", "folder", str(root), "--out", str(out), "--images-per-file", "5"]) == 0
    text = capsys.readouterr().out
    assert "train: 7 images of 4 persons" in text and "0 persons in several splits" in text
    assert pyarrow.parquet.read_metadata(out / "data" / "train-00000-of-00002.parquet").num_rows == 5
    (root / "00.jpg").write_bytes(b"")
    assert main(["prepare", "folder", str(root), "--out", str(tmp_path / "two")]) == 2
    assert "1 images cannot be read, the first is '00.jpg'" in capsys.readouterr().err
    assert main(["prepare", "folder", str(root), "--out", str(tmp_path / "two"), "--broken", "skip"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"broken": "ignore"}, "broken is 'ignore'"), ({"images_per_file": 0}, "images_per_file is 0")],
)
def test_wrong_arguments(root, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        prepare_dataset("folder", root, tmp_path / "out", **options)


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_source_is_never_deleted(root, tmp_path):
    (root / "data").mkdir()
    for path in root.glob("*.png"):
        path.rename(root / "data" / path.name)
    text = (root / "labels.csv").read_text()
    (root / "labels.csv").write_text(re.sub(r"(\d+\.png)", r"data/\1", text))
    before = tree(root)
    for out in (root, root / "out", tmp_path):
        with pytest.raises(ValueError, match="which is only read: name another output"):
            prepare_dataset("folder", root, out, overwrite=True, delete_listed=True)
    assert tree(root) == before


def test_overwrite_deletes_what_was_written_and_nothing_else(root, tmp_path):
    foreign = tmp_path / "foreign"
    (foreign / "data").mkdir(parents=True)
    for name in ("README.md", "data/train-00000-of-00001.parquet", "report.json"):
        (foreign / name).write_text("mine")
    before = tree(foreign)
    with pytest.raises(FileExistsError, match="nothing in it says that this package wrote it"):
        prepare_dataset("folder", root, foreign, overwrite=True, delete_listed=True)
    assert tree(foreign) == before

    out = tmp_path / "out"
    prepare_dataset("folder", root, out)
    (out / "notes.md").write_text("mine")
    (out / "README.md").write_text("my own card")
    with pytest.raises(FileExistsError, match=r"1 files were changed since they were written.*'README.md'"):
        prepare_dataset("folder", root, out, images_per_file=4, overwrite=True)
    assert (out / "README.md").read_text() == "my own card"
    prepare_dataset("folder", root, out)  # what is finished stays, the card too
    assert (out / "README.md").read_text() == "my own card"
    prepare_dataset("folder", root, out, images_per_file=4, overwrite=True, delete_listed=True)
    assert (out / "notes.md").read_text() == "mine" and len(list((out / "data").glob("train-*"))) == 2
    assert "# mine" in (out / "README.md").read_text()
    (out / "data" / "extra.parquet").write_text("mine")
    with pytest.raises(FileExistsError, match="'data/extra.parquet' was not written by this package"):
        prepare_dataset("folder", root, out, images_per_file=4)


def test_a_folder_of_an_earlier_version_is_shown_first(root, tmp_path):
    out = tmp_path / "out"
    prepare_dataset("folder", root, out)
    (out / LIST).unlink()
    (out / "notes.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"earlier version.*'data/test-00000.*'README.md'.*--delete-listed"):
        prepare_dataset("folder", root, out, images_per_file=4, overwrite=True)
    prepare_dataset("folder", root, out, images_per_file=4, overwrite=True, delete_listed=True)
    assert (out / "notes.md").read_text() == "mine" and len(list((out / "data").glob("train-*"))) == 2


def test_a_file_that_was_damaged_is_written_again(root, tmp_path, caplog):
    out = tmp_path / "out"
    prepare_dataset("folder", root, out, images_per_file=4)
    whole = tree(out / "data")
    path = out / "data" / "train-00001-of-00002.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    prepare_dataset("folder", root, out, images_per_file=4)
    assert "train-00001-of-00002.parquet is not as it was written" in caplog.text and tree(out / "data") == whole


def test_files_have_the_permissions_of_the_umask(root, tmp_path):
    before = os.umask(0o027)
    try:
        prepare_dataset("folder", root, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert modes == {0o640}


def test_a_file_that_was_finished_and_not_listed_is_listed_later(root, tmp_path, monkeypatch):
    """A process may end after the last byte of a file and before it says so."""
    prepare_dataset("folder", root, tmp_path / "whole", images_per_file=2, broken="skip")
    record = OutputFolder.record

    def dies(folder, names):
        names = list(names)
        if any(name.endswith(".parquet") for name in names):
            raise KeyboardInterrupt
        record(folder, names)

    monkeypatch.setattr(OutputFolder, "record", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset("folder", root, tmp_path / "killed", images_per_file=2, broken="skip")
    monkeypatch.setattr(OutputFolder, "record", record)
    prepare_dataset("folder", root, tmp_path / "killed", images_per_file=2, broken="skip")
    lists = [json.loads((tmp_path / name / LIST).read_text()) for name in ("whole", "killed")]
    assert lists[0]["files"].keys() == lists[1]["files"].keys() and lists[1]["being_written"] == []
