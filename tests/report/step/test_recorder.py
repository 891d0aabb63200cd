"""The recorder: it sees what each line assigns, and is gone afterwards."""

import sys
import threading

import numpy as np
import pytest

from minigpt.backend import plain
from minigpt.ops.layernorm import layernorm_backward, layernorm_forward
from minigpt.ops.softmax import softmax_forward
from minigpt.report.step.recorder import recording


def test_every_value_that_a_variable_had_is_kept_in_place_or_anew(rng):
    x, dy, w = rng.normal(size=(2, 3)), rng.normal(size=(2, 3)), rng.normal(size=3)
    with plain(), recording() as calls:
        y, cache = layernorm_forward(x, w)
        dx, _ = layernorm_backward(dy, cache)
    forward, backward = calls.calls
    assert [c.name for c in calls.calls] == ["layernorm_forward", "layernorm_backward"]
    assert forward.file == "minigpt/ops/layernorm.py"
    assert (forward["y"] == y).all() and (forward["mu"] == x.mean(-1, keepdims=True)).all()
    first, second, third = backward.values["dx"]  # of which two lines make it in place
    dxhat = w * dy
    assert (first == dxhat - dxhat.mean(-1, keepdims=True)).all()
    assert (third == dx).all() and (second * cache.rstd == third).all()


def test_what_is_recorded_is_a_copy(rng):
    x = rng.normal(size=(2, 3))
    before = x.copy()
    with plain(), recording() as calls:
        y, _ = softmax_forward(x)
    after = y.copy()
    x[...] = y[...] = 0
    call = calls.the("softmax_forward")
    assert (call["x"] == before).all() and (call.result[0] == after).all()


def test_calls_are_found_by_name_and_number_below_their_caller(rng):
    with plain(), recording() as calls:
        for n in (2, 3):
            softmax_forward(rng.normal(size=n))
    assert [call["x"].size for call in calls.all("softmax_forward")] == [2, 3]
    assert calls.the("softmax_forward", -1)["x"].size == 3
    with pytest.raises(LookupError, match="2 calls of softmax_forward, none is number 2"):
        calls.the("softmax_forward", 2)


def test_a_tracer_that_was_there_is_there_again_even_after_an_error():
    def tracer(frame, event, arg):
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        with pytest.raises(AttributeError), plain(), recording() as calls:
            softmax_forward(None)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)
    assert [call.name for call in calls.calls] == ["softmax_forward"]


def test_other_threads_are_not_recorded():
    with plain(), recording() as calls:
        thread = threading.Thread(target=softmax_forward, args=(np.ones(2),))
        thread.start()
        thread.join()
    assert calls.calls == []
