"""Video files: the right frame under the right number, at the right time, the right way up; damage is named."""

import struct

import numpy as np
import pytest

from modeling_tests.videos import SIZE, damage_packet, numbered, read_number, write_numbered, write_video
from vlm_par_hf.errors import ParError
from vlm_par_hf.inference.videos import Damage, Video, is_video_file


av = pytest.importorskip("av")


def read(path, start=0):
    video = Video(path)
    return video, [(frame.index, read_number(frame.pixels)) for frame in video.frames(start)]


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.mp4", {}), ("a.mkv", {}), ("a.ts", {}), ("a.h264", {}), ("a.avi", {"codec": "mpeg4"})],
)
def test_every_frame_has_its_number(tmp_path, name, options):
    path = write_numbered(tmp_path / name, 23, **options)
    video, found = read(path)
    assert video.num_frames == 23 and video.size == SIZE and not video.damages
    assert found == [(number, number) for number in range(23)]
    np.testing.assert_allclose(video.times, np.arange(23) / 10, atol=1e-3)
    assert video.rate == pytest.approx(10, abs=0.01)
    for start in (1, 4, 5, 13, 22):
        assert read(path, start)[1] == [(number, number) for number in range(start, 23)]


def test_one_frame(tmp_path):
    video, found = read(write_numbered(tmp_path / "a.mp4", 1))
    assert found == [(0, 0)] and video.rate == 10


def test_the_times_of_a_variable_frame_rate_are_those_of_the_file(tmp_path):
    stamps = [0, 40, 41, 300, 320, 1000, 1900, 1910]
    video, found = read(write_numbered(tmp_path / "a.mkv", 8, stamps=stamps))
    np.testing.assert_allclose(video.times * 1000, stamps, atol=0.5)
    assert found == [(number, number) for number in range(8)]
    assert [round(frame.time, 3) for frame in video.frames(5)] == [1.0, 1.9, 1.91]


def test_frames_are_upright(tmp_path):
    video, _ = read(write_numbered(tmp_path / "a.mp4", 2, rotation=-90))
    frame = next(video.frames())
    assert video.size == (SIZE[1], SIZE[0]) and frame.pixels.shape == (SIZE[0], SIZE[1], 3)
    # The first row of the file, which says the number, is the last column of the upright picture.
    assert read_number(np.rot90(frame.pixels)) == 0
    assert np.abs(np.asarray(frame.crop((10, 20, 60, 90))).astype(int) - frame.pixels[20:90, 10:60]).max() == 0
    assert frame.resized((64, 80)).shape == (80, 64, 3) and frame.brightness((0, 0, 5, 7)).shape == (7, 5)


def test_the_matrix_of_a_telephone_turns_clockwise(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 2)
    data = bytearray(path.read_bytes())
    place = data.find(b"tkhd") + 4 + 40
    assert struct.unpack(">9i", data[place : place + 36]) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    data[place : place + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, SIZE[1] << 16, 0, 1 << 30)
    path.write_bytes(data)
    frame = next(Video(path).frames(1))
    assert read_number(np.rot90(frame.pixels)) == 1


@pytest.mark.parametrize("size", [SIZE, (161, 127)])
def test_a_part_of_a_frame_is_that_part_of_the_picture(tmp_path, size):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    codec = "libx264" if size == SIZE else "mpeg4"
    frame = next(Video(write_video(tmp_path / "a.mp4", [picture[: size[1], : size[0]]], codec=codec)).frames())
    for x0, y0, x1, y1 in ((0, 0, *size), (11, 13, 52, 60), (150, 100, 151, 101), (7, 0, size[0], 5)):
        part = np.asarray(frame.crop((x0, y0, x1, y1))).astype(int)
        assert part.shape == (y1 - y0, x1 - x0, 3)
        assert np.abs(part - frame.pixels[y0:y1, x0:x1]).max() <= 2
        assert frame.brightness((x0, y0, x1, y1)).shape == (y1 - y0, x1 - x0)


def test_frames_of_other_sizes_are_scaled_to_the_first(tmp_path):
    for name, size in (("a", SIZE), ("b", (320, 256))):
        write_numbered(tmp_path / f"{name}.h264", 5, size=size)
    path = tmp_path / "both.h264"
    path.write_bytes((tmp_path / "a.h264").read_bytes() + (tmp_path / "b.h264").read_bytes())
    video = Video(path)
    frames = list(video.frames())
    assert len(frames) == 10 and video.size == SIZE
    assert {frame.pixels.shape for frame in frames} == {(SIZE[1], SIZE[0], 3)}


@pytest.mark.parametrize(("number", "missing"), [(7, (7, 7)), (10, None)])
def test_a_damaged_frame_is_named_and_the_others_keep_their_numbers(tmp_path, number, missing):
    path = write_numbered(tmp_path / "a.mp4", 20)
    damage_packet(path, number)
    video, found = read(path)
    (damage,) = video.damages
    assert damage.first <= number <= damage.last < 19
    assert [index for index, _ in found] == [n for n in range(20) if not damage.first <= n <= damage.last]
    if missing:  # of a key frame more are missing, and what builds on it may look wrong
        assert (damage.first, damage.last) == missing
        assert f"frame {number}: cannot be decoded" in str(damage)
    else:
        assert all(index == shown for index, shown in found if index < number or index >= 15)
    assert list(Video(path).frames(15))[0].index == 15


def test_a_truncated_file_gives_what_it_holds_and_says_what_is_missing(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 40, movflags="faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    video, found = read(path)
    assert 10 < len(found) < 40 and found == [(number, number) for number in range(len(found))]
    assert video.damages[-1].last == 39 and "40 frames were expected" in video.damages[-1].reason
    assert video.damages[0].first == len(found)


def test_a_truncated_file_without_a_count_of_frames(tmp_path):
    path = write_numbered(tmp_path / "a.mkv", 40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    video, found = read(path)
    assert found == [(number, number) for number in range(len(found))]
    assert video.damages == [Damage(len(found), 39, "the file ends before them, 40 frames were expected")]


def test_what_is_no_video_is_refused(tmp_path):
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    (tmp_path / "text.mp4").write_text("no video " * 50)
    (tmp_path / "letters.txt").write_text("1,1,5,6,7,8\n" * 50)
    (tmp_path / "empty.mp4").touch()
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")
    cut = write_numbered(tmp_path / "cut.mp4", 20)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    for name, expected in (
        ("sound.wav", r"sound.wav' holds no pictures \(but audio\), expected a video"),
        ("text.mp4", "text.mp4' cannot be opened: it is no video, or its end is missing"),
        ("letters.txt", "letters.txt' cannot be opened: it is no video, but text"),
        ("empty.mp4", "empty.mp4' cannot be opened"),
        ("list.m3u8", "list.m3u8' cannot be opened"),
        ("cut.mp4", "cut.mp4' cannot be opened: it is no video, or its end is missing"),
        ("none.mp4", "there is no such file"),
    ):
        with pytest.raises(ParError, match=expected):
            Video(tmp_path / name)
    with pytest.raises(ParError, match="is a URL, expected a file"):
        Video("https://example.org/a.mp4")


def test_a_video_without_a_frame_that_can_be_decoded(tmp_path):
    path = write_numbered(tmp_path / "a.mp4", 1)
    damage_packet(path, 0)
    with pytest.raises(ParError, match="none of its 1 frames can be decoded"):
        Video(path)


def test_is_video_file():
    assert is_video_file("a.MP4") and not is_video_file("a.jpg") and not is_video_file(numbered(1))
