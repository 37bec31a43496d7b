"""`vlm-par track`, as a user types it."""

import json

import pytest

from modeling_tests.image_folders import save_model
from modeling_tests.videos import damage_packet, walkers, write_tracks, write_video
from vlm_par_hf.cli.main import main


pytest.importorskip("av")


def test_track(tmp_path, capsys):
    pictures, rows = walkers(30)
    video, tracks = write_video(tmp_path / "a.mp4", pictures), write_tracks(tmp_path / "t.txt", rows)
    save_model(tmp_path / "model")
    common = ["track", str(video), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out.jsonl")]
    arguments = [*common, "--detector", str(tracks), "--every", "0.5", "--budget", "3", "--attributes", "Hat"]
    assert main(arguments) == 0
    assert "2 people in 30 frames, from 6 pictures" in capsys.readouterr().out
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [list(one["attributes"]) for one in found] == [["Hat"], ["Hat"]]

    damage_packet(video, 13)
    assert main(arguments) == 2
    assert "is the work of another run" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 1
    assert "a.mp4, frame" in (said := capsys.readouterr().out) and "cannot be decoded" in said

    assert main([*common, "--detector", str(tracks), "--first-frame", "0", "--overwrite"]) == 2
    assert "line 59 names frame 30, and the video has 30 frames: expected 0 to 29" in capsys.readouterr().err
    assert main(["track", str(tracks), *common[2:], "--detector", str(tracks), "--overwrite"]) == 2
    assert "t.txt' cannot be opened: it is no video" in capsys.readouterr().err
