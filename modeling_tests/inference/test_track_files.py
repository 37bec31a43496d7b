"""Track files: who is where, from 1 or from 0; what is wrong in them is named with its line."""

import numpy as np
import pytest

from modeling_tests.videos import write_tracks
from vlm_par_hf.errors import ParError
from vlm_par_hf.inference.track_files import read_track_file


def write(tmp_path, text):
    path = tmp_path / "a.txt"
    path.write_text(text)
    return path


def test_tracks(tmp_path):
    path = write(tmp_path, "2,7,1.5,2,10,20,1,-1,-1,-1\n\n1,7,1,2,10,20,1,-1,-1,-1\n1,3,5,6,7,8\n")
    file = read_track_file(path, num_frames=2)
    assert file.frames.tolist() == [0, 0, 1] and file.ids.tolist() == [3, 7, 7] and file.left_out == 0
    assert file.boxes.tolist() == [[5, 6, 12, 14], [1, 2, 11, 22], [1.5, 2, 11.5, 22]]
    assert file.of(0) == slice(0, 2) and file.of(1) == slice(2, 3) and file.of(5) == slice(3, 3)
    assert file.ends() == {0: [3], 1: [7]}
    zero = read_track_file(write(tmp_path, "0,1,1,2,3,4\n1,1,1,2,3,4"), first_frame=0, num_frames=2)
    assert zero.frames.tolist() == [0, 1]


def test_detections_and_a_header(tmp_path):
    file = read_track_file(write(tmp_path, "frame,id,x,y,w,h,score\n1,-1,5,6,7,8,0.25\n3,-1,5,6,7,8,1\n"))
    assert file.ids is None and file.scores.tolist() == [0.25, 1]


def test_ground_truth_of_the_challenge_leaves_out_what_it_marks(tmp_path):
    file = read_track_file(write(tmp_path, "1,1,5,6,7,8,1,1,0.5\n1,2,5,6,7,8,0,1,1\n1,3,5,6,7,8,1,12,1\n"))
    assert file.ids.tolist() == [1] and file.left_out == 2


def test_a_file_without_rows_is_nobody(tmp_path):
    file = read_track_file(write_tracks(tmp_path / "a.txt", []))
    assert len(file.frames) == 0 and file.ids.dtype == np.int64 and file.ends() == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,1,5,6,7,8\n9,1,5,6,7,8\n", r"line 2 names frame 9, and the video has 4 frames: expected 1 to 4"),
        ("0,1,5,6,7,8\n", r"line 1 names frame 0, expected 1 for the first frame; .*--first-frame 0"),
        ("1,1,5,6,7\n", r"line 1 is '1,1,5,6,7', expected numbers frame, id, x, y, width, height"),
        ("1,1,5,6,7,8\n1,1,5,six,7,8\n", "line 2 is"),
        ("1,1,5,6,0,8\n", "line 1: a box of width 0 and height 8, expected both above 0"),
        ("1,1,5,nan,2,8\n", "line 1 holds .* expected finite numbers"),
        ("1.5,1,5,6,2,8\n", "line 1: frame 1.5 and id 1, expected whole numbers"),
        ("1,-1,5,6,2,8,80\n", "line 1: score 80, expected a number from 0 to 1"),
        ("1,2,5,6,2,8\n1,-1,5,6,2,8\n", r"line 2 has no id \(-1\), and others have one"),
        ("1,2,5,6,2,8\n2,2,5,6,2,8\n1,2,9,6,2,8\n", "lines 1 and 3: id 2 is twice in frame 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, expected):
    with pytest.raises(ParError, match=expected):
        read_track_file(write(tmp_path, text), num_frames=4)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ParError, match="there is no such file"):
        read_track_file(tmp_path / "none.txt")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ParError, match="is no text"):
        read_track_file(tmp_path / "b.txt")
    with pytest.raises(ParError, match="first_frame is 2, expected 1"):
        read_track_file(write(tmp_path, ""), first_frame=2)
