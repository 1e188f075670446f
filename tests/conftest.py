"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parents[1]

# A busy machine is no fault of the code: no example has a deadline, and slow data is no failure.
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", **_PATIENT)
settings.register_profile("ci", derandomize=True, database=None, print_blob=True, **_PATIENT)  # the same run each time
settings.register_profile("thorough", max_examples=2000, **_PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


@pytest.fixture(scope="session")
def loras() -> Path:
    """The folder of real adapter files beside the repository; they are not ours to publish in it."""
    folder = REPOSITORY.parent / "shared" / "loras"
    if not folder.is_dir():
        pytest.skip("no folder ../shared/loras beside the repository: real files are not tested")
    return folder


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Doctests live in the package: shared pieces beside the tests are imported by the tests that need them."""
    shared = collection_path.suffix == ".py" and not collection_path.name.startswith(("test_", "conftest"))
    return True if shared and REPOSITORY / "tests" in collection_path.parents else None
