"""Operations that PyTorch's counter does not know."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count


def cpu_attention() -> dict[Any, Callable[..., int]]:
    """Of PyTorch's attention on a CPU."""

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }


def onednn_products() -> dict[Any, Callable[..., int]]:
    """Of `mgct.products`."""

    def product(x: Any, *others: Any, **__: Any) -> int:
        added = len(others) > 1 and others[1] is not None and len(others[1]) == 2  # what it is added to comes first
        weight = others[1] if added else others[0]
        return 2 * prod(x) * int(weight[0])

    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return {}
    return {torch.ops.mkldnn._linear_pointwise: product}
