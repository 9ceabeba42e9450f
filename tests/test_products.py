"""Products by oneDNN are products, and are used where they are faster."""

import pytest
import torch
import torch.nn.functional as F

from mgct import AVPipeline, attention, products
from mgct.errors import MgctWarning
from mgct.layout import make_accelerator
from tests.test_pipeline import CLIP, tiny_unet

HAVE_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")
HALF_BY_ONEDNN = HAVE_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.fixture
def onednn(monkeypatch):
    """On any machine that has it."""
    if not HAVE_ONEDNN:
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(products, "by_onednn", lambda: True)
    monkeypatch.setattr(products, "MIN_PRODUCTS", 0)
    monkeypatch.setattr(products, "MIN_CHANNELS", 0)


def draw(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def relative(ours, exact):
    return float((ours.double() - exact).norm() / exact.norm())


def beside_float64(ours, exact, inputs):
    """Output and gradients of float32 inputs, all together and each alone."""
    inputs = [x.requires_grad_() for x in inputs]
    precise = [x.detach().double().requires_grad_() for x in inputs]
    out, wanted = ours(*inputs), exact(*precise)
    assert out.shape == wanted.shape
    assert relative(out.detach(), wanted.detach()) < 1e-6
    (grad,) = draw(out.shape)
    gradients = torch.autograd.grad(out, inputs, grad)
    for one, other in zip(gradients, torch.autograd.grad(wanted, precise, grad.double()), strict=True):
        assert one.shape == other.shape
        assert relative(one, other) < 1e-6
    for index, whole in enumerate(gradients):
        alone = [x.detach().requires_grad_(place == index) for place, x in enumerate(inputs)]
        (gradient,) = torch.autograd.grad(ours(*alone), alone[index], grad)
        torch.testing.assert_close(gradient, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("shape", [(40, 24), (3, 7, 24), (2, 1500, 24)])
def test_a_pointwise_layer(monkeypatch, shape):
    used = []
    whole = products._onednn
    monkeypatch.setattr(products, "_onednn", lambda *a: used.append(a) or whole(*a))
    beside_float64(products.linear, F.linear, draw(shape, (20, 24), (20,)))
    assert used
    to = (*shape[:-1], 20)

    def exact(x, weight, bias, to):
        return to + F.linear(x, weight, bias)

    beside_float64(products.linear, exact, draw(shape, (20, 24), (20,), to))
    (x, weight, to) = draw(shape, (20, 24), to)
    torch.testing.assert_close(products.linear(x, weight, None, to), to + x @ weight.T)
    torch.testing.assert_close(products.linear(x, weight, None), x @ weight.T)
    strided = x[..., ::2]
    torch.testing.assert_close(products.linear(strided, weight[:, 1::2], None), strided @ weight[:, 1::2].T)


@pytest.mark.parametrize(
    "wanted", [False, pytest.param(True, marks=pytest.mark.skipif(not HAVE_ONEDNN, reason="oneDNN"))]
)
def test_products_and_sums(monkeypatch, wanted):
    monkeypatch.setattr(products, "by_onednn", lambda: wanted)
    monkeypatch.setattr(products, "MIN_CHANNELS", 0)
    a, b, c = draw((5, 30, 8), (5, 12, 8), (2500, 16))
    torch.testing.assert_close(products.product(a, b), a @ b.mT)
    torch.testing.assert_close(products.product(a, b.mT.contiguous().mT), a @ b.mT)
    torch.testing.assert_close(products.product(a[0], b[0]), a[0] @ b[0].T)
    torch.testing.assert_close(products.summed(c[:, :9], c[:, 4:]), c[:, :9].T @ c[:, 4:], rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize(("tokens", "keys"), [(7, 12), (12, 7)])
def test_attention(monkeypatch, tokens, keys):
    monkeypatch.setattr(attention, "MIN_SCORES", tokens * keys)
    inputs = draw((2, tokens, 3, 8), (2, keys, 3, 8), (2, keys, 3, 8))

    def exact(*inputs):
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in inputs)).transpose(1, 2)

    assert type(attention.attention(*(x.requires_grad_() for x in inputs)).grad_fn).__name__ == "_ByHeadBackward"
    beside_float64(attention.attention, exact, inputs)
    assert attention.attention(100 * inputs[0], 100 * inputs[1], inputs[2]).isfinite().all()
    monkeypatch.setattr(attention, "MIN_SCORES", tokens * keys + 1)
    assert torch.equal(attention.attention(*inputs), exact(*inputs))


@pytest.mark.usefixtures("onednn")
@pytest.mark.skipif(not HALF_BY_ONEDNN, reason="oneDNN has no bfloat16 here")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("added", [False, True])
def test_a_pointwise_layer_in_bfloat16(monkeypatch, autocast, added):
    """Beside the same by PyTorch: outputs differ by no more than their rounding, gradients have the inputs' types."""
    x, weight, bias, to = draw((3, 50, 24), (20, 24), (20,), (3, 50, 20))
    to = to.bfloat16()
    if not autocast:
        x, weight, bias = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    found = []
    for fast in (True, False):
        monkeypatch.setattr(products, "fast_bfloat16", lambda fast=fast: fast)
        leaves = [value.clone().requires_grad_() for value in (x, weight, bias, *added * [to])]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = products.linear(*leaves)
            assert (type(out.grad_fn).__name__ == "_LinearBackward") == fast
            with torch.no_grad():
                assert torch.equal(products.linear(*leaves), out)
        found.append([out, *torch.autograd.grad(out, leaves, torch.ones_like(out))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2**-6, atol=2**-6)


@pytest.mark.usefixtures("onednn")
def test_other_precisions_are_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(products, "_onednn", None)  # would raise
    monkeypatch.setattr(products, "fast_bfloat16", lambda: False)
    x, weight = (value.double() for value in draw((40, 24), (20, 24)))
    assert torch.equal(products.linear(x, weight, None), F.linear(x, weight))
    x, weight = x.float(), weight.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(x, weight, None).dtype == torch.bfloat16
    monkeypatch.setattr(products, "MIN_PRODUCTS", 40 * 24 * 20 + 1)
    assert torch.equal(products.linear(x, weight, None), F.linear(x, weight))


@pytest.mark.parametrize(
    ("capability", "facts", "wanted"),
    [
        ("AVX512", "vendor_id : AuthenticAMD", HAVE_ONEDNN),
        ("AVX512", "vendor_id : GenuineIntel", False),
        ("AVX2", "vendor_id : AuthenticAMD", False),
        ("AVX512", None, False),
    ],
)
def test_onednn_multiplies_where_mkl_does_not_use_the_vectors(monkeypatch, tmp_path, capability, facts, wanted):
    if facts is not None:
        (tmp_path / "cpuinfo").write_text(facts)
    monkeypatch.setattr(products, "CPU_FACTS", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert products.by_onednn.__wrapped__() is wanted


def test_a_pytorch_without_the_operation(monkeypatch):
    def missing(*_):
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(products, "_onednn", missing)
    assert not products.has_onednn.__wrapped__()
    monkeypatch.setattr(products, "has_onednn", lambda: False)
    monkeypatch.setattr(products, "MIN_PRODUCTS", 0)
    x, weight = (value.bfloat16() for value in draw((40, 24), (20, 24)))
    assert torch.equal(products.linear(x, weight, None), F.linear(x, weight))


def test_how_long_a_precision_takes(monkeypatch):
    """The least of several times, over that of float32; the time is of a product in that precision."""
    seconds = {torch.float32: [0.5, 0.2, 0.4], torch.bfloat16: [1.6, 0.8, 9.0]}
    monkeypatch.setattr(products.timeit, "repeat", lambda product, **_options: seconds[product().dtype])
    assert products.times_as_long.__wrapped__(torch.bfloat16) == pytest.approx(4)


@pytest.fixture(params=[(40.0, True), (0.5, False)], ids=["slow", "fast"])
def warned(monkeypatch, request):
    """Whether the machine, which it is told to be, is to be warned of in half precision."""
    times, warned = request.param
    monkeypatch.setattr(products, "times_as_long", lambda precision: times)
    return warned


def said_of(recwarn):
    return [str(one.message) for one in recwarn if one.category is MgctWarning]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_sampling_warns_of_a_precision_that_the_cpu_is_slow_in(recwarn, warned, precision):
    AVPipeline(tiny_unet(), CLIP).cast(precision)
    name = str(precision).removeprefix("torch.")
    said = said_of(recwarn)
    assert len(said) == (warned and precision != torch.float32)
    assert all(f"in {name}" in text and "40 times" in text for text in said)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="training is on the GPU")
@pytest.mark.usefixtures("other_precision")
@pytest.mark.parametrize("precision", ["fp32", "auto", "bf16"])
def test_training_warns_of_it_too(recwarn, warned, precision):
    make_accelerator(precision)
    assert len(said_of(recwarn)) == (warned and precision == "bf16")
