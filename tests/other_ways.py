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
}
