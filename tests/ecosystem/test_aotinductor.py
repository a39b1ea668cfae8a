"""AOTInductor (torch): a compiled package on disk gives the logits of the network."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ecosystem.kit import images, relative

pytestmark = pytest.mark.slow


def test_package(network: Any, plain: Any, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("there is no compiler")
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    with torch.no_grad():
        program = torch.export.export(network, (images(2),))
        file = aoti_compile_and_package(program, package_path=str(tmp_path / "network.pt2"))
        assert relative(aoti_load_package(file)(images(2)), plain(images(2))) < 1e-4
