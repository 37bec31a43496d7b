"""The user's own tracklets: a folder of frames per row of a table."""

import pytest

from modeling_tests.original_files import write_picture
from modeling_tests.tiny import tiny_schema
from vlm_par_hf.data import TrackletDataset, load_par_dataset
from vlm_par_hf.errors import ParFileNotFoundError, ParValueError


TABLE = "tracklet,split,person_id,Hat,Backpack,Female\na/0001,train,7,yes,no,\nb,test,8,no,yes,no\n"


def write_tracklets(root, table=TABLE):
    tiny_schema().to_json(root / "schema.json")
    (root / "labels.csv").write_text(table)
    for name in ("a/0001/frame2.png", "a/0001/frame10.png", "a/0001/frame1.png", "b/x.png"):
        write_picture(root / name)


def test_frames_of_each_row(tmp_path):
    write_tracklets(tmp_path)
    data = load_par_dataset("tracklets", tmp_path)
    assert data["train"]["image_id"][:] == ["a/0001/frame1.png", "a/0001/frame2.png", "a/0001/frame10.png"]
    assert data["train"]["frame"][:] == [0, 1, 2] and set(data["train"]["tracklet_id"]) == {"a/0001"}
    assert data["train"]["labels"][:] == [[1, 0, -100]] * 3 and data["test"]["person_id"][:] == [8]
    item = TrackletDataset(data["train"])[0]
    assert len(item["frames"]) == 3 and item["labels"].tolist() == [1, 0, -100]
    assert len(load_par_dataset("tracklets", tmp_path, num_frames=2)["train"]) == 2


def test_rows_without_frames(tmp_path):
    write_tracklets(tmp_path, TABLE + "c,test,9,no,no,no\n")
    with pytest.raises(ParFileNotFoundError, match="tracklet 'c': .* is no folder"):
        load_par_dataset("tracklets", tmp_path)
    (tmp_path / "c").mkdir()
    with pytest.raises(ParValueError, match="tracklet 'c': .* holds no image; expected its frames"):
        load_par_dataset("tracklets", tmp_path)
