"""A tiny model, as a folder and loaded, for the tests of edits of it."""

import pytest
from study_files import write_model

from unlearn_eval.models.load import load_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(model):
    return load_model(str(model), dtype="float32", device="cpu")
