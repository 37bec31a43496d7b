"""MATLAB files by our reader: what scipy reads, and an error where its reader would end the process."""

import io
import struct
import zlib

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from modeling_tests.original_files import struct as mat_struct
from modeling_tests.pa100k_files import cell, pa100k_variables
from vlm_par_hf.data.readers import mat_file
from vlm_par_hf.data.readers.mat_file import MatFileError, read_mat_file


def save(path, variables, **options):
    savemat(path, variables, **options)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_kinds_of_values(tmp_path, compressed):
    numbers = {f"n_{kind}": np.arange(6).reshape(2, 3).astype(kind) for kind in ("u1", "i2", "i4", "f4", "f8", "i8")}
    inner = mat_struct(name="été", values=np.arange(3.0), parts=cell(["a", "bc"]))
    variables = {**numbers, "flags": np.array([[True, False]]), "cube": np.arange(24).reshape(2, 3, 4), "s": inner}
    path = save(tmp_path / "a.mat", {**variables, "rows": np.array(["ab ", "cde"])}, do_compression=compressed)
    found, names = read_mat_file(path, (*variables, "rows"))
    assert set(names) == {*variables, "rows"}
    for name in (*numbers, "flags", "cube"):
        assert np.array_equal(found[name], variables[name]) and found[name].shape == variables[name].shape
    assert found["rows"].tolist() == ["ab ", "cde"] and found["s"].shape == (1, 1)
    read = found["s"][0, 0]
    assert read["name"] == "été" and read["values"].tolist() == [[0, 1, 2]]
    assert read["parts"].shape == (2, 1) and read["parts"].ravel().tolist() == ["a", "bc"]


def test_variables_that_are_not_asked_for_are_not_unpacked(tmp_path, monkeypatch):
    path = save(tmp_path / "a.mat", {"first": np.zeros((300, 300)), "second": np.ones(2)}, do_compression=True)
    monkeypatch.setattr(mat_file, "MAX_VARIABLE_BYTES", 1000)
    assert read_mat_file(path, ("second",))[0]["second"].tolist() == [[1, 1]]
    with pytest.raises(MatFileError, match="the variable 'first' has .* bytes, more than 1000"):
        read_mat_file(path, ("first",))


def matrix(kind: int, dims: tuple[int, ...], body: bytes, name: bytes = b"") -> bytes:
    """One matrix element, little-endian."""

    def element(type_: int, data: bytes) -> bytes:
        return struct.pack("<II", type_, len(data)) + data + bytes(-len(data) % 8)

    sizes = struct.pack(f"<{len(dims)}i", *dims)
    parts = element(6, struct.pack("<II", kind, 0)) + element(5, sizes) + element(1, name) + body
    return struct.pack("<II", 14, len(parts)) + parts


def write(path, *elements: bytes):
    path.write_bytes(b"MATLAB 5.0".ljust(124) + b"\x00\x01IM" + b"".join(elements))
    return path


def nested(depth: int) -> bytes:
    inner = matrix(6, (1, 1), struct.pack("<IId", 9, 8, 1.0))
    for _ in range(depth):
        inner = matrix(1, (1, 1), inner)
    return matrix(1, (1, 1), inner, b"a")


TEXT = struct.pack("<II", 16, 6) + b"Female\0\0"


@pytest.mark.parametrize(
    ("element", "message"),
    [
        (matrix(4, (2**31 - 1, 1), TEXT, b"a"), "a text of shape .* has 6 characters"),
        (matrix(4, (-1, 1), TEXT, b"a"), "a matrix of shape"),
        (matrix(6, (2**31 - 1, 2**31 - 1), struct.pack("<II", 9, 0), b"a"), "has 0 bytes of kind 9"),
        (matrix(1, (2**31 - 1, 2**31 - 1), b"", b"a"), "a cell array or struct of"),
        (matrix(1, (10**9, 1), bytes(64), b"a"), "a cell array or struct of 1000000000 entries in 64 bytes"),
        (nested(1000), "cells lie 17 deep"),
        (matrix(17, (1, 1), bytes(8), b"a"), "a matrix of class 17 is not read"),
        (matrix(5, (1, 1), bytes(8), b"a"), "a matrix of class 5 is not read"),
        (struct.pack("<II", 14, 2**32 - 1), "ends within an element of 4294967295 bytes"),
        (struct.pack("<II", 15, 20) + bytes(20), "compressed data are damaged"),
    ],
)
def test_lengths_are_checked_before_anything_is_made(tmp_path, element, message):
    with pytest.raises(MatFileError, match=message):
        read_mat_file(write(tmp_path / "a.mat", element), ("a",))


def test_compressed_data_that_are_longer_than_they_say_or_changed(tmp_path):
    whole = matrix(6, (1, 2), struct.pack("<IIdd", 9, 16, 1.0, 2.0), b"a")
    for packed, message in (
        (zlib.compress(whole + bytes(8)), "is not as long as it says"),
        (zlib.compress(whole)[:-1] + b"\xff", "damaged"),
        (zlib.compress(whole)[:-3], "is not as long as it says"),
    ):
        with pytest.raises(MatFileError, match=message):
            read_mat_file(write(tmp_path / "a.mat", struct.pack("<II", 15, len(packed)) + packed), ("a",))
    packed = zlib.compress(whole)
    path = write(tmp_path / "a.mat", struct.pack("<II", 15, len(packed)) + packed)
    assert read_mat_file(path, ("a",))[0]["a"].tolist() == [[1, 2]]


def test_other_byte_order(tmp_path):
    def element(type_, data):
        return struct.pack(">II", type_, len(data)) + data + bytes(-len(data) % 8)

    parts = element(6, struct.pack(">II", 6, 0)) + element(5, struct.pack(">ii", 1, 2)) + element(1, b"a")
    parts += element(9, struct.pack(">dd", 1.0, 2.0))
    path = tmp_path / "a.mat"
    path.write_bytes(b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + struct.pack(">II", 14, len(parts)) + parts)
    assert read_mat_file(path, ("a",))[0]["a"].tolist() == loadmat(path)["a"].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it has 0 bytes"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "version 7.3 .HDF5.; save it with -v7"),
        (bytes(512) + b"\x89HDF\r\n\x1a\n", "version 7.3"),
        (b"<!DOCTYPE html>".ljust(300), "does not begin with the header"),
    ],
)
def test_other_files(tmp_path, data, message):
    path = tmp_path / "a.mat"
    path.write_bytes(data)
    with pytest.raises(MatFileError, match=message):
        read_mat_file(path, ("a",))


def test_a_variable_twice(tmp_path):
    one, other = (io.BytesIO() for _ in range(2))
    savemat(one, pa100k_variables())
    savemat(other, {"attributes": cell(["Cape"])})
    path = tmp_path / "a.mat"
    path.write_bytes(one.getvalue() + other.getvalue()[128:])
    with pytest.raises(MatFileError, match="holds the variable 'attributes' twice"):
        read_mat_file(path, ("attributes", "absent"))


def test_the_official_annotation_is_what_scipy_reads(par_data):
    path = par_data / "pa100k" / "annotation.mat"
    for prefix in ("train", "val", "test"):
        names, labels = f"{prefix}_images_name", f"{prefix}_label"
        found, wanted = read_mat_file(path, ("attributes", names, labels))[0], loadmat(path)
        assert np.array_equal(found[labels], wanted[labels])
        for field in ("attributes", names):
            assert [entry[0] for entry in wanted[field].ravel()] == [
                entry if isinstance(entry, str) else entry.ravel()[0] for entry in found[field].ravel()
            ]
