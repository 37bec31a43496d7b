"""Answers that fit together, against a search over all combinations of answers."""

import itertools

import numpy as np
import pytest

from vlm_par_hf.labels.consistency import NO_ANSWER, consistent, count_violations, has_rules
from vlm_par_hf.labels.decisions import decide
from vlm_par_hf.labels.schema import Attribute, AttributeSchema
from vlm_par_hf.labels.tables import get_schema


def yes_no(name, **options):
    return Attribute(name, f"{name}?", prompts=(f"no {name}", name), **options)


SCHEMA = AttributeSchema(
    [
        yes_no("Young", group="age", threshold=0.3),
        Attribute("HatColor", "color?", ("red", "blue", "green"), ("r", "b", "g"), requires=("Hat", "yes")),
        yes_no("Old", group="age"),
        yes_no("Hat", requires=("Head", "seen", "half")),
        Attribute("Head", "head?", ("hidden", "half", "seen"), ("h", "a", "s")),
        yes_no("Adult", group="age", threshold=0.8),
    ]
)


def random_probabilities(count, seed=0):
    logits = np.random.default_rng(seed).normal(size=(count, len(SCHEMA), SCHEMA.max_labels)) * 2
    weights = np.exp(logits) * SCHEMA.label_mask()
    return weights / weights.sum(-1, keepdims=True)


def best_of_group(row, members):
    """The answers of a group with the best joint score among those with at most one positive, one by one."""

    def score(answers):
        odds = 0.0
        for position, answer in zip(members, answers):
            p, t = row[position, 1], SCHEMA[position].threshold
            odds += answer * (np.log(p / (1 - p)) - np.log(t / (1 - t)))
        return odds

    allowed = [one for one in itertools.product((0, 1), repeat=len(members)) if sum(one) <= 1]
    return max(allowed, key=score)


def test_groups_take_the_best_joint_score_and_conditions_follow():
    probabilities = random_probabilities(500)
    answers = consistent(probabilities, SCHEMA)
    alone = decide(probabilities, SCHEMA)
    members = SCHEMA.groups["age"]
    assert (alone[:, members].sum(1) > 1).any()
    for row, found, free in zip(probabilities, answers, alone):
        assert tuple(found[members]) == best_of_group(row, members)
        head = free[4]
        hat = free[3] if head in (1, 2) else NO_ANSWER
        assert found[4] == head and found[3] == hat
        assert found[1] == (free[1] if hat == 1 else NO_ANSWER)


def test_each_rule_can_be_left_out():
    probabilities = random_probabilities(200)
    alone = decide(probabilities, SCHEMA)
    assert (consistent(probabilities, SCHEMA, requires=False, groups=False) == alone).all()
    ages = SCHEMA.groups["age"]
    others = [position for position in range(len(SCHEMA)) if position not in ages]
    only_groups = consistent(probabilities, SCHEMA, requires=False)
    only_conditions = consistent(probabilities, SCHEMA, groups=False)
    both = consistent(probabilities, SCHEMA)
    assert (only_groups[:, others] == alone[:, others]).all() and (only_groups[:, ages] == both[:, ages]).all()
    assert (only_conditions[:, ages] == alone[:, ages]).all()
    assert (only_conditions[:, others] == both[:, others]).all()


def test_thresholds_decide_which_one_of_a_group_remains():
    probabilities = np.zeros((len(SCHEMA), 3))
    probabilities[:, 1] = [0.6, 0, 0.7, 0, 1, 0]
    probabilities[:, 0] = 1 - probabilities[:, 1]
    assert consistent(probabilities, SCHEMA).tolist()[::2] == [1, 0, 1]  # 0.6 is further above 0.3 than 0.7 above 0.5
    assert consistent(probabilities, SCHEMA, [0.5] * 6).tolist()[::2] == [0, 1, 1]
    probabilities[[0, 2], :2] = (0.0, 1.0)  # saturated
    assert consistent(probabilities, SCHEMA, [1.0, 0.5, 0.0, 0.5, 0.5, 0.5]).tolist()[::2] == [0, 1, 1]


def test_violations_are_counted_before_and_gone_after():
    probabilities = random_probabilities(300)
    alone = decide(probabilities, SCHEMA)
    found = count_violations(alone, SCHEMA)
    no_head, no_hat = ~np.isin(alone[:, 4], (1, 2)), alone[:, 3] != 1
    ages = alone[:, [0, 2, 5]].sum(1) > 1
    assert found == {
        "people": int((no_head | no_hat | ages).sum()),
        "requires": {"Hat": int(no_head.sum()), "HatColor": int(no_hat.sum())},
        "groups": {"age": int(ages.sum())},
    }
    after = count_violations(consistent(probabilities, SCHEMA), SCHEMA)
    assert after == {"people": 0, "requires": {"Hat": 0, "HatColor": 0}, "groups": {"age": 0}}


@pytest.mark.parametrize(("name", "rules"), [("rendered", True), ("pa100k", True), ("mivia5", False)])
def test_which_label_spaces_have_rules(name, rules):
    schema = get_schema(name)
    assert has_rules(schema) == rules
    answers = np.zeros((2, len(schema)), np.int64)
    if not rules:
        assert count_violations(answers, schema) == {"people": 0, "requires": {}, "groups": {}}
