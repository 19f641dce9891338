"""The installed package has the licence texts of the library and of the crates that are linked into it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1]
FILES = ["LICENSE-MIT", "LICENSE-APACHE", "THIRD-PARTY-LICENSES.txt"]


@pytest.mark.parametrize("name", FILES)
def test_wheel_has_the_licence(name: str) -> None:
    try:
        package = distribution("lstm-rs")
    except PackageNotFoundError:
        pytest.skip("the package lstm-rs is not installed as a wheel")
    assert package.metadata["License-Expression"] == "MIT OR Apache-2.0"
    assert sorted(package.metadata.get_all("License-File") or []) == sorted(FILES)
    installed = package.read_text(f"licenses/{name}")
    assert installed == (PACKAGE / name).read_text()


@pytest.mark.parametrize("name", FILES[:2])
def test_licences_are_those_of_the_repository(name: str) -> None:
    assert (PACKAGE / name).read_text() == (PACKAGE.parents[1] / name).read_text()


def test_linked_crates_are_listed() -> None:
    text = (PACKAGE / FILES[2]).read_text()
    for crate in ["pyo3 ", "numpy ", "wgpu ", "cudarc "]:
        assert f"\n{crate}" in text
    assert "Permission is hereby granted" in text and "Apache License" in text
