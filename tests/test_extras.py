"""Optional packages."""

import json

import pytest

from redlab.extras import require


def test_require_imports_or_says_how_to_install():
    assert require("json", "someextra") is json
    with pytest.raises(ImportError, match=r"no_such_package_of_ours: pip install 'redlab\[someextra\]'$"):
        require("no_such_package_of_ours", "someextra")
    with pytest.raises(ImportError, match=r"redlab\[someextra\]' && pip install --no-deps dist$"):
        require("no_such_package_of_ours", "someextra", alone="dist")
