"""What tests here are given."""

import pytest
from families import (
    NAMES,
    family,
)
from transformers import PreTrainedModel


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny random model of each family in turn; every test leaves it as it found it."""
    return family(request.param)
