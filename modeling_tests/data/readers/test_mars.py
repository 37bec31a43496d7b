"""MARS-Attribute in both editions of its table, and DukeMTMC-VID-Attribute, in the layout of their authors."""

import pytest

from modeling_tests.original_files import write_picture
from vlm_par_hf.data import dataset_schema, load_par_dataset, read_duke_video, read_mars
from vlm_par_hf.data.readers.tracklet_tables import in_order
from vlm_par_hf.errors import ParFileNotFoundError, ParTypeError, ParValueError
from vlm_par_hf.labels.tables import get_schema


MARS = (
    "person_id,camera_id,tracklets_id,motion,pose,occlusion,cut-out,multi-person,background-dominant,target-change,"
    "target-miss,wrong-target,top color,bottom color,age,top length,bottom length,shoulder bag,backpack,hat,hand bag,"
    "hair,gender,bottom type\r\n"
    "1,2,58,0,3,0,0,0,0,0,0,0,8,0,1,1,1,0,0,0,0,1,1,0\r\n"
    "2,1,1,3,5,1,0,0,0,0,0,1,0,9,2,0,0,1,1,0,0,0,0,1\r\n"
    "3,6,2,4,0,0,0,0,0,0,0,0,4,4,3,1,0,0,0,1,1,0,0,1\r\n"
    "5,5,9,0,2,0,0,0,0,0,0,0,1,1,2,1,1,0,0,0,0,1,1,1\r\n"
)
OLD_MARS = (
    "person-id,camera,tracklet,Tops.c,Bottoms.c,Age,Tops.l,Bottoms.l,shoulder bag,backpack,hat,handbag,hair,gender,"
    "Bottoms.t\n1,2,58,8,0,1,1,1,0,0,0,0,1,1,0\n2,1,1,0,9,2,0,0,1,1,0,0,0,0,1\n3,6,2,4,4,3,1,0,0,0,1,1,0,0,1\n"
    "5,5,9,1,1,2,1,1,0,0,0,0,1,1,1\n"
)
DUKE = (
    "person_id,camera_id,tracklets_id,motion,pose,occlusion,cut-out,muti-person,background-dominant,target-change,"
    "target-miss,wrong-target,backpack,bag,handbag,boots,gender,hat,shoes,top,bottom color,top color\n"
    "1,2,1,0,1,0,0,0,0,0,0,0,1,0,0,0,0,0,1,0,6,7\n4,2,2199,3,4,0,0,1,0,0,0,0,0,1,0,1,1,0,0,1,4,1\n"
    "5,5,2,0,1,0,0,0,0,0,0,0,1,0,0,0,0,0,1,0,0,0\n"
)


def write_mars(root, table=MARS, names=None):
    names = names or [
        "bbox_train/0001/0001C2T0058F001.jpg", "bbox_train/0001/0001C2T0058F002.jpg",
        "bbox_train/0001/0001C2T0058F010.jpg", "bbox_train/0003/0003C6T0002F001.jpg",
        "bbox_test/0002/0002C1T0001F001.jpg", "bbox_test/0005/0005C5T0009F001.jpg",
        "bbox_test/00-1/00-1C1T0001F001.jpg", "bbox_test/0000/0000C1T0001F001.jpg",
        "bbox_test/0000/0000C1T0001F002.jpg",
    ]  # fmt: skip
    for name in names:
        write_picture(root / name)
    (root / "mars_attributes.csv").write_text(table, newline="")


def named(schema, labels):
    return {one.name: "?" if label < 0 else one.labels[label] for one, label in zip(schema, labels)}


def test_mars(tmp_path):
    write_mars(tmp_path)
    data = load_par_dataset("mars", tmp_path)
    schema = dataset_schema(data)
    assert schema == get_schema("mars") and sum(one.num_labels - one.is_binary for one in schema) == 43
    rows = [row for split in ("train", "validation") for row in data[split]]
    first = [row for row in rows if row["tracklet_id"] == "0001C2T0058"]
    assert [row["frame"] for row in first] == [0, 1, 2] and first[2]["image_id"].endswith("F010.jpg")
    assert (first[0]["person_id"], first[0]["camera_id"]) == (1, 2)
    assert named(schema, first[0]["labels"]) == {
        "top length": "short", "bottom length": "short", "shoulder bag": "no", "backpack": "no", "hat": "no",
        "hand bag": "no", "hair": "long", "gender": "female", "bottom type": "skirt", "pose": "lateral-back",
        "motion": "walking", "top color": "complex", "bottom color": "white", "age": "teenager",
    }  # fmt: skip
    assert data["test"]["tracklet_id"][:] == ["0002C1T0001", "0005C5T0009"]
    _, _, notes = read_mars(tmp_path)
    assert notes["left_out"] == {"junk": 1, "distractors": 2}
    assert notes["marked_in_table"]["occlusion"] == 1 == notes["marked_in_table"]["wrong-target"]
    assert "seed 0" in notes["division"]


def test_the_older_edition_of_the_table_has_other_names_and_no_pose_and_motion(tmp_path):
    write_mars(tmp_path, OLD_MARS)
    schema, splits, notes = read_mars(tmp_path)
    assert notes["attributes_not_in_table"] == ["pose", "motion"]
    found = named(schema, splits["test"][0].labels)
    assert (found["pose"], found["top color"], found["bottom color"], found["age"]) == (
        "?", "black", "complex", "adult",
    )  # fmt: skip


def test_fewer_frames_of_each_tracklet(tmp_path):
    write_mars(tmp_path)
    data = load_par_dataset("mars", tmp_path, num_frames=2)
    rows = [row for split in ("train", "validation") for row in data[split] if row["person_id"] == 1]
    assert [row["frame"] for row in rows] == [0, 1]
    with pytest.raises(ValueError, match="num_frames is 0; expected at least 1"):
        load_par_dataset("mars", tmp_path, num_frames=0)
    with pytest.raises(ParTypeError, match="num_frames"):
        load_par_dataset("pa100k", tmp_path, num_frames=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("8,0,1,1,1,0,0,0,0,1,1,0", "9,0,1,1,1,0,0,0,0,1,1,0"), "line 2: top color is '9'; expected a whole number"),
        (("1,2,58,0,3,0", "1,2,58,0,3,2"), "line 2: occlusion is '2'; expected a whole number from 0 to 1"),
        (("3,6,2,4,0", "1,2,58,4,0"), r"line 4: tracklet \(1, 2, 58\) .* is there twice"),
        (("tracklets_id", "number"), "line 1: no column 'tracklets_id'"),
        (("top color", "top colour"), "line 1: column 'top colour'; expected"),
        (("2,1,1,3,5", "2,1,7,3,5"), "no row of person 2, camera 1, tracklet 1"),
        (("2,1,1,3,5,1", "2,1,1,3,5"), "line 3: 23 cells; expected 24"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, change, message):
    write_mars(tmp_path, MARS.replace(*change))
    with pytest.raises(ParValueError, match=message):
        read_mars(tmp_path)


def test_files_that_are_not_there_or_have_other_names(tmp_path):
    with pytest.raises(ParFileNotFoundError, match=r"mars_attributes.csv"):
        read_mars(tmp_path)
    (tmp_path / "mars_attributes.csv").write_text(MARS)
    with pytest.raises(ParFileNotFoundError, match="no folder bbox_train"):
        read_mars(tmp_path)
    write_mars(tmp_path)
    write_picture(tmp_path / "bbox_test/0002/0003C1T0001F001.jpg")
    with pytest.raises(ParValueError, match="holds '0003C1T0001F001.jpg'; expected names like 0002C1T0001F001.jpg"):
        read_mars(tmp_path)


def write_duke(root, table=DUKE):
    for name in (
        "train/0001/0001/0001_C2_F0002_X1.jpg", "train/0001/0001/0001_C2_F0010_X2.jpg",
        "train/0005/0002/0005_C5_F0001_X1.jpg", "gallery/0004/2199/0004_C2_F0001_X1.jpg",
        "query/0004/2199/0004_C2_F0001_X1.jpg",
    ):  # fmt: skip
        write_picture(root / name)
    (root / "duke_attributes.csv").write_text(table)


def test_duke(tmp_path):
    write_duke(tmp_path)
    data = load_par_dataset("duke_video", tmp_path)
    schema = dataset_schema(data)
    assert schema == get_schema("duke_video") and sum(one.num_labels - one.is_binary for one in schema) == 36
    assert data["test"]["tracklet_id"][:] == ["2199"]  # of the query, which is part of the gallery, once
    assert named(schema, data["test"][0]["labels"]) == {
        "backpack": "no", "bag": "yes", "handbag": "no", "boots": "yes", "gender": "female", "hat": "no",
        "shoes": "dark", "top": "long", "pose": "back", "motion": "staying", "top color": "white",
        "bottom color": "blue",
    }  # fmt: skip
    with pytest.raises(ValueError, match="withdrawn by its authors"):
        load_par_dataset("duke_video")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("4,2,2199", "3,2,2199"), "no row of person 4, tracklet 2199"),
        (("4,2,2199", "4,7,2199"), "says camera 7 of tracklet 2199, whose frames are '0004_C2"),
    ],
)
def test_a_table_of_other_tracklets(tmp_path, change, message):
    write_duke(tmp_path, DUKE.replace(*change))
    with pytest.raises(ParValueError, match=message):
        read_duke_video(tmp_path)


def test_frames_are_in_the_order_of_their_numbers():
    assert in_order(["f10.jpg", "f2.jpg", "a.jpg", "f1.jpg", "7.jpg"]) == [
        "7.jpg", "a.jpg", "f1.jpg", "f2.jpg", "f10.jpg",
    ]  # fmt: skip
