"""Embedded paths, optional packages with their hint, files that are never half written, threads over a list."""

import json
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pyarrow
import pytest
from transformers.pipelines import PIPELINE_REGISTRY

import vlm_par_hf
from vlm_par_hf.utils import (
    atomic_write_json,
    atomic_write_text,
    default_threads,
    embedded_path,
    install_command,
    iterate,
    read_json,
    read_json_object,
    redact,
    redact_command,
    require,
    shorten,
    shorten_text,
    thread_map,
)


def test_embedded_folders_lie_inside_the_package():
    package = Path(vlm_par_hf.__file__).parent
    assert embedded_path("backbone") == package / "embedded" / "backbone"
    assert embedded_path("heads_pa100k") == package / "embedded" / "heads_pa100k"
    default = Path(PIPELINE_REGISTRY.supported_tasks["pedestrian-attributes"]["default"]["model"][0])
    assert embedded_path("heads") == default == package / "embedded" / "heads_pa100k"
    with pytest.raises(ValueError, match=r"kind must be one of \('heads', .*'heads_rendered'\), got 'head'"):
        embedded_path("head")


def test_require_gives_the_module_or_the_command_that_installs_it(tmp_path, monkeypatch):
    assert require("json", "train") is json
    assert require("os.path", "train") is os.path
    message = r'no_such_package is needed here and is not installed: pip install .*\[demo\]"'
    with pytest.raises(ImportError, match=message) as error:
        require("no_such_package.part", "demo")
    assert error.value.name == "no_such_package"


def test_require_does_not_blame_a_package_that_is_installed_but_broken(tmp_path, monkeypatch):
    (tmp_path / "broken_package_of_a_test.py").write_text("import another_missing_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="another_missing_package") as error:
        require("broken_package_of_a_test", "train")
    assert "pip install" not in str(error.value)


def test_text_is_written_as_utf8_and_replaces(tmp_path):
    path = tmp_path / "made" / "on" / "demand" / "note.txt"
    atomic_write_text(path, "größer\n")
    atomic_write_text(str(path), "zweites\n")
    assert path.read_bytes() == b"zweites\n"
    assert [item.name for item in path.parent.iterdir()] == ["note.txt"]


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    atomic_write_json(path, {"mA": 0.5})
    with pytest.raises(TypeError, match="not JSON serializable"):
        atomic_write_json(path, {"mA": object()})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write_json(path, {"mA": 0.6})
    assert json.loads(path.read_text()) == {"mA": 0.5}
    assert [item.name for item in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX systems")
def test_a_new_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_text("")
    atomic_write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "state.json"
    texts = {str(letter) * 200_000 for letter in "ab"}
    atomic_write_text(path, "a" * 200_000)
    writers = [threading.Thread(target=lambda: [atomic_write_text(path, text) for text in texts]) for _ in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_text() in texts
    for writer in writers:
        writer.join()


def test_json_is_standard_and_takes_numpy(tmp_path):
    path = tmp_path / "metrics.json"
    data = {
        "mA": np.float64(0.75),
        "count": np.int64(3),
        "undefined": float("nan"),
        "table": np.array([[1.0, np.inf]]),
        "names": ("a", "ü"),
        "at": Path("x"),
        "ok": np.True_,
    }
    atomic_write_json(path, data)
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n") and "NaN" not in text and "Infinity" not in text and "ü" in text
    assert json.loads(text) == {
        "mA": 0.75,
        "count": 3,
        "undefined": None,
        "table": [[1.0, None]],
        "names": ["a", "ü"],
        "at": "x",
        "ok": True,
    }


def test_default_threads(monkeypatch):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for value, expected in {"": cores, "1": 1, "1,4": 1, "9999": cores, "0": 1, "many": cores}.items():
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert default_threads() == max(1, min(8, expected))
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert default_threads() == 8
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    assert default_threads() == 1


@pytest.mark.parametrize("count", [0, 1, 7, 8, 50])
@pytest.mark.parametrize("threads", [None, 0, 1, 2, 5])
def test_thread_map_is_map(count, threads):
    assert thread_map(lambda x: x * x, range(count), threads) == [x * x for x in range(count)]


def test_thread_map_uses_threads_that_work_at_the_same_time():
    meeting = threading.Barrier(3, timeout=20)  # broken unless three threads are inside at once
    names = thread_map(lambda _: (meeting.wait(), threading.current_thread().name)[1], range(12), 3)
    assert len(set(names)) == 3 and threading.current_thread().name not in names
    assert len(set(thread_map(lambda _: threading.current_thread().name, range(7), 3))) == 1  # too few to share


def test_thread_map_raises_the_first_error_of_the_list():
    def work(index):
        if index in (3, 10, 14):
            time.sleep(0.05 if index == 3 else 0)  # the first in the list is the last in time
            raise ValueError(f"item {index}")

    for threads in (1, 4):
        with pytest.raises(ValueError, match="item 3$"):
            thread_map(work, range(20), threads)


def test_shorten_keeps_messages_short_and_printable():
    assert shorten("a\x07b") == r"'a\x07b'" and shorten(["a", 1]) == "['a', 1]" and shorten(None) == "None"
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("x" * 10**6, list(range(10**5)), 2**100_000, deep, {"a": "y" * 10**6}, np.zeros(10**5)):
        assert len(shorten(value)) <= 300


def test_json_keeps_every_value():
    assert read_json('{"a": {"b": [1, null]}}') == {"a": {"b": [1, None]}}
    with pytest.raises(ValueError, match="the key 'b' appears twice in one object"):
        read_json('{"a": {"b": 1, "b": 1}}')
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json("[" * 100_000)


def test_elements_come_in_the_order_of_their_container():
    class ByPosition:
        """As a map-style data set of torch."""

        def __len__(self):
            return 2

        def __getitem__(self, position):
            return "ab"[position]

    series = pandas.Series(["a", "b", "c"]).iloc[::-1]
    for items, expected in (
        (series, ["c", "b", "a"]),
        (series[series != "b"], ["c", "a"]),
        (pyarrow.array(["a", None]), ["a", None]),
        (ByPosition(), ["a", "b"]),
        ({"x": "a", "y": "b"}.values(), ["a", "b"]),
        ((one for one in "ab"), ["a", "b"]),
    ):
        assert list(iterate(items)) == expected
        assert thread_map(str.upper, [one for one in expected if one]) == [one.upper() for one in expected if one]
    assert thread_map(str.upper, series, threads=2) == ["C", "B", "A"]
    for items in ({"a"}, "ab", b"ab", {"a": 1}, pandas.DataFrame({"a": [1]}), np.array([b"a"]), 7, np.array(7)):
        with pytest.raises(TypeError, match="things (is|has) .*"):
            iterate(items, "things")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("https://u:p@host/a.jpg?id=17&token=abc", "https://***@host/a.jpg?id=17&token=***"),
        (
            "https://host/a?X-Amz-Signature=0f&sig=b&Key-Pair-Id=c",
            "https://host/a?X-Amz-Signature=***&sig=***&Key-Pair-Id=***",
        ),
        ("https://host/a?blob=" + "a1" * 20, "https://host/a?blob=***"),
        ("/home/alice/data and /Users/bob/x", "~/data and ~/x"),
        ("--root=/home/alice/data", "--root=~/data"),
        ("C:\\Users\\bob\\x", "~\\x"),
        ("hf_" + "a" * 30, "***"),
        ("HF_TOKEN=abc", "HF_TOKEN=***"),
        ("password: abc", "password: ***"),
        ("Bearer abc.def", "Bearer ***"),
        (
            "--question-tokens content /homework/x tokenizer.json",
            "--question-tokens content /homework/x tokenizer.json",
        ),
    ],
)
def test_secrets_and_home_folders_are_left_out(text, expected):
    assert redact(text) == expected


def test_a_command_is_recorded_without_secrets(monkeypatch):
    monkeypatch.setenv("HOME", "/srv/people/alice")
    words = [
        "vlm-par",
        "train",
        "pa100k",
        "--root",
        "/srv/people/alice/data",
        "--hub-token",
        "abc",
        "--api-key=abc",
        "--x",
    ]
    expected = ["vlm-par", "train", "pa100k", "--root", "~/data", "--hub-token", "***", "--api-key=***", "--x"]
    assert redact_command(words) == expected


def test_texts_in_messages_are_short_and_printable():
    assert shorten_text("a\x1b[31m\nb") == "a\\x1b[31m\\nb" and shorten_text("Größe") == "Größe"
    assert shorten_text("x" * 9999).endswith("xxx (9999 characters)") and len(shorten_text("x" * 9999)) < 200


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"7", b'{"a": 1, "a": 2}', b"\xff{}", b"[" * 100_000])
def test_a_record_that_cannot_be_read_is_no_record(tmp_path, content):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    assert read_json_object(path) is None
    path.write_text('{"a": [1]}')
    assert read_json_object(path) == {"a": [1]}


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ({"url": "file://FOLDER", "dir_info": {"editable": True}}, 'pip install -e "FOLDER[train]"'),
        ({"url": "file://FOLDER", "dir_info": {}}, 'pip install "FOLDER[train]"'),
        (
            {"url": "https://me:secret@host/x.git", "vcs_info": {"vcs": "git", "requested_revision": "v1"}},
            'pip install "vlm-par-hf[train] @ git+https://***@host/x.git@v1"',
        ),
        ({"url": "file:///gone", "dir_info": {}}, 'pip install ".[train]" in a clone of the repository of vlm_par_hf'),
        (None, 'pip install ".[train]" in a clone of the repository of vlm_par_hf'),
    ],
    ids=["editable", "folder", "git", "folder is gone", "not recorded"],
)
def test_extras_are_installed_from_where_the_package_came_from(origin, expected, tmp_path, monkeypatch):
    folder = tmp_path / "a clone"
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    text = origin and json.dumps({**origin, "url": origin["url"].replace("FOLDER", str(folder).replace(" ", "%20"))})
    installed = SimpleNamespace(read_text=lambda name: text)
    monkeypatch.setattr("vlm_par_hf.utils.importlib.metadata.distribution", lambda name: installed)
    monkeypatch.setattr("vlm_par_hf.utils.__file__", str(tmp_path / "lib" / "vlm_par_hf" / "utils.py"))
    assert install_command("train") == expected.replace("FOLDER", str(folder))
