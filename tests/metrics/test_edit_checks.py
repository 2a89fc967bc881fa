"""Whether an edit is a result at all: when it took, and when it did harm."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_eval.metrics.edit_checks import Unrelated, edit_faults, took, unrelated_damage, unrelated_line

FINE = {"n": 10, "worse": 2}
BAD = {"n": 10, "worse": 3}


def check(n_took, n=10, answers=None, **more):
    before, after = answers or (None, None)
    return {"n": n, "n_took": n_took, "answer_probability_before": before, "answer_probability_after": after, **more}


@pytest.mark.parametrize(
    ("notes", "taken", "faults"),
    [
        ({"self_check": check(0, 20)}, False, ["did not take: 0 of 20"]),
        ({"self_check": check(4)}, False, ["did not take: 4 of 10"]),
        ({"self_check": check(5)}, True, []),
        ({"self_check": check(10)}, True, []),
        ({"self_check": check(0, answers=(0.5, 0.01))}, False, ["did not take"]),  # a closed form aims at its targets
        ({"self_check": check(0, answers=(0.9, 0.2)), "training": {}}, True, []),  # gradient ascent has no targets
        ({"self_check": check(0, answers=(0.9, 0.82)), "training": {}}, False, ["is 0.82 of 0.9"]),
        ({"self_check": check(9, answers=(0.9, 0.9)), "training": {}}, True, []),
        ({"self_check": check(0), "training": {}}, True, []),  # nothing is known of the answers
        ({"self_check": check(0, 0)}, None, []),
        ({"self_check": None}, None, []),
        ({}, None, []),
        (None, None, []),
        ({"self_check": check(10, unrelated=FINE)}, True, []),
        ({"self_check": check(10, unrelated=BAD)}, True, ["did harm: 3 of 10"]),
        ({"self_check": check(0, unrelated=BAD)}, False, ["did not take", "did harm"]),
        ({"self_check": check(10, unrelated={})}, True, []),
        ({"self_check": check(10, unrelated={"n": 4, "worse": 1})}, True, ["did harm: 1 of 4"]),
    ],
)
def test_the_rule(notes, taken, faults):
    assert took(notes) is taken
    found = edit_faults(notes)
    assert len(found) == len(faults)
    assert all(part in fault for part, fault in zip(faults, found, strict=True))


@pytest.mark.parametrize(
    ("before", "after", "accepted", "changed", "worse"),
    [
        ("It is 5.", "It is 5.", ["5"], 0, 0),
        ("It is 5.", "I don't have any information about that.", ["5"], 1, 1),
        ("It is 5.", "the the the the the the the the", ["5"], 1, 1),
        ("It is 5.", "", ["5"], 1, 1),
        ("It is 5.", "It is 6.", ["5"], 1, 1),
        ("It is 6.", "It is 7.", ["5"], 1, 0),  # it was wrong before
        ("It is 6.", "It is 5.", ["5"], 1, 0),
        ("I don't know.", "I have no idea.", ["5"], 1, 0),  # it was refused before
        ("I don't know.", "It is 5.", ["5"], 1, 0),
        ("la la la la la la la la", "ha ha ha ha ha ha ha ha", ["5"], 1, 0),
        ("It is 5!", "It is five... 5.", ["5"], 1, 0),
        ("It is 5.", "it is 5", ["5"], 0, 0),
        ("It is 5.", "Das weiß ich nicht.", ["5"], 1, 1),
    ],
)
def test_what_became_of_an_unrelated_question(before, after, accepted, changed, worse):
    found = unrelated_damage([before], [after], [accepted])
    assert (found.n, found.changed, found.worse) == (1, changed, worse)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=6))
def test_an_edit_that_changes_nothing_does_no_harm(texts):
    found = unrelated_damage(texts, texts, [["5"]] * len(texts))
    assert (found.changed, found.worse, found.n) == (0, 0, len(texts))
    assert (found.refused, found.repeats, found.right) == (
        found.refused_before,
        found.repeats_before,
        found.right_before,
    )
    assert edit_faults({"self_check": check(10, unrelated=found.record)}) == ()


def test_the_line_says_every_count():
    line = unrelated_line(Unrelated(10, 1, 6, 0, 2, 8, 3, 7, 5).record)
    assert line == ("10 unrelated questions: 6 refused (1 before), 2 in circles or empty (0), 3 right (8), 7 changed")
