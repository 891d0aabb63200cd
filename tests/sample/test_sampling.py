"""The sampling rules against naive ones."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.sample.sampling import draw, next_probabilities


def naive_probabilities(row, temperature, top_k, top_p):
    """One row, in plain Python."""
    V = len(row)
    if temperature == 0:
        return [float(i == row.index(max(row))) for i in range(V)]
    kth = sorted(row, reverse=True)[min(top_k or V, V) - 1]
    weights = [math.exp((x - max(row)) / temperature) if x >= kth else 0.0 for x in row]
    probabilities = [w / sum(weights) for w in weights]
    kept, mass = [], 0.0
    for i in sorted(range(V), key=lambda i: (-probabilities[i], i)):
        if top_p < 1 and mass >= top_p:
            break
        kept.append(i)
        mass += probabilities[i]
    return [probabilities[i] / mass if i in kept else 0.0 for i in range(V)]


ROWS = st.integers(1, 12).flatmap(
    lambda V: st.lists(
        st.lists(st.integers(-6, 6).map(lambda i: i / 2), min_size=V, max_size=V),
        min_size=1,
        max_size=3,
    )
)


@settings(max_examples=3 * settings().max_examples)  # it is quick
@given(
    ROWS,
    st.sampled_from([0.8, 0.25, 3.0, 0.0]),
    st.integers(0, 14),
    st.sampled_from([1.0, 0.97, 0.77, 0.31, 1e-9]),
)
def test_probabilities_are_those_of_the_naive_rules(rows, temperature, top_k, top_p):
    found = next_probabilities(np.array(rows, np.float32), temperature, top_k, top_p)
    expected = [naive_probabilities(row, temperature, top_k, top_p) for row in rows]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
    assert ((found > 0).sum(axis=1) >= 1).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-14)


def test_the_rules_at_their_edges():
    z = np.array([[1.0, 3.0, 3.0, 2.0]])
    assert next_probabilities(z, 0.0).tolist() == [[0, 1, 0, 0]]
    assert next_probabilities(z, 1.0, 1).tolist() == [[0, 0.5, 0.5, 0]]
    assert (next_probabilities(z, 1.0, 3) > 0).tolist() == [[False, True, True, True]]
    assert (next_probabilities(z, 1.0, 4) > 0).all()
    assert next_probabilities(z, 1.0, 0, 1e-9).tolist() == [[0, 1, 0, 0]]
    assert next_probabilities(z, 1.0, 1, 0.6).tolist() == [[0, 0.5, 0.5, 0]]
    assert next_probabilities(z, 1.0, 1, 0.5).tolist() == [[0, 1, 0, 0]]
    assert next_probabilities(z, math.inf).tolist() == [[0.25] * 4]
    assert next_probabilities(z, 5e-324).tolist() == [[0, 0.5, 0.5, 0]]
    assert next_probabilities(z * 1e300, 1.0).tolist() == [[0, 0.5, 0.5, 0]]


def test_draws_follow_the_probabilities():
    probabilities = np.array([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])
    n = 1000
    uniforms = (np.arange(n) + 0.5) / n
    ids = draw(np.repeat(probabilities, n, axis=0), uniforms)
    assert np.bincount(ids, minlength=6).tolist() == [0, 250, 0, 500, 250, 0]


@given(
    st.lists(st.sampled_from([0.0, 1e-300, 1e-17, 0.1, 0.3, 1.0]), min_size=1, max_size=9),
    st.one_of(st.sampled_from([0.0, 1 - 2**-53]), st.floats(0, 1, exclude_max=True)),
)
def test_what_has_no_probability_is_never_drawn(weights, u):
    weights = np.array([[*weights, 0.2, 0.0]])
    probabilities = weights / weights.sum()
    (i,) = draw(probabilities, np.array([u]))
    assert probabilities[0, i] > 0
