"""Pickles and copies of networks: as they are, changed by hand or not, in this process and in others."""

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import FlatResNet, convert_baseline
from torch import fx, nn

import bu2td
from bu2td.errors import CopyError
from bu2td.models import baselines

IMAGES = torch.rand(2, 1, 32, 32)


@pytest.fixture(scope="module")
def plain() -> Any:
    return convert_baseline("lenet_fc", "td", seed=0).eval()


@pytest.fixture
def lenet(plain: Any) -> Any:
    return copy.deepcopy(plain)


def pickled(network: Any) -> Any:
    return pickle.loads(pickle.dumps(network))


def saved(network: Any) -> Any:
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = [pickled, saved, copy.deepcopy, copy.copy]


def _logits(network: Any, images: torch.Tensor = IMAGES) -> torch.Tensor:
    with torch.no_grad():
        return network(images)


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_is_the_network(lenet: Any, way: Any) -> None:
    found = way(lenet)
    assert torch.equal(_logits(found), _logits(lenet))
    assert isinstance(found, bu2td.TopDownNetwork)
    assert type(found) is not type(lenet)  # each has a forward of its own
    assert type(found).__name__ == type(lenet).__name__
    assert (found.plan, found.recipe, found.code) == (lenet.plan, lenet.recipe, lenet.code)
    names = [[n.name for n in part.graph.nodes] for part in lenet.modules() if isinstance(part, fx.GraphModule)]
    assert [
        [n.name for n in part.graph.nodes] for part in found.modules() if isinstance(part, fx.GraphModule)
    ] == names
    assert not found.training
    assert found.train().training
    assert not lenet.training
    bu2td.verify(found)
    assert len(found.features(IMAGES)) == len(lenet.features(IMAGES))


@pytest.mark.parametrize("way", WAYS[:3])
def test_a_copy_has_weights_of_its_own_and_trains(lenet: Any, way: Any) -> None:
    before, found = _logits(lenet), way(lenet).train()
    optimizer = torch.optim.SGD(found.parameters(), 0.5)
    found(IMAGES).square().sum().backward()
    optimizer.step()
    assert torch.equal(_logits(lenet), before)
    assert not torch.equal(_logits(found.eval()), before)
    assert all(p.grad is None for p in lenet.parameters())


def test_a_shallow_copy_shares_weights_and_no_names(lenet: Any) -> None:
    found = copy.copy(lenet)
    assert found.head is lenet.head
    found.head = nn.Flatten()
    found.extra = nn.Linear(2, 2)
    assert found.head is not lenet.head
    assert not hasattr(lenet, "extra")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", ["training", "inference"])
def test_optimised_networks(plain: Any, way: Any, mode: str) -> None:
    network = bu2td.optimize(plain, mode, rules={"merge": "always"}).eval()
    found = way(network)
    assert torch.equal(_logits(found), _logits(network))
    assert (found.is_fused, found.optimization) == (network.is_fused, network.optimization)


@pytest.mark.parametrize("way", WAYS)
def test_patches(plain: Any, way: Any) -> None:
    network = bu2td.PatchNetwork(plain, share=0.4)
    found = way(network)
    assert torch.equal(_logits(found), _logits(network))
    assert found.recipe == network.recipe


@pytest.mark.parametrize("way", WAYS)
def test_checkpointed_networks(lenet: Any, way: Any) -> None:
    code = lenet.code
    lenet.set_grad_checkpointing(inside=True)
    lenet.train()
    found = way(lenet)
    assert (found.code, found.checkpointing, found.stages) == (lenet.code, lenet.checkpointing, lenet.stages)
    for network in (found, lenet):
        network.zero_grad()
        network(IMAGES).square().sum().backward()
        network.gradients = [p.grad.clone() for p in network.parameters()]
        network.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(found.gradients, lenet.gradients, strict=True))
    found.set_grad_checkpointing(False)
    assert found.code == code
    assert lenet.code != code


@pytest.mark.parametrize("way", WAYS)
def test_what_a_user_has_changed_stays(lenet: Any, way: Any) -> None:
    """A file of recipe and weights could not say any of this."""
    lenet.set_submodule("r2_merge.act", nn.SiLU())
    lenet.set_submodule("r1_merge.norm", nn.GroupNorm(1, lenet.r1_merge.norm.num_features))
    lenet.remark = {"seen": 3}
    lenet.extra = nn.Linear(3, 3)
    lenet.r2_lateral.conv.requires_grad_(False)
    lenet.r4.register_forward_hook(_halve)
    lenet.register_forward_hook(_halve)
    found = way(lenet)
    assert torch.equal(_logits(found), _logits(lenet))
    assert found.remark == {"seen": 3}
    assert torch.equal(found.extra.weight, lenet.extra.weight)
    wanted = [(name, p.requires_grad) for name, p in lenet.named_parameters()]
    assert [(name, p.requires_grad) for name, p in found.named_parameters()] == wanted


def _halve(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    return output / 2


def test_tied_weights_stay_tied(lenet: Any) -> None:
    lenet.r2_merge.norm.weight = lenet.r2_merge.norm.bias
    for way in WAYS:
        found = way(lenet)
        assert found.r2_merge.norm.weight is found.r2_merge.norm.bias


def test_parts_are_pickled_alone(lenet: Any) -> None:
    assert pickled(lenet.r4).code == lenet.r4.code
    both = pickled(nn.Sequential(nn.BatchNorm2d(1), lenet))
    assert isinstance(both[1], bu2td.TopDownNetwork)


def test_a_network_of_a_model_of_ones_own() -> None:
    network = bu2td.convert(FlatResNet((8, 16), 1), example_inputs=torch.zeros(2, 3, 32, 32)).eval()
    images = torch.rand(1, 3, 32, 32)
    assert all(torch.equal(_logits(way(network), images), _logits(network, images)) for way in WAYS)


def test_operators_have_names(lenet: Any) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.ops.aten.relu.default, (x,))
    graph.output(graph.call_function(torch.ops.aten.neg, (y,)))
    lenet.graph = graph
    assert torch.equal(_logits(pickled(lenet)), -IMAGES)


def test_what_has_no_name_is_refused(lenet: Any) -> None:
    class Local(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    lenet.set_submodule("r2_merge.act", Local())
    with pytest.raises(CopyError, match=r"module 'r2_merge.act' is of class .*Local.* cannot be imported"):
        pickle.dumps(lenet)
    graph = fx.Graph()
    graph.output(graph.call_function(lambda x: x, (graph.placeholder("x"),)))
    lenet.set_submodule("r2_merge.act", nn.ReLU())
    lenet.graph = graph
    with pytest.raises(CopyError, match=r"calls .*<lambda> of .*, which cannot be imported"):
        pickle.dumps(lenet)


SPAWN = """
import sys
import torch
import torch.multiprocessing

def run(network, images, queue):
    with torch.no_grad():
        queue.put(network(images).tolist())

if __name__ == "__main__":
    import pickle
    torch.set_num_threads(1)
    network = pickle.load(open("td.pickle", "rb"))  # nothing of bu2td is imported before
    images = torch.load("images")
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=run, args=(network, images, queue))
    process.start()
    found = torch.tensor(queue.get())
    process.join()
    with torch.no_grad():
        torch.save([network(images), found], "found")
"""


@pytest.mark.slow
def test_other_processes(plain: Any, tmp_path: Path) -> None:
    (tmp_path / "td.pickle").write_bytes(pickle.dumps(plain))
    (tmp_path / "spawn.py").write_text(SPAWN)
    torch.save(IMAGES, tmp_path / "images")
    subprocess.run([sys.executable, "-W", "ignore", "spawn.py"], check=True, cwd=tmp_path, timeout=300)
    assert all(torch.equal(found, _logits(plain)) for found in torch.load(tmp_path / "found"))


def test_ordinary_pickles_of_models_are_no_files(tmp_path: Path, plain: Any) -> None:
    torch.save(plain, tmp_path / "td.pt")
    with pytest.raises(bu2td.errors.FileError, match=r"is not a file that bu2td.save wrote"):
        bu2td.load(tmp_path / "td.pt", baselines.lenet_fc())


# --- clients ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_opacus_fixes_a_copy(lenet: Any) -> None:
    validators = pytest.importorskip("opacus.validators")
    assert validators.ModuleValidator.validate(lenet.train(), strict=False)
    fixed = validators.ModuleValidator.fix(lenet)
    assert validators.ModuleValidator.is_valid(fixed)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fixed.modules())
    assert fixed(IMAGES).shape == (2, 10)
    with pytest.raises(CopyError, match="changed since it was converted"):
        bu2td.save(fixed, "td.pt")


@pytest.mark.filterwarnings("ignore")
def test_lightning_saves_hyperparameters(lenet: Any, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Trained(lightning.LightningModule):
        def __init__(self, network: nn.Module, rate: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.network = network

        def training_step(self, batch: Any, index: int) -> Any:
            return self.network(batch).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), self.hparams.rate)

    trained = Trained(lenet)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, **options)
    trainer.fit(trained, torch.utils.data.DataLoader(torch.rand(4, 1, 32, 32), 2))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    found = Trained.load_from_checkpoint(tmp_path / "end.ckpt", weights_only=False)
    assert torch.equal(_logits(found.network.eval()), _logits(trained.network.eval()))
