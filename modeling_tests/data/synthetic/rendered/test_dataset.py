import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_par_hf.data import dataset_schema, load_par_dataset
from vlm_par_hf.data.synthetic.rendered import dataset as module
from vlm_par_hf.data.synthetic.rendered.render import RenderedPicture
from vlm_par_hf.labels.tables import get_schema


SIZES = {"num_train": 41, "num_validation": 3, "num_test": 4, "seed": 4}
WHOLE = {"head": 90, "face": 60, "hair": 80, "torso_front": 900, "sleeves": 200, "lower": 1200, "shoes": 90}


def _picture(person, shot):
    """In place of a rendering: a color that depends on who and which shot it is."""
    rng = np.random.default_rng((person.seed, person.person_id, shot.index, shot.camera))
    image = Image.new("RGB", (24, 48), tuple(int(v) for v in rng.integers(0, 255, 3)))
    return RenderedPicture(
        image, WHOLE, WHOLE, {"head": (9, 1, 14, 7), "hair": (8, 0, 15, 5), "shoes": (5, 40, 20, 48)}
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "render_picture", _picture)
    monkeypatch.setattr(module, "_PEOPLE_PER_JOB", 2)
    monkeypatch.setattr(module, "_JOBS_PER_FILE", 3)


def _digest(dataset):
    table = dataset.data.column("image").to_pylist()
    return hashlib.sha256(b"".join(row["bytes"] for row in table)).hexdigest()


def test_dataset_is_the_same_for_any_number_of_processes(tmp_path):
    serial = module.build_rendered_dataset(num_proc=1, cache_dir=tmp_path / "a", **SIZES)
    parallel = module.build_rendered_dataset(num_proc=2, cache_dir=tmp_path / "b", **SIZES)
    assert {split: len(part) for split, part in serial.items()} == {"train": 41, "validation": 3, "test": 4}
    for split in serial:
        assert _digest(serial[split]) == _digest(parallel[split])
        assert serial[split]["caption"][:] == parallel[split]["caption"][:]
    people = [set(part["person_id"]) for part in serial.values()]
    assert not people[0] & people[1] and not people[0] & people[2] and not people[1] & people[2]
    example = serial["train"][0]
    assert example["image"].size == (24, 48) and len(example["labels"]) == len(get_schema("rendered"))
    assert example["boxes"] == [[8, 0, 15, 7], [-1] * 4, [-1] * 4, [5, 40, 20, 48], [-1] * 4]
    assert dataset_schema(serial) == get_schema("rendered")


def test_what_is_there_is_not_made_again(tmp_path, monkeypatch):
    rendered = []
    monkeypatch.setattr(module, "render_picture", lambda *a: rendered.append(a) or _picture(*a))
    first = module.build_rendered_dataset(num_proc=1, cache_dir=tmp_path, **SIZES)
    assert len(rendered) == 42 + 4 + 4  # of whole people
    folder = next(tmp_path.iterdir())
    files = sorted((folder / "data").iterdir())
    assert [f.name for f in files if "train" in f.name] == [f"train-{n:05d}-of-00004.parquet" for n in range(4)]
    files[3].unlink()
    rendered.clear()
    again = module.build_rendered_dataset(num_proc=1, cache_dir=tmp_path, **SIZES)
    assert len(rendered) == 12 and all(_digest(first[split]) == _digest(again[split]) for split in first)
    rendered.clear()
    module.build_rendered_dataset(num_proc=1, cache_dir=tmp_path, **SIZES | {"seed": 5})
    assert rendered and len(list(tmp_path.iterdir())) == 2


def test_an_interrupted_run_leaves_whole_files_only(tmp_path, monkeypatch):
    def fail(person, shot):
        if person.person_id == 13:
            raise KeyboardInterrupt
        return _picture(person, shot)

    with monkeypatch.context() as patch:
        patch.setattr(module, "render_picture", fail)
        with pytest.raises(KeyboardInterrupt):
            module.write_rendered_dataset(tmp_path / "x", num_train=41, num_proc=1, seed=4)
    assert len(list((tmp_path / "x" / "data").iterdir())) == 2
    module.write_rendered_dataset(tmp_path / "x", num_train=41, num_proc=1, seed=4)
    whole = module.build_rendered_dataset(num_proc=1, cache_dir=tmp_path / "c", **SIZES)
    found = load_par_dataset("hub", tmp_path / "x")
    assert list(found) == ["train"] and found["train"]["image_id"][:] == whole["train"]["image_id"][:]
    assert dataset_schema(found) == get_schema("rendered") and '"name": "rendered"' in found["train"].info.description


def test_tracklets(tmp_path):
    data = module.build_rendered_dataset(
        num_train=20, num_validation=5, num_test=5, tracklet_length=5, num_proc=1, cache_dir=tmp_path, cameras=(0, 1)
    )
    train = data["train"]
    assert train["frame"][:] == list(range(5)) * 4 and len(set(train["tracklet_id"])) == 4
    assert set(train["person_id"]) == {0, 1} and train["camera_id"][:] == [0] * 5 + [1] * 5 + [0] * 5 + [1] * 5


def test_by_name_with_some_attributes(tmp_path):
    wanted = get_schema("rendered").subset(["View", "Hat"])
    data = load_par_dataset("rendered", schema=wanted, num_proc=1, cache_dir=tmp_path, **SIZES)
    assert dataset_schema(data) == wanted and len(data["test"][0]["labels"]) == 2
    with pytest.raises(ValueError, match="'rendered' is rendered, not read"):
        load_par_dataset("rendered", tmp_path)


def test_command_line(tmp_path):
    module.main(["--out", str(tmp_path / "y"), "--train", "6", "--test", "2", "--seed", "1000", "--num-proc", "1"])
    assert {path.name for path in Path(tmp_path / "y" / "data").iterdir()} == {
        "train-00000-of-00001.parquet", "test-00000-of-00001.parquet",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 0}, "num_train is 0"),
        ({"num_test": True}, "num_test is True"),
        ({"cameras": (2,)}, "cameras is"),
        ({"cameras": ()}, "cameras is"),
        ({"seed": 1000}, "embedded backbone"),
        ({"pictures_per_person": 0}, "pictures_per_person is 0"),
        ({"tracklet_length": 1}, "tracklet_length is 1"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        module.build_rendered_dataset(**arguments, cache_dir=tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path):
    module.write_rendered_dataset(tmp_path / "x", num_train=2, num_proc=1)
    with pytest.raises(ValueError, match="holds pictures of other arguments"):
        module.write_rendered_dataset(tmp_path / "x", num_train=3, num_proc=1)
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        module.write_rendered_dataset(tmp_path / "z", num_train=2, num_proc=1)
