"""Folders that are written: only what is listed is deleted, one process writes, outputs stay out of inputs."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from vlm_par_hf.errors import ParError
from vlm_par_hf.output_folders import LIST, LOCK, open_output, refuse_overlap


KIND = "test output"


def no_record(path):
    return None


@pytest.fixture
def written(tmp_path):
    """A folder with two listed files and one of somebody else in the same subfolder."""
    out = tmp_path / "out"
    with open_output(out, KIND) as folder:
        folder.begin(["a.txt", "sub/b.txt"])
        (out / "sub").mkdir()
        (out / "a.txt").write_text("one")
        (out / "sub" / "b.txt").write_text("two")
        folder.record(["a.txt", "sub/b.txt"])
    (out / "sub" / "mine.txt").write_text("mine")
    return out


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def clear(out, recognise=no_record, **options):
    with open_output(out, KIND) as folder:
        folder.claim(recognise=recognise, **{"delete_listed": False, **options})
        folder.clear()


def test_only_what_is_listed_is_deleted(written):
    assert names(written) == {"a.txt", "sub/b.txt", "sub/mine.txt", LIST}
    clear(written)
    assert names(written) == {"sub/mine.txt"}


def test_what_was_changed_is_named_first(written):
    os.utime(written / "sub" / "b.txt", (1, 1))  # touched and copied files are those that were written
    (written / "a.txt").write_text("1ne")
    with pytest.raises(FileExistsError, match=r"1 files were changed since .*: 'a.txt'; .*--delete-listed"):
        clear(written)
    assert names(written) == {"a.txt", "sub/b.txt", "sub/mine.txt", LIST}
    clear(written, delete_listed=True)
    assert names(written) == {"sub/mine.txt"}


def test_a_folder_without_a_list_is_recognised_by_its_record_or_refused(written):
    (written / LIST).unlink()
    with pytest.raises(FileExistsError, match="not empty, and nothing in it says that this package wrote it"):
        clear(written, delete_listed=True)
    with pytest.raises(FileExistsError, match=r"1 files are taken for those of an earlier version.*'a.txt'"):
        clear(written, recognise=lambda path: ["a.txt", "not there"])
    clear(written, recognise=lambda path: ["a.txt", "not there"], delete_listed=True)
    assert names(written) == {"sub/b.txt", "sub/mine.txt"}


def test_no_link_is_followed_to_what_is_deleted(written, tmp_path):
    shutil.move(written / "sub", tmp_path / "elsewhere")
    (written / "sub").symlink_to(tmp_path / "elsewhere")
    clear(written)
    assert names(tmp_path / "elsewhere") == {"b.txt", "mine.txt"} and (written / "sub").is_symlink()
    (tmp_path / "link").symlink_to(written)
    with (
        pytest.raises(OSError, match="is a link to '.*out': name that place itself"),
        open_output(tmp_path / "link", KIND),
    ):
        pass


def test_what_is_not_listed_is_not_replaced(written, tmp_path):
    with open_output(written, KIND) as folder, folder.staging() as staging:
        for name in ("a.txt", "c.txt"):
            (staging / name).write_text("new")
        (written / "c.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="c.txt' was not written by this package"):
            folder.publish(staging, last="a.txt")
        (written / "c.txt").unlink()
        folder.publish(staging, last="a.txt", replace_all=True)
    assert names(written) == {"a.txt", "c.txt", "sub/mine.txt", LIST} and (written / "a.txt").read_text() == "new"


def test_a_killed_process_leaves_what_is_known_as_ours(tmp_path):
    out = tmp_path / "out"
    code = (
        "import os, signal\nfrom vlm_par_hf.output_folders import open_output\n"
        f"with open_output({str(out)!r}, {KIND!r}) as folder:\n"
        "    folder.begin(['half.bin', 'made'])\n"
        "    (folder.path / 'half.bin').write_bytes(b'x')\n"
        "    (folder.path / 'made').mkdir()\n"
        "    (folder.path / 'made' / 'inside').write_bytes(b'x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    temporary = out / f".{LIST}.{'0' * 32}.tmp"
    temporary.write_text("half")
    (out / "mine").write_text("mine")
    with open_output(out, KIND) as folder:
        assert folder.is_unfinished and folder.strangers() == ["mine"] and not temporary.exists()
    clear(out)
    assert names(out) == {"mine"}


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", "a\\b", 3, None])
def test_a_list_that_leaves_the_folder_is_refused(written, name):
    found = json.loads((written / LIST).read_text())
    found["being_written"] = [name]
    (written / LIST).write_text(json.dumps(found))
    with pytest.raises(OSError, match="is damaged"), open_output(written, KIND):
        pass


def test_work_of_another_kind_is_refused(written):
    refused = "holds a 'test output', and a 'training run' is to be written"
    with pytest.raises(FileExistsError, match=refused), open_output(written, "training run"):
        pass


def test_one_process_writes(tmp_path):
    out = tmp_path / "out"
    code = (
        "import sys\nfrom vlm_par_hf.output_folders import open_output\n"
        f"with open_output({str(out)!r}, {KIND!r}):\n    print('locked', flush=True)\n    sys.stdin.readline()\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "locked\n"
    with pytest.raises(ValueError, match="out': another process is writing it"), open_output(out, KIND):
        pass
    other.kill()  # the lock ends with its process
    other.communicate()
    assert (out / LOCK).exists()
    with open_output(out, KIND):
        pass
    assert not (out / LOCK).exists()


def test_what_is_empty_is_removed(tmp_path):
    with pytest.raises(KeyError), open_output(tmp_path / "a" / "b", KIND) as folder:
        folder.begin(["x"])
        folder.record(["x"])
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "replaced", "words"),
    [
        ("data", False, "is root"),
        ("data/x/y", False, "lies inside root"),
        ("link/x", False, "lies inside root"),
        (".", True, "would be replaced and holds root"),
        (".", False, None),
        ("database", True, None),
    ],
)
def test_an_output_stays_out_of_inputs(tmp_path, out, replaced, words):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    inputs = {"root": tmp_path / "data", "model": "org/name", "other": None}
    if words is None:
        refuse_overlap(tmp_path / out, inputs, replaced=replaced)
    else:
        with pytest.raises(ParError, match=words):
            refuse_overlap(tmp_path / out, inputs, replaced=replaced)


# Starts each command twice at once, in processes that are forked after the imports; says how they ended.
TWICE = """
import json, os, select, sys
import datasets, pyarrow.parquet
import vlm_par_hf.annotation, vlm_par_hf.export, vlm_par_hf.training
from filelock import FileLock
from vlm_par_hf.cli.main import main
from vlm_par_hf.output_folders import LOCK

release = FileLock.release

def release_late(lock, *args, **options):
    # The one that holds the output keeps it until the other has ended, however long that one takes to start.
    if lock.is_locked and os.path.basename(lock.lock_file) == LOCK:
        select.select([ended], [], [], 60)
    release(lock, *args, **options)

FileLock.release = release_late

for arguments in json.loads(sys.argv[1]):
    wait, go = os.pipe()
    ended, end = os.pipe()
    children, said = [], []
    for _ in range(2):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(writer, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.close(go)
            os.read(wait, 1)
            status = main(arguments)
            os.write(end, b"x")
            os._exit(status)
        os.close(writer)
        children.append(child)
        said.append(reader)
    os.close(wait)
    os.close(go)
    texts = [os.fdopen(reader).read() for reader in said]
    os.close(ended)
    os.close(end)
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps([[end, text] for end, text in zip(ends, texts)]))
"""


def test_of_two_processes_with_one_output_one_refuses(tmp_path):
    from modeling_tests.image_folders import save_image, save_model

    save_model(tmp_path / "model")
    for number in range(300):  # so many that the second process begins before the first one ends
        save_image(tmp_path / "images" / f"{number}.png", number)
    drawn = ["synthetic", "--num-train", "16", "--num-validation", "8", "--num-test", "2"]
    model = str(tmp_path / "model")
    commands = {
        "prepared": ["prepare", *drawn],
        "run": ["train", *drawn, "--epochs", "1", "--max-num-patches", "16", "--no-progress"],
        "export": ["export", model, "--to", "folded"],
        "out.jsonl": ["predict", str(tmp_path / "images"), "--model", model],
    }
    arguments = [[*command, "--out", str(tmp_path / name)] for name, command in commands.items()]
    done = subprocess.run(
        [sys.executable, "-c", TWICE, json.dumps(arguments)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name, line in zip(commands, done.stdout.splitlines(), strict=True):
        ends = sorted(json.loads(line))
        assert [end for end, _ in ends] == [0, 2], (name, ends)
        assert f"{name}': another process is writing it" in ends[1][1]
    for name, file in (("prepared", "README.md"), ("run", "config.json"), ("export", "parity.json")):
        found = json.loads((tmp_path / name / LIST).read_text())
        assert file in found["files"] and found["being_written"] == []
    assert not list(tmp_path.glob("*.partial"))


def test_long_work_says_where_its_files_lie(tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO", "vlm_par_hf"), open_output("out", "training run"):
        assert caplog.messages == [f"training run: files go to {tmp_path / 'out'}"]
