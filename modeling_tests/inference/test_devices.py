"""Which dtype answers fastest, by what the machine says of itself."""

import pytest
import torch

from vlm_par_hf.annotation import Annotator
from vlm_par_hf.inference.devices import inference_dtype


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [(False, False, torch.float32), (True, False, torch.bfloat16), (False, True, torch.bfloat16)],
)
def test_a_cpu_answers_in_bfloat16_where_it_can(monkeypatch, avx512, amx, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    for device in (None, "cpu", -1, torch.device("cpu")):
        assert inference_dtype(device) == expected
    assert inference_dtype("meta") == torch.float32
    assert Annotator(dtype="auto", device="cpu").dtype == expected
    assert Annotator(dtype="float32").dtype == "float32" and Annotator().dtype is None


def test_a_gpu_is_asked_itself(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for fast in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, fast=fast: fast)
        for device in (None, 0, "cuda:1"):
            assert inference_dtype(device) == (torch.bfloat16 if fast else torch.float32)


def test_what_cannot_be_known_counts_as_slow(monkeypatch):
    for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, check)  # private names of torch may go
    assert inference_dtype("cpu") == torch.float32


@pytest.mark.parametrize("device", ["foo", "cuda:x", 1.5])
def test_what_is_no_device_is_refused(device):
    with pytest.raises(ValueError, match=f"device='{device}' is none of torch"):
        inference_dtype(device)
