"""FSDP1 (torch): parameters are sharded over two processes, gathered gradients are those of one."""

from typing import Any

import pytest
from ecosystem.kit import TRAIN, gradients, same

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("form", TRAIN)
def test_gradients(form: str, two_processes: Any, plain: Any) -> None:
    found = two_processes[f"fsdp1 {form}"]
    assert not isinstance(found, str), found
    same(found, gradients(plain))
