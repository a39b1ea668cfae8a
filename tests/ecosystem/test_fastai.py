"""fastai (fastai): a Learner's fit changes the weights, and its predictions are the network's."""

from typing import Any

import pytest
import torch
from ecosystem.kit import client, images, labels, loss, relative
from torch.utils.data import DataLoader, TensorDataset

pytestmark = pytest.mark.slow


def test_learner(trainable: Any, plain: Any) -> None:
    learner, data = client("fastai.learner"), client("fastai.data.core")
    loader = DataLoader(TensorDataset(images(), labels()), batch_size=4)
    client("fastai.callback.progress")
    learn = learner.Learner(data.DataLoaders(loader, loader), trainable, loss_func=loss, cbs=[])
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.01)
    assert relative(trainable.eval()(images()), plain(images())) > 1e-4
    assert torch.isfinite(trainable(images())).all()
