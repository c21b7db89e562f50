"""The encoder: padding, positions, lengths, taps, the chunk mask, and chunk by chunk =
at once."""

import pytest
import torch
import torch.nn.functional as F

from common.conformer import (
    Conformer,
    Convolution,
    SelfAttention,
    Subsampling,
    chunk_mask,
    length_mask,
    rotary_table,
    rotate,
    subsampled,
)
from common.conformer_stream import (
    LayerPast,
    State,
    encode_piece,
    extend,
    fresh_state,
    join_states,
    newest_frames,
    split_state,
)
from common.dependencies import measure

STREAMING = dict(chunk=4, left=8)
DEMO = dict(dim=112, layers=4, ff_dim=448, kernel=15, channels=16)


def encoder(**changes) -> Conformer:
    torch.manual_seed(0)
    sizes = dict(
        dim=32, layers=3, heads=4, ff_dim=64, kernel=7, dropout=0.1, subsampling=4, channels=4
    )
    return Conformer(**(sizes | changes)).eval()


def in_portions(model: Conformer, features: torch.Tensor, portion: int) -> torch.Tensor:
    """features (F, 80), `portion` at a time -> (T, D)."""
    state, outputs = fresh_state(model, 1), []
    for part in features.split(portion):
        encoded, state = encode_piece(model, part[None], torch.tensor([len(part)]), state)
        outputs.append(encoded.output[0, : encoded.lengths[0]])
    return torch.cat(outputs)


def test_masks():
    assert length_mask(torch.tensor([4, 2]), 4).int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert chunk_mask(6, 2, 2).int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1, 1],
    ]
    for chunk, left in ((1, 3), (3, 0), (4, 16)):
        expected = [
            [0 <= i // chunk - j // chunk <= left / chunk for j in range(30)] for i in range(30)
        ]
        assert chunk_mask(30, chunk, left).tolist() == expected


@pytest.mark.parametrize("factor", [4, 8])
@pytest.mark.parametrize("context", [{}, {"causal_subsampling": True}, STREAMING, {"chunk": 3}])
def test_alone_is_as_in_a_padded_batch(factor, context):
    model = encoder(subsampling=factor, **context)
    features, frames = torch.randn(4, 120, 80), torch.tensor([120, 77, 31, 2])
    for i, n in enumerate(frames):
        features[i, n:] = (
            1e3  # rubbish in the padding must not leak, nor may an utterance too short give NaN
        )
    out, lengths, taps = model(features, frames, (1, 3))
    assert (
        lengths.tolist() == [subsampled(int(n), factor, bool(context)) for n in frames]
        and lengths[3] == 0
    )
    assert out.isfinite().all() and all(part.isfinite().all() for tap in taps for part in tap)
    for i, n in enumerate(frames[:3]):
        alone, length, alone_taps = model(features[i : i + 1, :n], frames[i : i + 1], (1, 3))
        assert length == lengths[i]
        pairs = [
            (out, alone),
            *(
                pair
                for both in zip(taps, alone_taps, strict=True)
                for pair in zip(*both, strict=True)
            ),
        ]
        for batched, single in pairs:
            assert (batched[i, :length] - single[0, :length]).abs().max() <= 1e-5


@pytest.mark.parametrize("context", [{}, STREAMING])
def test_no_gradient_reaches_padding(context):
    features = torch.randn(2, 60, 80, requires_grad=True)
    out, lengths, *_ = encoder(**context)(features, torch.tensor([60, 40]))
    out[length_mask(lengths, out.shape[1])].pow(3).sum().backward()
    assert (features.grad[1, 40:] == 0).all() and (features.grad[1, :35] != 0).any()


@pytest.mark.parametrize("factor", [4, 8])
def test_lengths_are_those_of_the_convolutions(factor):
    layer = Subsampling(80, 8, factor, 2)
    for frames in range(2 * factor - 1, 100):
        assert layer(torch.zeros(1, frames, 80)).shape[1] == subsampled(frames, factor)
        assert layer(torch.zeros(1, factor - 1 + frames, 80)).shape[1] == subsampled(
            frames, factor, causal=True
        )
    assert subsampled(layer.shortest, factor) == 1 and subsampled(layer.shortest - 1, factor) == 0
    assert (
        subsampled(factor, factor, causal=True) == 1
        and subsampled(factor - 1, factor, causal=True) == 0
    )
    for causal in (False, True):
        assert subsampled(torch.arange(100), factor, causal).tolist() == [
            subsampled(n, factor, causal) for n in range(100)
        ]


@pytest.mark.parametrize("factor", [4, 8])
def test_causal_subsampling_sees_nothing_later(factor):
    model = encoder(layers=1, subsampling=factor, chunk=1, kernel=1)  # a frame sees no other frame
    frames = torch.tensor([64])
    seen = measure(
        lambda x: model(x[None], frames).output[0], torch.randn(64, 80), 1, 1
    )  # (frames, features)
    expected = [
        [factor * (t - 1) + 1 <= f <= factor * (t + 1) - 1 for f in range(64)]
        for t in range(64 // factor)
    ]
    assert seen.tolist() == expected


def test_the_last_tap_is_the_output_and_taps_keep_their_order():
    model = encoder()
    features, frames = torch.randn(1, 60, 80), torch.tensor([60])
    out, _, taps = model(features, frames, (3, 1))
    assert torch.equal(taps[0].output, out)
    shallow = encoder(layers=1)
    shallow.load_state_dict(model.state_dict(), strict=False)
    assert torch.allclose(taps[1].output, shallow(features, frames).output)
    assert all(torch.equal(model.norm(tap.raw), tap.output) for tap in taps)


def test_a_tap_shows_queries_keys_and_values_before_rotation():
    model, features, frames = encoder(), torch.randn(1, 60, 80), torch.tensor([60])
    below, tap = model(features, frames, (1, 2)).taps
    block = model.blocks[1]
    inner = below.raw + 0.5 * block.ff_in(below.raw)
    expected = F.linear(
        block.attention.norm(inner), block.attention.qkv.weight, block.attention.qkv.bias
    )
    assert tap.qkv.shape == (1, 14, 3, 4, 8) and torch.allclose(
        tap.qkv.flatten(2), expected, atol=1e-6
    )


def test_rotary_dot_products_depend_on_distance_alone():
    q, k = (
        torch.randn(1, 1, 1, 8, dtype=torch.float64),
        torch.randn(1, 1, 1, 8, dtype=torch.float64),
    )
    table = rotary_table(20, 8, "cpu", torch.float64)
    q, k = (rotate(x.expand(1, 20, 1, 8), table)[0, :, 0] for x in (q, k))
    scores = q @ k.T
    for distance in (-5, 0, 3):
        diagonal = scores.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-12)
    assert not torch.allclose(scores[0, 0], scores[0, 5])


def test_positions_matter():
    model, features = encoder(kernel=1), torch.randn(1, 60, 80)
    out = model(features, torch.tensor([60])).output
    mixed = model(features.flip(1), torch.tensor([60])).output
    assert not torch.allclose(out.flip(1), mixed, atol=1e-3)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("T", [9, 40])
def test_the_depthwise_convolution_is_its_own_module(causal, T):
    torch.manual_seed(0)
    module, x, lengths = Convolution(8, 5, causal), torch.randn(2, T, 8), torch.tensor([T, T - 3])
    real, N = length_mask(lengths, T), 4 if causal else 0
    inner = F.glu(module.pointwise_in(module.norm(x)), -1).masked_fill(~real[..., None], 0.0)
    padded = F.pad(inner.transpose(1, 2), (N, 0))
    expected = module.pointwise_out(
        F.silu(module.depthwise_norm(module.depthwise(padded).transpose(1, 2)))
    )
    assert torch.allclose(module(x, real), expected, atol=1e-6)
    if causal:
        past = LayerPast(None, torch.zeros(2, N, 8), None, newest_frames(lengths, N))
        assert torch.allclose(module(x, real, past), expected, atol=1e-6)
        assert torch.equal(past.tail, torch.stack([inner[0, T - 4 :], inner[1, T - 7 : T - 3]]))


def test_attention_with_a_mask_of_its_own():
    """One attention layer alone, against a softmax written out per query."""
    torch.manual_seed(0)
    layer, x, mask = SelfAttention(8, 2), torch.randn(1, 5, 8), torch.rand(1, 1, 5, 5) < 0.5
    mask |= torch.eye(5, dtype=torch.bool)
    table = rotary_table(5, 4, "cpu")
    y, qkv = layer(x, mask, table)
    q, k = (rotate(qkv[:, :, i], table)[0] for i in (0, 1))  # (5, 2, 4)
    heads = []
    for h in range(2):
        scores = q[:, h] @ k[:, h].T / 4**0.5
        weights = scores.masked_fill(~mask[0, 0], -torch.inf).softmax(-1)
        heads.append(weights @ qkv[0, :, 2, h])
    assert torch.allclose(y[0], layer.out(torch.cat(heads, dim=-1)), atol=1e-6)


@pytest.mark.parametrize("context", [{}, STREAMING])
def test_every_parameter_is_used(context):
    model = encoder(**context).train()
    model(torch.randn(2, 60, 80), torch.tensor([60, 50])).output.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# ------------------------------------------------------------------------------------------ streams


def test_extend():
    past, new, lengths = (
        torch.tensor([[1, 2], [3, 4]]),
        torch.tensor([[5, 6, 7], [8, 9, 0]]),
        torch.tensor([3, 1]),
    )
    both, kept = extend(past, new, newest_frames(lengths, 2))
    assert both.tolist() == [[1, 2, 5, 6, 7], [3, 4, 8, 9, 0]] and kept.tolist() == [[6, 7], [4, 8]]
    both, kept = extend(past[:, :0], new, newest_frames(lengths, 0))
    assert torch.equal(both, new) and kept.shape == (2, 0)


@pytest.mark.parametrize(
    "context", [STREAMING, dict(chunk=1, left=0), dict(chunk=2, left=6, subsampling=8)]
)
@torch.inference_mode()
def test_in_portions_is_at_once(context):
    model = encoder(**(DEMO | context))
    block = model.chunk * model.factor
    for n in (1, block - 1, block, 3 * block + 5, 213):  # ragged ends too
        features = torch.randn(n, 80)
        expected, length, *_ = model(features[None], torch.tensor([n]))
        for chunks in (1, 2, 3, 100):
            streamed = in_portions(model, features, chunks * block)
            assert streamed.shape == (length, 112)
            assert torch.allclose(streamed, expected[0, :length], rtol=0, atol=1e-5)


@torch.inference_mode()
def test_size_S_in_portions_is_at_once():
    model = encoder(
        dim=176, layers=16, ff_dim=704, kernel=31, channels=32, chunk=4, left=16
    ).double()
    features = torch.randn(330, 80, dtype=torch.float64)
    expected = model(features[None], torch.tensor([330])).output[0]
    for portion in (16, 112):
        assert (in_portions(model, features, portion) - expected).abs().max() <= 1e-10


@torch.inference_mode()
def test_streams_of_different_length_in_one_batch():
    """One ends with a part of a chunk, one has heard nothing yet, one goes on; states
    are joined and split."""
    model, lengths = encoder(**STREAMING), (38, 96, 16)
    waves = [torch.randn(n, 80) for n in lengths]
    states, outputs = [fresh_state(model, 1) for _ in waves], [[], [], []]
    for start, stop in ((0, 32), (32, 48), (48, 96)):
        parts = [wave[start:stop] for wave in waves]
        if start == 0:  # the third begins later
            parts[2] = waves[2][:0]
        elif start == 32:
            parts[2] = waves[2]
        frames = torch.tensor([len(part) for part in parts])
        padded = F.pad(
            torch.nn.utils.rnn.pad_sequence(parts, batch_first=True), (0, 0, 0, 5), value=1e3
        )
        encoded, state = encode_piece(model, padded, frames, join_states(states))
        states = split_state(state)
        for kept, output, length in zip(outputs, encoded.output, encoded.lengths, strict=True):
            kept.append(output[:length])
    for wave, parts in zip(waves, outputs, strict=True):
        expected, length, *_ = model(wave[None], torch.tensor([len(wave)]))
        assert (torch.cat(parts) - expected[0, :length]).abs().max() <= 1e-5
    assert [int(state.seen) for state in states] == list(lengths)


def test_state_has_one_shape_and_keeps_what_it_says():
    model = encoder(**STREAMING)
    state = fresh_state(model, 2)
    shapes = [part.shape for part in state]
    assert shapes == [(2, 3, 80), (2, 3, 8, 2, 4, 8), (2, 3, 6, 32), (2,)]
    features = torch.randn(2, 48, 80)
    for n in (16, 32, 48, 0):
        (_, _, (tap,)), new = encode_piece(model, features[:, :n], torch.full((2,), n), state, (1,))
        assert [part.shape for part in new] == shapes and isinstance(new, State)
        if n == 48:
            assert torch.equal(new.features, features[:, -3:])
            assert torch.equal(new.keys_values[:, 0], tap.qkv[:, -8:, 1:])
        state = new
    assert state.seen.tolist() == [96, 96]


@torch.inference_mode()
def test_an_hour_later():
    """Positions do not count: where nothing kept from it is in reach, an hour that went
    before changes nothing."""
    model = encoder(layers=1, **STREAMING)
    x, frames = torch.randn(1, 160, 80), torch.tensor([160])
    first, _ = encode_piece(model, x, frames, fresh_state(model, 1))
    later = fresh_state(model, 1)._replace(seen=torch.tensor([16 * 22_500]))
    second, _ = encode_piece(model, x, frames, later)
    assert (first.output - second.output).abs().amax(2)[0, 20:].max() <= 1e-6


def test_errors():
    with pytest.raises(ValueError, match="multiple of the chunk"):
        encoder(chunk=4, left=6)
    with pytest.raises(ValueError, match="multiple of the chunk"):
        encoder(left=4)
    x, frames = torch.randn(1, 18, 80), torch.tensor([18])
    with pytest.raises(ValueError, match="full context"):
        encode_piece(encoder(), x, frames, fresh_state(encoder(), 1))
    model = encoder(**STREAMING)
    _, ended = encode_piece(model, x, frames, fresh_state(model, 1))
    encode_piece(model, x, torch.tensor([0]), ended)
    with pytest.raises(ValueError, match="has ended"):
        encode_piece(model, x, frames, ended)


# ----------------------------------------------------------------------------- what depends on what


def outputs(model: Conformer):
    """features (F, 80) -> output, raw output and queries, keys, values of layer 2, side
    by side (T, …)."""

    def function(features):
        output, _, (tap,) = model(features[None], torch.tensor([len(features)]), (2,))
        return torch.cat([output[0], tap.raw[0], tap.qkv[0].flatten(1)], dim=1)

    return function


@torch.inference_mode()
def test_a_student_depends_on_its_past_and_a_teacher_on_everything():
    features, chunks = torch.randn(16 * 20, 80), torch.arange(20)
    model = encoder(layers=2, kernel=3, **STREAMING)
    seen = measure(outputs(model), features, 16, 4)
    back = chunks[:, None] - chunks
    # Per layer two chunks through attention and one through the convolution; the subsampling
    # reaches one further.
    assert (seen & (back < 0)).sum() == 0 and (seen & (back > 2 * (2 + 1) + 1)).sum() == 0
    assert seen[(back >= 0) & (back <= 2 * 2)].all()
    teacher = encoder(layers=2, kernel=3, causal_subsampling=True)
    assert measure(outputs(teacher), features, 16, 4).all()


@torch.inference_mode()
def test_what_follows_a_chunk_does_not_change_it():
    model, features = encoder(**STREAMING), torch.randn(1, 100, 80)
    changed = features.clone()
    changed[:, 48:] = 1e3
    frames = torch.tensor([100])
    before, after = (model(x, frames).output for x in (features, changed))
    assert torch.equal(before[:, :12], after[:, :12]) and not torch.allclose(
        before[:, 12:], after[:, 12:]
    )
