"""Weights & Biases (wandb): a watched network trains as before."""

from pathlib import Path
from typing import Any

import pytest
from ecosystem.kit import client, gradients, same

pytestmark = pytest.mark.slow


def test_watch(trainable: Any, plain: Any, tmp_path: Path) -> None:
    wandb = client("wandb")
    run = wandb.init(mode="disabled", dir=str(tmp_path))
    run.watch(trainable.eval(), log="all", log_freq=1, log_graph=True)
    same(gradients(trainable), gradients(plain))
    run.finish()
