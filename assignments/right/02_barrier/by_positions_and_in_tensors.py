# ruff: noqa
# %% barrier
def barrier(volume, a, b):
    f = torch.zeros_like(volume)
    m = (volume > a) & (volume < b)
    v = volume[m]
    f[m] = (v - a) ** 2 / ((b - v) * (b - a))
    f[volume >= b] = float("inf")
    return f


# %% capped
def capped(f, cap):
    return torch.minimum(f, torch.full_like(f, cap))


# %% transition
def transition(i, d):
    return 0.5 + 0.5 * math.tanh(d / 2 * (i - 0.5)) / math.tanh(d / 4)


# %% margins
def margins(T, full, budget):
    b = full + T * (budget - full)
    return [budget - full / 10000, b]


# %% along
def along(volumes, epochs, T, margins_at, f, cap):
    n = len(volumes)
    out = []
    for k in range(n):
        a, b = margins_at(T(k / (n - 1)))
        out.append(capped(torch.tensor(f(volumes[k], a, b)), cap).item())
    return out


# %% numbers
to_shut = 0
while not FEATURES - to_shut < FEATURES / FACTOR:
    to_shut += 1
V = torch.tensor(float(FEATURES))
first_f = barrier(V[None], FEATURES / FACTOR - 1e-4 * FEATURES, 1.01 * FEATURES).item()
