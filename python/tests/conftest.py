"""What the tests share: one model, engines of their own, and turns by commit (run.py)."""

import os

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


def pytest_configure(config):
    config.addinivalue_line("markers", "of_the_default_model: random weights or other widths are no use to it")


def pytest_collection_modifyitems(config, items):
    """PITH_TEST_PASS: "default" and "small" go through a quarter of the tests and the others, "half" through every second."""
    which = os.environ.get("PITH_TEST_PASS")
    if not which:
        return
    every = 2 if which == "half" else 4
    turn = int(os.environ["PITH_TEST_TURN"]) % every
    chosen, others = [], []
    for index, item in enumerate(items):
        is_chosen = index % every == turn or (which != "half" and item.get_closest_marker("of_the_default_model"))
        (chosen if is_chosen else others).append(item)
    if which == "small":
        chosen, others = others, chosen
    config.hook.pytest_deselected(items=others)
    items[:] = chosen
