"""Kept values and what makes them be forgotten."""

import torch

from vlm_par_hf.base.kept import Kept


def test_kept_while_nothing_changes():
    kept, a, b = Kept(), torch.zeros(2), torch.zeros(3)
    kept.of((a, b))["sum"] = 1
    assert kept.of((a, b)) == {"sum": 1} and kept.values == {"sum": 1}


def test_forgotten_with_a_change_in_place_another_tensor_or_another_number_of_them():
    kept, a, b = Kept(), torch.zeros(2), torch.zeros(3)
    for change in (lambda: a.add_(1), lambda: b.copy_(torch.ones(3))):
        kept.of((a, b))["sum"] = 1
        change()
        assert kept.of((a, b)) == {}
    kept.of((a, b))["sum"] = 1
    assert kept.of((a, b.clone())) == {}
    kept.of((a, b))["sum"] = 1
    assert kept.of((a,)) == {}
    kept.of((a, b))["sum"] = 1
    kept.clear()
    assert kept.values == {} and kept.of((a, b)) == {}


def test_what_counts_no_changes_is_not_kept():
    kept = Kept()
    with torch.inference_mode():
        a = torch.zeros(2)
    kept.of((a,))["sum"] = 1
    assert kept.of((a,)) == {} and kept.values == {}
