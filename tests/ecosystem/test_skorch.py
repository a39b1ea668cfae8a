"""skorch (skorch): fit has the weights of a step by hand, and its predictions are the network's."""

from typing import Any

import torch
from ecosystem.kit import client, images, labels, relative, same, state, step


def test_fit(trainable: Any, plain: Any) -> None:
    net = client("skorch").NeuralNetClassifier(
        trainable, criterion=torch.nn.CrossEntropyLoss, optimizer=torch.optim.SGD, lr=0.1, max_epochs=1,
        batch_size=4, train_split=None, verbose=0,
    )  # fmt: skip
    net.fit(images().numpy(), labels().numpy())
    step(plain.train())
    same(state(net.module_), state(plain))
    found = torch.from_numpy(net.predict_proba(images().numpy()))
    assert relative(found, plain.eval()(images()).softmax(1)) < 1e-4
