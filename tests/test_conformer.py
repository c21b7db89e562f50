"""The encoder: padding invariance, positions, lengths, taps, and the fast dropout."""

import pytest
import torch
import torch.nn.functional as F

from common.conformer import Conformer, Convolution, Dropout, Subsampling, length_mask, rotary_table, rotate, subsampled


def encoder(**changes) -> Conformer:
    torch.manual_seed(0)
    sizes = dict(dim=32, layers=3, heads=4, ff_dim=64, kernel=7, dropout=0.1, subsampling=4, channels=4)
    return Conformer(**(sizes | changes)).eval()


def test_mask():
    assert length_mask(torch.tensor([4, 2]), 4).int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize("factor", [4, 8])
@pytest.mark.parametrize("macaron", [True, False])
def test_alone_is_as_in_a_padded_batch(factor, macaron):
    model = encoder(subsampling=factor, macaron=macaron)
    features, frames = torch.randn(4, 120, 80), torch.tensor([120, 77, 31, 2])
    features[3] = 1e3  # rubbish in the padding of others must not leak, nor may a too short one give NaN
    for i, n in enumerate(frames):
        features[i, n:] = 1e3
    out, lengths, taps = model(features, frames, (1, 3))
    assert lengths.tolist() == [subsampled(int(n), factor) for n in frames] and lengths[3] == 0
    assert out.isfinite().all()
    for i, n in enumerate(frames[:3]):
        alone, length, alone_taps = model(features[i : i + 1, :n], frames[i : i + 1], (1, 3))
        assert length == lengths[i]
        for batched, single in ((out, alone), *zip(taps, alone_taps, strict=True)):
            assert (batched[i, :length] - single[0, :length]).abs().max() <= 1e-5


def test_no_gradient_reaches_padding():
    features = torch.randn(2, 60, 80, requires_grad=True)
    out, lengths, _ = encoder()(features, torch.tensor([60, 40]))
    out[length_mask(lengths, out.shape[1])].pow(3).sum().backward()
    assert (features.grad[1, 40:] == 0).all() and (features.grad[1, :35] != 0).any()


@pytest.mark.parametrize("factor", [4, 8])
def test_lengths_are_those_of_the_convolutions(factor):
    layer = Subsampling(80, 8, factor, 2)
    for frames in range(2 * factor - 1, 100):
        assert layer(torch.zeros(1, frames, 80)).shape[1] == subsampled(frames, factor)
    assert subsampled(layer.shortest, factor) == 1 and subsampled(layer.shortest - 1, factor) == 0
    assert subsampled(torch.arange(100), factor).tolist() == [subsampled(n, factor) for n in range(100)]


def test_the_last_tap_is_the_output_and_taps_keep_their_order():
    model = encoder()
    features, frames = torch.randn(1, 60, 80), torch.tensor([60])
    out, _, taps = model(features, frames, (3, 1))
    assert torch.equal(taps[0], out)
    shallow = encoder(layers=1)
    shallow.load_state_dict(model.state_dict(), strict=False)
    assert torch.allclose(taps[1], shallow(features, frames)[0])


def test_rotary_dot_products_depend_on_distance_alone():
    q, k = torch.randn(1, 1, 1, 1, 8, dtype=torch.float64), torch.randn(1, 1, 1, 1, 8, dtype=torch.float64)
    table = tuple(x.double() for x in rotary_table(20, 8, "cpu"))
    q, k = (rotate(x.expand(1, 20, 1, 1, 8), table)[0, :, 0, 0] for x in (q, k))
    scores = q @ k.T
    for distance in (-5, 0, 3):
        diagonal = scores.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-6)
    assert not torch.allclose(scores[0, 0], scores[0, 5])


def test_positions_matter():
    model, features = encoder(kernel=1), torch.randn(1, 60, 80)
    out, _, _ = model(features, torch.tensor([60]))
    mixed, _, _ = model(features.flip(1), torch.tensor([60]))
    assert not torch.allclose(out.flip(1), mixed, atol=1e-3)


def test_the_depthwise_convolution_is_its_own_module():
    torch.manual_seed(0)
    module, x = Convolution(8, 5), torch.randn(2, 9, 8)
    mask = length_mask(torch.tensor([9, 6]), 9)
    inner = F.glu(module.pointwise_in(module.norm(x)), -1).masked_fill(~mask[..., None], 0.0)
    inner = module.depthwise(inner.transpose(1, 2)).transpose(1, 2)
    expected = module.pointwise_out(F.silu(module.depthwise_norm(inner)))
    assert torch.allclose(module(x, mask), expected, atol=1e-6)


def test_fast_dropout_is_dropout():
    torch.manual_seed(0)
    layer, x = Dropout(0.3), torch.ones(1001, 999, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert abs((y == 0).float().mean() - 0.3) < 3e-3
    assert torch.allclose(y[y != 0], torch.tensor(1 / 0.7)) and torch.equal(x.grad, y.detach())
    assert layer.eval()(x) is x or torch.equal(layer(x), x)
    neighbours = F.avg_pool1d((y.detach() == 0).float(), 4)  # four elements share one random number: still independent
    assert abs(neighbours.var() * 4 - 0.3 * 0.7) < 3e-3
    torch.manual_seed(1)
    a = Dropout(0.5)(torch.ones(100))
    torch.manual_seed(1)
    assert torch.equal(a, Dropout(0.5)(torch.ones(100)))


def test_every_parameter_is_used():
    model = encoder().train()
    model(torch.randn(2, 60, 80), torch.tensor([60, 50]))[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())
