"""torchinfo (torchinfo): the table has the network's parts and its number of parameters."""

from typing import Any

from ecosystem.kit import SIZE, client


def test_table(network: Any) -> None:
    table = client("torchinfo").summary(network, (1, 3, SIZE, SIZE), verbose=0, row_settings=["var_names"])
    assert table.total_params == sum(p.numel() for p in network.parameters())
    assert table.total_mult_adds > 0
    assert "r1_merge" in str(table)
