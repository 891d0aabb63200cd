"""The types that the kernels are compiled for, as parameters of tests."""

import importlib.util

import pytest

# Half the distance from 1 to the next number: the most that rounding changes a number, relatively.
UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}

HAS_BFLOAT16 = importlib.util.find_spec("ml_dtypes") is not None
if HAS_BFLOAT16:
    importlib.import_module("ml_dtypes")  # gives NumPy the name bfloat16
needs_bfloat16 = pytest.mark.skipif(
    not HAS_BFLOAT16, reason="bfloat16 arrays need ml_dtypes: pip install ml_dtypes"
)
LOW = ["float16", pytest.param("bfloat16", marks=needs_bfloat16)]
DTYPES = ["float32", *LOW]
