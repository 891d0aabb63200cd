"""BLAS's threads are lent, and given back."""

import threading

import pytest
from threadpoolctl import threadpool_info

from minigpt.backend.blas import blas_threads


def sizes_of_blas():
    """Return the number of threads of each BLAS that is loaded."""
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.mark.parametrize("sizes", [(1, 2), (2, 1)])
def test_blas_gets_its_threads_back_from_contexts_that_overlap(sizes):
    before, (first, second) = sizes_of_blas(), map(blas_threads, sizes)
    first.__enter__()
    second.__enter__()
    assert set(sizes_of_blas()) <= {1}  # the lower one
    first.__exit__(None, None, None)
    assert set(sizes_of_blas()) <= {sizes[1]}
    second.__exit__(None, None, None)
    assert sizes_of_blas() == before


def test_blas_gets_its_threads_back_after_an_error():
    before = sizes_of_blas()
    with pytest.raises(ZeroDivisionError), blas_threads(1):
        assert set(sizes_of_blas()) <= {1}
        1 / 0  # noqa: B018
    assert sizes_of_blas() == before


def test_contexts_in_many_threads_leave_blas_as_it_was():
    before, start = sizes_of_blas(), threading.Barrier(8)

    def work():
        start.wait()
        for _ in range(50):
            with blas_threads(1):
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes_of_blas() == before
