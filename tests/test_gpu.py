"""A converted network on a GPU: `pytest -m gpu`.

Times and bytes are properties of the tests, beside the device's name: `pytest -m gpu --junitxml=FILE` keeps them.
"""

import copy
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import Block, head, unit
from torch import Tensor, nn
from torch.nn import functional as F

import bu2td
from bu2td.evaluate import command
from bu2td.graph import full_precision
from bu2td.runtime import TopDownNetwork

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated:DeprecationWarning"),  # of Inductor itself
]

MODES = ("inference", "training")


@pytest.fixture(autouse=True)
def _exact(record_property: Callable[[str, object], None]) -> Any:
    """Convolutions in full single precision, as products are by default; the device's name beside every figure."""
    record_property("device", torch.cuda.get_device_name())
    record_property("torch", str(torch.__version__))
    with full_precision():
        yield


def make(width: int = 16, **options: Any) -> TopDownNetwork:
    """A top-down network of a small residual one, with norms that have seen images."""
    model = nn.Sequential(
        unit(3, width), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2), head(4 * width)
    )
    td = bu2td.convert(model, example_inputs=torch.zeros(1, 3, 32, 32), seed=0, max_macs_ratio=None, **options)
    generator = torch.Generator().manual_seed(1)
    for module in td.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) / 4)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    return td


def images(count: int = 4, size: int = 37) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).abs().max() / expected.abs().max())


def milliseconds(call: Callable[[], Any], rounds: int = 20) -> float:
    """The median time of a call on the device."""
    for _ in range(5):
        call()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


# --- convert ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")
@pytest.mark.parametrize("arrangement", ["td", "uni", "rev"])
def test_convert_on_the_device(arrangement: str) -> None:
    """A network that is made there has the weights and the logits of one that is made here."""
    here, there = make(arrangement=arrangement).eval(), make(arrangement=arrangement, device="cuda").eval()
    assert {p.device.type for p in there.parameters()} == {"cuda"}
    for name, value in here.state_dict().items():
        torch.testing.assert_close(there.state_dict()[name].cpu(), value, rtol=0, atol=0)
    assert relative(there(images().cuda()), here(images())) < 1e-4
    bu2td.verify(there, full=True, size=32)


def test_a_model_on_the_device_stays_there() -> None:
    model = nn.Sequential(unit(3, 8), Block(8, 16, 2), head(16)).cuda()
    td = bu2td.convert(model, example_inputs=torch.zeros(1, 3, 32, 32, device="cuda"), seed=0)
    assert {p.device.type for p in td.parameters()} == {p.device.type for p in model.parameters()} == {"cuda"}


def test_files_go_from_one_device_to_the_other(tmp_path: Path) -> None:
    from bu2td.models import baselines

    td = bu2td.convert(baselines.lenet_fc(), example_inputs=torch.zeros(1, 1, 28, 28), seed=0, device="cuda")
    bu2td.save(td, tmp_path / "td.pt")
    digits = torch.rand(2, 1, 28, 28)
    assert relative(bu2td.load(tmp_path / "td.pt").eval()(digits), td.eval()(digits.cuda())) < 1e-4


# --- optimize -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", ["auto", "always"])
@pytest.mark.parametrize("mode", MODES)
def test_optimize(mode: str, rules: str) -> None:
    td = make().cuda().eval()
    every = {} if rules == "auto" else dict.fromkeys(bu2td.optimization.RULES, "always")
    fast = bu2td.optimize(td, mode, rules=every)
    assert fast.optimization is not None
    for size in (32, 37):
        assert relative(fast.eval()(images(size=size).cuda()), td(images(size=size).cuda())) < 1e-4


@pytest.mark.parametrize("rules", ["auto", "always"])
def test_optimised_gradients(rules: str) -> None:
    """In double precision, where no activation is off because of rounding."""
    td = make().double().cuda().train()
    every = {} if rules == "auto" else dict.fromkeys(bu2td.optimization.RULES, "always")
    fast = bu2td.optimize(td, "training", rules=every).train()
    for network in (td, fast):
        F.cross_entropy(network(images().double().cuda()), torch.arange(4, device="cuda")).backward()
    expected = {name: parameter.grad for name, parameter in td.named_parameters()}
    assert set(expected) == {name for name, _ in fast.named_parameters()}
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    differences = [float((p.grad - expected[name]).abs().max()) for name, p in fast.named_parameters()]
    assert max(differences) < 1e-6 * largest


# --- autocast -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimised", [False, True], ids=["converted", "optimised"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_trains(dtype: torch.dtype, optimised: bool) -> None:
    """A batch is learned by heart, as in single precision, and logits are those of single precision, rounded."""
    td = make().cuda()
    network = bu2td.optimize(td, "training") if optimised else td
    plain = copy.deepcopy(td).eval()
    batch, labels = images(8, 32).cuda(), torch.arange(8, device="cuda")
    with torch.no_grad(), torch.autocast("cuda", dtype):
        rounded = network.eval()(batch)
    assert rounded.dtype == dtype
    assert relative(rounded, plain(batch)) < 0.05
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    losses = []
    for _ in range(30):
        with torch.autocast("cuda", dtype):
            loss = F.cross_entropy(network(batch), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in network.parameters())


# --- compile ------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # advice to round more
@pytest.mark.parametrize("form", ["converted", *MODES])
def test_compile(form: str) -> None:
    """One graph, with the logits of eager, and its gradients where the form trains."""
    td = make().cuda().eval()
    network = td if form == "converted" else bu2td.optimize(td, form).eval()
    compiled = torch.compile(network, fullgraph=True)
    batch = images(4, 32).cuda()
    assert relative(compiled(batch), td(batch)) < 1e-4
    if form != "inference":
        compiled(batch).square().mean().backward()
        found = {name: p.grad.clone() for name, p in network.named_parameters()}
        network.zero_grad()
        network(batch).square().mean().backward()
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)


# --- memory and speed ---------------------------------------------------------------------------------


def step_peak(network: nn.Module, batch: Tensor) -> int:
    """The most bytes of a training step, beside what is there before it."""
    labels = torch.zeros(len(batch), dtype=torch.long, device=batch.device)
    for _ in range(2):  # the first one chooses algorithms, and makes gradients
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        F.cross_entropy(network(batch), labels).backward()
        torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_memory(record_property: Callable[[str, object], None]) -> None:
    """Recomputing takes less, and the prediction, which knows of no workspaces, is not far off."""
    batch = torch.rand(16, 3, 128, 128, device="cuda")
    td = bu2td.optimize(make(32).cuda(), "training").train()
    stored = step_peak(td, batch)
    predicted = bu2td.training_memory(td, tuple(batch.shape)).peak
    td.set_grad_checkpointing(inside=True)
    recomputed = step_peak(td, batch)
    record_property("stored_mib", stored / 2**20)
    record_property("recomputed_mib", recomputed / 2**20)
    record_property("predicted_mib", predicted / 2**20)
    assert recomputed < 0.8 * stored
    assert 0.5 < predicted / stored < 1.5


@pytest.mark.parametrize("mode", MODES)
def test_speed(mode: str, record_property: Callable[[str, object], None]) -> None:
    """The optimised form is not slower; by how much it is faster is kept."""
    td = make(64).cuda().train(mode == "training")
    fast = bu2td.optimize(td, mode, batch_size=32, image_size=128)
    batch = torch.rand(32, 3, 128, 128, device="cuda")

    def call(network: nn.Module) -> Callable[[], Any]:
        def step() -> None:
            with torch.set_grad_enabled(mode == "training"):
                logits = network(batch)
                if mode == "training":
                    logits.square().mean().backward()

        return step

    times = {name: milliseconds(call(network)) for name, network in (("converted", td), ("optimised", fast))}
    for name, value in times.items():
        record_property(f"{name}_ms", value)
    assert times["optimised"] < 1.1 * times["converted"]


# --- evaluate -----------------------------------------------------------------------------------------


def test_evaluate(tmp_path: Path, call: Any) -> None:
    """Everything of a quick look, in small, on the device that it finds."""
    pytest.importorskip("foolbox")
    from tiny_run import FEW, REST, rows, words

    typed = words(tmp_path, *FEW, *REST, "--frequency-samples", "12", "--frequency-step", "8")
    typed[typed.index("cpu")] = "cuda"
    status, _, err = call(command.main, "all", *typed, "-o", tmp_path / "out", "--no-estimate")
    assert (status, "Traceback" in err) == (0, False), err
    accuracy = rows(tmp_path / "out" / "accuracy.csv")
    assert {row["arrangement"] for row in accuracy} == {"bu", "td"}
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
