# ruff: noqa
# %% sample
def sample(log_alpha, epsilon, beta, gamma, zeta):
    epsilon = torch.as_tensor(epsilon, dtype=torch.float32)
    log_alpha = torch.as_tensor(log_alpha, dtype=torch.float32)
    return torch.nn.functional.hardtanh(
        torch.sigmoid((torch.logit(epsilon) + log_alpha) / beta) * (zeta - gamma) + gamma, 0, 1
    )


# %% prob_active
def prob_active(log_alpha, beta, gamma, zeta):
    a = torch.exp(log_alpha.float())
    r = (-gamma / zeta) ** beta
    return a / (a + r)


# %% median
def median(log_alpha, beta, gamma, zeta):
    return torch.clip(torch.sigmoid(log_alpha.float() / beta) * (zeta - gamma) + gamma, 0, 1)


# %% l0_rule
def l0_rule(log_alpha, gamma, zeta):
    return torch.clip(torch.sigmoid(log_alpha.float()) * (zeta - gamma) + gamma, 0, 1)


# %% threshold
def threshold(beta, gamma, zeta):
    import numpy as np

    return np.float32(beta * (np.log(-gamma) - np.log(zeta)))


# %% gradient
def gradient(log_alpha, epsilon, beta, gamma, zeta):
    s = torch.sigmoid((torch.logit(epsilon) + log_alpha) / beta)
    g = s * (1 - s) * (zeta - gamma) / beta
    t = s * (zeta - gamma) + gamma
    g[(t <= 0) | (t >= 1)] = 0
    return g


# %% steps
import numpy as np

way = np.log(-GAMMA / ZETA) * np.array([BETA, 1])
steps_median, steps_l0 = np.ceil((START - way) / RATE).astype(int)
