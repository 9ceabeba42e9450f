"""Attention in bfloat16 on a CPU, beside the same in float32."""

import pytest
import torch
import torch.nn.functional as F

from mgct import attention, products


@pytest.fixture(autouse=True)
def on_any_cpu(monkeypatch):
    monkeypatch.setattr(products, "fast_bfloat16", lambda: True)


def tensors():
    """Query, key, value and a gradient: 5 rows of 3 heads, two of them views of one tensor, as the network's are."""
    torch.manual_seed(0)
    qkv = torch.randn(5, 12, 3, 3, 8).bfloat16()
    return [qkv[:, :7, 0], qkv[:, :, 1], qkv[:, :, 2], torch.randn(5, 7, 3, 8).bfloat16()]


@pytest.mark.parametrize("piece_bytes", [1, 4 * 2 * 7 * 12, 1 << 20], ids=["one", "four of fifteen", "all"])
def test_in_pieces_is_attention(monkeypatch, piece_bytes):
    monkeypatch.setattr(attention, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # each thread's pieces are made together
    results = []
    for kind in (torch.bfloat16, torch.float32):
        *leaves, probe = (x.to(kind) for x in tensors())
        leaves = [x.requires_grad_() for x in leaves]
        out = attention.attention(*leaves)
        assert out.dtype == kind
        results.append([out, *torch.autograd.grad(out, leaves, probe)])
    for ours, exact in zip(*results, strict=True):
        assert ours.shape == exact.shape
        assert float((ours.float() - exact).detach().norm() / exact.detach().norm()) < 0.01


def test_bfloat16_without_its_own_products_is_left_to_pytorch(monkeypatch):
    q, k, v, _ = tensors()
    monkeypatch.setattr(products, "fast_bfloat16", lambda: False)
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert torch.equal(attention.attention(q, k, v), expected)


def test_large_scores_do_not_overflow():
    q, k, v, _ = tensors()
    out = attention.attention(100 * q, 100 * k, v)
    assert out.isfinite().all()
    assert out.abs().max() <= v.abs().max()
