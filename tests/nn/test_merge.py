"""Merges: what each way to join computes."""

import torch
from torch import nn

from bu2td.nn import Merge


def test_merges_compute_what_they_say() -> None:
    x, lateral = torch.rand(1, 2, 4, 4), torch.rand(1, 2, 4, 4)
    seen = {join: Merge(nn.Identity(), join=join)(x, lateral) for join in ("add_concat", "add", "concat")}
    torch.testing.assert_close(seen["add_concat"], torch.cat([x + lateral, lateral], 1))
    torch.testing.assert_close(seen["add"], x + lateral)
    torch.testing.assert_close(seen["concat"], torch.cat([x, lateral], 1))
