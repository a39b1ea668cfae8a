"""DistributedDataParallel (torch): two processes with half a batch each have the gradients of one with all."""

from typing import Any

import pytest
from ecosystem.kit import TRAIN, gradients, same

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("form", TRAIN)
def test_gradients(form: str, two_processes: Any, plain: Any) -> None:
    found = two_processes[f"ddp {form}"]
    assert not isinstance(found, str), found
    same(found, gradients(plain))
