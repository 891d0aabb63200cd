import sys

import pytest

from tests.tools.training import EXACT, begin


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The folder of a run that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)
        assert begin(folder, *EXACT) == 0
    return folder
