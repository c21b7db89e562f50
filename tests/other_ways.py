"""Right solutions of the exercises, written differently from the master's: {exercise: {module.function: text}}."""

OTHER_WAYS = {
    "week0-1": {
        "week0.ctc_alpha": """
def ctc_alpha(log_probs, target):
    p = log_probs.exp()
    states = [0] + [x for label in target for x in (label, 0)]
    rows = [[0.0] * len(states) for _ in p]
    for s in range(min(2, len(states))):
        rows[0][s] = p[0, states[s]].item()
    for t in range(1, len(p)):
        for s, label in enumerate(states):
            total = sum(rows[t - 1][max(0, s - 1) : s + 1])
            if s > 1 and states[s - 2] not in (label, 0):
                total += rows[t - 1][s - 2]
            rows[t][s] = total * p[t, label].item()
    return torch.tensor(rows, dtype=torch.float64).log()
"""
    },
    "week0-2": {
        "week0.transducer_alpha": """
def transducer_alpha(blank, label):
    T, columns = blank.shape
    nodes = {(0, 0): torch.zeros((), dtype=blank.dtype)}
    for d in range(1, T + columns - 1):
        for t in range(max(0, d - columns + 1), min(T, d + 1)):
            u = d - t
            ways = []
            if (t - 1, u) in nodes:
                ways.append(nodes[t - 1, u] + blank[t - 1, u])
            if (t, u - 1) in nodes:
                ways.append(nodes[t, u - 1] + label[t, u - 1])
            nodes[t, u] = torch.stack(ways).logsumexp(0)
    return torch.stack([torch.stack([nodes[t, u] for u in range(columns)]) for t in range(T)])
"""
    },
    "week0-3": {
        "week0.word_error_rate": """
def word_error_rate(references, hypotheses):
    from functools import cache
    total = 0
    for reference, hypothesis in zip(references, hypotheses):
        a, b = reference.split(), hypothesis.split()
        @cache
        def cost(i, j):
            if i == 0 or j == 0:
                return i + j
            if a[i - 1] == b[j - 1]:
                return cost(i - 1, j - 1)
            return 1 + min(cost(i - 1, j), cost(i, j - 1), cost(i - 1, j - 1))
        total += cost(len(a), len(b))
    return total / len(" ".join(references).split()) * 100
"""
    },
    "interaed-1": {
        "interaed_kd.soften": """
def soften(logits, tau):
    largest = logits.amax(-1, keepdim=True)
    powers = torch.exp((logits - largest) / tau)
    return powers / powers.sum(-1, keepdim=True)
""",
        "bert.SharedPieces.top_k": """
def top_k(self, rows, positions, k):
    longest = self.teacher.longest
    labels, logits = [], []
    for row, position in zip(rows, positions):
        z = self.teacher.logits_at([row[:longest]], [min(position, longest - 1)])[0]
        best = sorted(zip(self.labels.tolist(), z[self.ids].tolist()), key=lambda x: -x[1])[:k]
        labels.append([x[0] for x in best])
        logits.append([x[1] for x in best])
    return torch.tensor(labels), torch.tensor(logits)
""",
    },
    "interaed-2": {
        "interaed_kd.smoothed_cross_entropy": """
def smoothed_cross_entropy(log_probs, q, mask, epsilon):
    V = log_probs.shape[-1]
    wanted = torch.full_like(log_probs, epsilon / V)
    wanted = wanted.scatter_add(-1, q.labels, (1 - epsilon) * q.probs)
    return -(wanted * log_probs).sum(-1)[mask].sum()
"""
    },
    "multirep-1": {
        "rnnt.lattice": """
def lattice(blank, label, lengths, target_lengths):
    B, T, columns = blank.shape
    blanks = torch.zeros(B, T, columns, dtype=torch.float64)
    gamma = torch.zeros(B, T, columns, dtype=torch.float64)
    losses = []
    for b in range(B):
        end, U = int(lengths[b]), int(target_lengths[b])
        found = []
        for frames in itertools.combinations_with_replacement(range(end), U):
            walk, log_p, u = [], 0.0, 0
            for t in range(end):
                while u < U and frames[u] == t:
                    log_p = log_p + label[b, t, u].double()
                    walk.append((True, t, u))
                    u += 1
                log_p = log_p + blank[b, t, u].double()
                walk.append((False, t, u))
            found.append((log_p, walk))
        total = torch.stack([log_p for log_p, _ in found]).logsumexp(0)
        losses.append(-total)
        for log_p, walk in found:
            for is_label, t, u in walk:
                (gamma if is_label else blanks)[b, t, u] += (log_p - total).exp()
    return Lattice(torch.stack(losses), blanks, gamma)
import itertools
"""
    },
    "multirep-2": {
        "multirep_kd.label_features": """
def label_features(gamma, h, g):
    rows = []
    for u in range(gamma.shape[2]):
        weighted = (gamma[:, :, u, None] * h).sum(1)
        rows.append(torch.cat([weighted, g[:, u]], -1))
    return torch.stack(rows, 1)
"""
    },
    "streaming-1": {
        "streaming_aux_kd.feature_distance": """
def feature_distance(h, z):
    def normed(x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    h, z = normed(h), normed(z)
    cosine = (h * z).sum(-1) / (h.norm(dim=-1) * z.norm(dim=-1))
    return (h - z).abs().sum(-1) / h.shape[-1] + torch.log(1 + torch.exp(-cosine))
"""
    },
    "streaming-2": {
        "streaming_aux_kd.future_loss": """
def future_loss(h, r, mask, steps):
    total = h.new_zeros(())
    for t in range(h.shape[1] - steps):
        d = feature_distance(h[:, t + steps : t + steps + 1], r[:, t : t + 1])[:, 0]
        total = total + d[mask[:, t + steps]].sum()
    return total
"""
    },
    "hubert-1": {
        "hubert_gpt_bridge.vectors_of": """
def vectors_of(log_probs, mode):
    path = log_probs.argmax(-1).tolist()
    if mode != "average" and not any(path):
        least = int(log_probs[:, 0].argmin())
        return torch.tensor([0 if t == least else -1 for t in range(len(path))])
    found, vector, previous = [], -1, None
    for label in path:
        if label == 0 and mode != "average":
            found.append(-1)
        else:
            if mode == "remove_blank" or label != previous:
                vector += 1
            found.append(vector)
        previous = label
    return torch.tensor(found)
"""
    },
    "hubert-2": {
        "hubert_gpt_bridge.compress": """
def compress(h, lengths, log_probs, mode):
    rows = []
    for i, n in enumerate(lengths.tolist()):
        into = vectors_of(log_probs[i, :n], mode)
        means = [h[i, :n][into == v].mean(0) for v in range(int(into.max()) + 1)]
        rows.append(torch.stack(means))
    longest = max(len(row) for row in rows)
    out = h.new_zeros(len(rows), longest, h.shape[2])
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out, [len(row) for row in rows]
"""
    },
    "llm-1": {
        "llm_prompt_asr.stack": """
def stack(h, lengths, n):
    B, T, D = h.shape
    out = h.new_zeros(B, -(-T // n), n * D)
    for b in range(B):
        for t in range(int(lengths[b])):
            out[b, t // n, t % n * D : (t % n + 1) * D] = h[b, t]
    return out, torch.ceil(lengths / n).long()
"""
    },
    "llm-2": {
        "prompting.build_sequences": """
def build_sequences(embedding, speech, lengths, texts, frame, shown=None):
    rows, targets = [], []
    texts_or_none = texts or [[] for _ in lengths]
    for x, n, text, read in zip(speech, lengths, texts_or_none, shown or texts_or_none):
        parts = [embed(embedding, frame.before, x), x[:n]]
        parts += [embed(embedding, frame.after, x), embed(embedding, read, x)]
        row = torch.cat(parts)
        target = torch.full((len(row),), NONE)
        target[len(row) - len(text) - 1 :] = torch.tensor([*text, frame.end])
        rows.append(row)
        targets.append(target)
    return pad(rows, targets, "left" if texts is None else "right")
"""
    },
}

STREAM = """
import torch
from common import conformer, conformer_stream

def encoder():
    torch.manual_seed(0)
    sizes = dict(dim=16, layers=2, heads=2, ff_dim=16, kernel=5, dropout=0.0, subsampling=4)
    return conformer.Conformer(**sizes, channels=4, chunk=2, left=4).eval()
"""

IN_PORTIONS = (
    STREAM
    + """
def test_a_stream_is_the_file():
    model = encoder()
    mel = torch.randn(1, 32, 80)
    whole = model(mel, torch.tensor([32])).output
    state, parts = conformer_stream.fresh_state(model, 1), []
    for part in mel.split(8, 1):
        encoded, state = conformer_stream.encode_piece(model, part, torch.tensor([8]), state)
        parts.append(encoded.output)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)
"""
)

NO_FUTURE = (
    STREAM
    + """
def test_the_future_changes_nothing():
    model = encoder()
    mel = torch.randn(1, 32, 80)
    other = mel.clone()
    other[:, 16:] += 1
    before, after = (model(x, torch.tensor([32])).output[:, :4] for x in (mel, other))
    assert torch.equal(before, after)
"""
)

ALONE = """
import torch
from common.features import LogMel

def test_the_beginning_does_not_depend_on_the_end():
    torch.manual_seed(0)
    frontend = LogMel()
    wave = torch.randn(1, 16000)
    longer, _ = frontend(wave, torch.tensor([16000]))
    shorter, frames = frontend(wave[:, :8000], torch.tensor([8000]))
    assert torch.allclose(longer[:, : int(frames)], shorter, atol=1e-4)
"""

ASKED = """
from types import SimpleNamespace
import torch
import interaed_kd
from common.bert import Answer, Question

def test_every_token_is_masked_at_its_own_place():
    asked = []
    def top_k(rows, positions, k):
        asked.extend(zip(rows, positions))
        return torch.zeros(len(rows), k, dtype=torch.long), torch.zeros(len(rows), k)
    pieces = SimpleNamespace(teacher=SimpleNamespace(mask=99), top_k=top_k)
    pieces.with_exceptions = lambda question, labels, logits: Answer(labels, logits)
    interaed_kd.label_tokens(pieces, [Question((2, 7, 8, 3), 1, (4, 5))], 2)
    assert asked == [([2, 99, 8, 3], 1), ([2, 7, 99, 3], 2)]
"""

SHARES = """
from types import SimpleNamespace
import torch
import interaed_kd
from common.running import command_line

class Recogniser(torch.nn.Module):
    def forward(self, waves, samples, taps):
        return [torch.zeros(1, 4, 5)] * (len(taps) + 1), torch.tensor([4])
    def log_probs(self, state):
        return torch.zeros(1, 4, 5).log_softmax(-1)

class Decoder(torch.nn.Module):
    def forward(self, states, lengths, targets):
        return [torch.zeros(1, 2, 5).log_softmax(-1)] * len(states)

def test_lam_is_the_share_of_ctc():
    argv = "--preset smoke --method interaed --ctc-share 0.9".split()
    (config,) = command_line.parse(interaed_kd.PRESETS, interaed_kd.__doc__, argv)
    models = torch.nn.ModuleDict({"recogniser": Recogniser(), "decoder": Decoder()})
    batch = SimpleNamespace(
        waves=None, samples=None, targets=torch.tensor([[1]]), target_lengths=torch.tensor([1])
    )
    place = SimpleNamespace(autocast=lambda: torch.autocast("cpu", enabled=False))
    loss, parts = interaed_kd.compute_losses(models, batch, None, config, place)
    assert torch.isclose(loss, 0.9 * parts["ctc"] + 0.1 * parts["att"])
"""

# A test that finds each bug of the exercises to break.
FINDS = {"break-1": [NO_FUTURE, IN_PORTIONS, ALONE], "break-2": [ASKED, ASKED, SHARES]}
