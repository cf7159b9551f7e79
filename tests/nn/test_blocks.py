"""Residual blocks, axis attention, modulation, adversary: shapes, gradients, closed forms."""

import math

import pytest
import torch

from neurotome.nn.adversary import ModalityAdversary, reversal_ramp, reverse_gradient
from neurotome.nn.attention import AxisAttention, MultiAxisAttention, attend
from neurotome.nn.modulation import FiLM, modulate
from neurotome.nn.residual import ResidualBlock

SHAPES = [(4, 6, 5), (1, 6, 5), (4, 1, 5), (4, 6, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("groups", "factored"), [(4, True), (4, False), (0, False)])
def test_residual_block_shape_and_gradients(shape, groups, factored):
    block = ResidualBlock(3, 8, 16, groups, factored)
    gamma, beta = torch.full((2, 16), 1.5), torch.randn(2, 16)
    block(torch.randn(2, 8, *shape), (gamma, beta)).square().sum().backward()
    with_gradient = {name for name, p in block.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, _ in block.named_parameters()}


def test_residual_block_without_normalisation_starts_as_its_skip():
    block, x = ResidualBlock(3, 8, 8, 0), torch.randn(1, 8, 4, 4, 4)
    block.conv2.bias.data.zero_()
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("groups", [0, 4])
def test_residual_block_without_gradients_is_the_same_and_leaves_its_input(groups):
    torch.manual_seed(0)
    block = ResidualBlock(3, 8, 8, groups)
    torch.nn.init.normal_(block.conv2.weight)
    x = torch.randn(2, 8, 4, 5, 3)
    kept = x.clone()
    with torch.no_grad():
        y = block(x)
    assert torch.equal(x, kept)
    assert torch.equal(y, block(x))


def attention_by_hand(layer: AxisAttention, x: torch.Tensor) -> torch.Tensor:
    """Softmax(QK^T / sqrt(d)) V, one line and one head at a time."""
    out = x.clone()
    h = layer.norm(x)
    b, c, *size = x.shape
    d = c // layer.num_heads
    others = [a for a in range(3) if a != layer.axis]
    for i in range(b):
        for p in range(size[others[0]]):
            for q in range(size[others[1]]):
                index = [slice(None)] * 3
                index[others[0]], index[others[1]] = p, q
                line = h[(i, slice(None), *index)].t()  # (length, c)
                query, key, value = layer.qkv(line).split(c, dim=1)
                heads = []
                for n in range(layer.num_heads):
                    s = slice(n * d, (n + 1) * d)
                    heads.append(torch.softmax(query[:, s] @ key[:, s].t() / math.sqrt(d), dim=1) @ value[:, s])
                out[(i, slice(None), *index)] += layer.out(torch.cat(heads, dim=1)).t()
    return out


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(3, 4, 5), (1, 1, 1)])
def test_axis_attention_equals_a_loop(axis, shape):
    layer, x = AxisAttention(8, 2, axis, norm_groups=4), torch.randn(2, 8, *shape)
    assert torch.allclose(layer(x), attention_by_hand(layer, x), atol=1e-5)


def test_attention_skips_a_flat_axis_and_reaches_every_parameter():
    block = MultiAxisAttention(3, 8, 2, 4)
    x = torch.randn(1, 8, 1, 4, 5)
    expected = block[2](block[1](x))
    assert torch.equal(block(x, (True, False, False)), expected)
    assert not torch.allclose(block(x), expected, atol=1e-3)  # an axis that was halved to 1 is not skipped
    block(torch.randn(1, 8, 3, 4, 5)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters() if p.ndim > 1)
    assert len(MultiAxisAttention(2, 8, 2, 4)) == 2


def test_attention_refuses_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="multiple of num_heads"):
        AxisAttention(8, 3, 0)


def test_modulation_starts_as_identity_and_follows_the_formula():
    film = FiLM(4, 8, [3, 5])
    h = torch.randn(2, 5, 2, 3, 4)
    first, second = film(torch.randn(2, 4))
    assert torch.equal(modulate(h, second), h)
    assert first[0].shape == (2, 3)
    gamma, beta = torch.randn(2, 5), torch.randn(2, 5)
    expected = torch.stack([torch.stack([gamma[i, c] * h[i, c] + beta[i, c] for c in range(5)]) for i in range(2)])
    assert torch.allclose(modulate(h, (gamma, beta)), expected, atol=1e-6)


def test_gradient_is_reversed_and_scaled():
    x = torch.randn(3, requires_grad=True)
    (reverse_gradient(x, 0.25) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert torch.allclose(x.grad, torch.tensor([-0.25, -0.5, -0.75]))


def test_reversal_ramp_ends():
    assert reversal_ramp(0) == 0
    assert reversal_ramp(1) == pytest.approx(2 / (1 + math.exp(-10)) - 1)
    assert reversal_ramp(7) == reversal_ramp(1)


def test_adversary_learns_while_the_encoder_is_pushed_away():
    adversary = ModalityAdversary(3, 4, 2, hidden=8, norm_groups=2)
    z = torch.randn(2, 4, 2, 2, 2, requires_grad=True)
    target = torch.tensor([0, 1])
    loss = torch.nn.functional.cross_entropy(adversary(z, 1.0), target)
    loss.backward()
    with torch.no_grad():
        worse = torch.nn.functional.cross_entropy(adversary(z - 1e-2 * z.grad / z.grad.norm(), 1.0), target)
    assert worse > loss  # descending the reversed gradient makes the contrast harder to read


def test_attention_on_a_cpu_is_in_single_precision_whatever_comes_in():
    query, key, value = (torch.randn(2, 3, 8, 4).bfloat16() for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(query, key, value)
    scores = query.double() @ key.double().transpose(-1, -2) / 2
    expected = scores.softmax(-1) @ value.double()
    assert found.dtype == torch.bfloat16
    # rounded once, at the end; torch's kernel in bfloat16 rounds the weights too
    assert torch.equal(found, expected.float().bfloat16())


def test_a_factored_block_can_leave_its_depth_out():
    block, x = ResidualBlock(3, 8, 8, 4, factored=True), torch.randn(1, 8, 1, 4, 5)
    torch.nn.init.normal_(block.conv1.depth.weight)
    plane = block(x, skip_depth=True)
    expected = x + block.conv2.plane(block.act(block.norm2(block.conv1.plane(block.act(block.norm1(x))))))
    assert torch.allclose(plane, expected, atol=1e-5)
    assert not torch.allclose(block(x), expected, atol=1e-2)
    whole = ResidualBlock(3, 8, 8, 4)
    assert torch.equal(whole(x, skip_depth=True), whole(x))  # nothing to leave out
