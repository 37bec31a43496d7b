"""Kept values and what makes them be forgotten."""

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

from vlm_par_hf.base.kept import Kept, fingerprint


def test_kept_while_nothing_changes():
    kept, a, b = Kept(), torch.zeros(2), torch.zeros(3)
    kept.of((a, b))["sum"] = 1
    assert kept.of((a, b)) == {"sum": 1} and kept.values == {"sum": 1}


def test_forgotten_with_any_change_of_content_and_only_then():
    kept, a, b = Kept(), torch.arange(3.0), torch.zeros(70_001)
    changes = (
        lambda: a.add_(1),
        lambda: a.data.mul_(2),  # counts no version, as libraries that average weights write
        lambda: b.data[-1:].fill_(1e-30),
        lambda: b.data.copy_(b.flip(0)),  # the same entries in another order
        lambda: a.data.copy_(a.data.flip(0)),
    )
    for change in changes:
        kept.of((a, b))["sum"] = 1
        change()
        assert kept.of((a, b)) == {}
    kept.of((a, b))["sum"] = 1
    assert kept.of((a.clone(), b.clone())) == {"sum": 1}  # other objects of the same content
    assert kept.of((a,)) == {}
    for other in (a.double(), a[None], a.to(torch.bfloat16)):
        kept.of((a,))["sum"] = 1
        assert kept.of((other,)) == {}
    kept.of((a, b))["sum"] = 1
    kept.clear()
    assert kept.values == {} and kept.of((a, b)) == {}


def test_weights_that_are_restored_are_the_same_again():
    a = torch.randn(4, 5)
    first = fingerprint([a])
    saved = a.clone()
    a.data.mul_(0.5)
    assert fingerprint([a]) != first
    a.data.copy_(saved)
    assert fingerprint([a]) == first


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.int8, torch.bool, torch.int64])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 7), (5, 3, 65_536)])
def test_every_entry_counts_in_every_dtype_and_layout(dtype, shape):
    torch.manual_seed(0)
    whole = torch.randint(0, 2, shape).to(dtype)
    views = [whole, whole.T if whole.ndim == 2 else whole.flip(0) if whole.ndim else whole]
    for view in views:
        before = fingerprint([view, whole])
        assert before == fingerprint([view.clone(), whole.clone()])
        if view.numel():
            place = tuple(int(torch.randint(0, size, ())) for size in view.shape)
            changed = view.clone()
            changed[place] = not view[place]
            assert fingerprint([changed, whole]) != before


def test_tensors_of_inference_mode_are_kept_and_those_without_content_are_not():
    kept = Kept()
    with torch.inference_mode():
        a = torch.zeros(2)
    kept.of((a,))["sum"] = 1
    assert kept.of((a,)) == {"sum": 1}
    meta = torch.zeros(2, device="meta")
    kept.of((a, meta))["sum"] = 1
    assert kept.of((a, meta)) == {} and kept.values == {}


def test_tensors_made_of_others_are_read_through():
    """As the weights of a model that torchao quantised."""
    first, second = torch.arange(4.0), torch.arange(5.0, 9.0)
    pair = TwoTensor(first, second)
    before = fingerprint([pair])
    assert before == fingerprint([TwoTensor(first.clone(), second.clone())]) == fingerprint([first, second])
    second[2] = 0.5
    assert fingerprint([pair]) != before
