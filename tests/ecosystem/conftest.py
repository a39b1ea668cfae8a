"""Every client gets a network of its own in all forms; what clients warn about is theirs, not what we do."""

import copy
from pathlib import Path
from typing import Any

import pytest
from ecosystem.kit import FORMS, TRAIN
from ecosystem.kit import network as made
from ecosystem.ranks import gradients_of_two


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.ecosystem)
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            item.add_marker(pytest.mark.filterwarnings("error:::bu2td"))


@pytest.fixture(scope="session")
def _networks() -> dict[str, Any]:
    return {form: made(form) for form in FORMS}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def network(form: str, _networks: dict[str, Any]) -> Any:
    """A network in each form, in eval mode."""
    return copy.deepcopy(_networks[form])


@pytest.fixture(params=TRAIN)
def trainable(request: pytest.FixtureRequest, _networks: dict[str, Any]) -> Any:
    """A network in each form that trains, in train mode."""
    return copy.deepcopy(_networks[request.param]).train()


@pytest.fixture
def plain(_networks: dict[str, Any]) -> Any:
    """The plain network, in eval mode: what the others are to be equal to."""
    return copy.deepcopy(_networks["plain"])


@pytest.fixture(scope="session")
def two_processes() -> dict[str, Any]:
    """Gradients of distributed clients; one start of two processes for all."""
    return gradients_of_two()
