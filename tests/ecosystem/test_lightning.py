"""Lightning (pytorch-lightning): a Trainer's fit and checkpoint have the weights of two steps by hand."""

from pathlib import Path
from typing import Any

import torch
from ecosystem.kit import client, images, labels, loss, relative, same, state, step
from torch.utils.data import DataLoader, TensorDataset


def test_fit(trainable: Any, plain: Any, tmp_path: Path) -> None:
    lightning = client("pytorch_lightning")

    class Task(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = trainable

        def training_step(self, batch: Any, index: int) -> Any:
            return loss(self.net(batch[0]), batch[1])

        def predict_step(self, batch: Any, index: int) -> Any:
            return self.net(batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", default_root_dir=tmp_path, **quiet)
    data = DataLoader(TensorDataset(images(), labels()), batch_size=4)
    task = Task()
    trainer.fit(task, data)
    plain.train()
    for _ in range(2):
        step(plain)
    same(state(trainable), state(plain))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"]
    same({name.removeprefix("net."): t for name, t in saved.items() if t.is_floating_point()}, state(plain))
    [logits] = trainer.predict(task, data)
    assert relative(logits, plain.eval()(images())) < 1e-4
