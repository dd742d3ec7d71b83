# ruff: noqa
# %% barrier
def barrier(volume, a, b):
    inside = volume < b
    v = torch.where(inside, volume, torch.full_like(volume, a)).clamp(min=a)
    f = (v - a).square() / (b - v) / (b - a)
    return f.masked_fill(~inside, math.inf)


# %% capped
def capped(f, cap):
    return torch.where(f > cap, torch.tensor(cap), f)


# %% transition
def transition(i, d):
    sig = lambda x: torch.sigmoid(torch.tensor(x)).item()
    delta = sig(-0.5 * d)
    return (sig(d * (i - 0.5)) - delta) / (1 - 2 * delta)


# %% margins
def margins(T, full, budget):
    return budget - 1e-4 * full, (1 - T) * full + T * budget


# %% along
def along(volumes, epochs, T, margins_at, f, cap):
    import numpy as np

    i = np.linspace(0, 1, len(volumes))
    return [min(f(v, *margins_at(T(float(x)))), cap) for v, x in zip(volumes, i)]


# %% numbers
B = FEATURES / FACTOR
a = B - 1e-4 * FEATURES
b = 1.01 * FEATURES
import numpy as np

to_shut = FEATURES - np.ceil(B).astype(int) + 1
first_f = np.float64((FEATURES - a) ** 2 / ((b - FEATURES) * (b - a)))
