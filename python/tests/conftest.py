"""What the tests share: one model, engines of their own."""

import pytest

import pith

STORY = (
    "The old lighthouse stood on a rock above the bay. Each evening the keeper climbed its stairs, lit the lamp "
    "and wrote down the weather. One winter a ship from Lima came in with a broken mast; her captain was called Ines. "
) * 6


@pytest.fixture(scope="session")
def model():
    if not pith.default_model().exists():
        pytest.skip("the default model is not here; scripts/fetch_model.sh fetches it")
    return pith.Model()


@pytest.fixture
def engine(model):
    return pith.Engine(model, ctx=1024, sequences=3)


@pytest.fixture
def story(model):
    return model.tokenize(STORY)
