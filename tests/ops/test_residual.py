import numpy as np
import pytest

from minigpt.ops.residual import add
from tests.gradcheck import strided


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (0, 4), (300, 301)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_sum_is_the_definition_s_and_takes_its_gradient_to_both(rng, shape, dtype):
    x, h = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    before = x.copy(), h.copy()
    y = add(strided(x), h)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, add.reference(x, h))
    np.testing.assert_array_equal(y, x + h)
    assert not (np.shares_memory(y, x) or np.shares_memory(y, h))
    assert all((a == b).all() for a, b in zip(before, (x, h), strict=True))
