# ruff: noqa
# %% sample
def sample(log_alpha, epsilon, beta, gamma, zeta):
    u = torch.log(epsilon / (1 - epsilon))
    s = 1 / (1 + torch.exp(-(u + log_alpha) / beta))
    z = s * zeta + (1 - s) * gamma
    return torch.minimum(torch.maximum(z, torch.zeros_like(z)), torch.ones_like(z))


# %% prob_active
def prob_active(log_alpha, beta, gamma, zeta):
    x = torch.tensor(-gamma / (zeta - gamma))
    return 1 - torch.sigmoid(beta * torch.logit(x) - log_alpha)


# %% median
def median(log_alpha, beta, gamma, zeta):
    return sample(log_alpha, torch.full_like(log_alpha, 0.5), beta, gamma, zeta)


# %% l0_rule
def l0_rule(log_alpha, gamma, zeta):
    return median(log_alpha, 1, gamma, zeta)


# %% threshold
def threshold(beta, gamma, zeta):
    return beta * torch.logit(torch.tensor(-gamma / (zeta - gamma)))


# %% gradient
def gradient(log_alpha, epsilon, beta, gamma, zeta):
    z = sample(log_alpha, epsilon, beta, gamma, zeta)
    s = (z - gamma) / (zeta - gamma)
    return ((z > 0) & (z < 1)) * s * (1 - s) * (zeta - gamma) / beta


# %% steps
t = BETA * math.log(-GAMMA / ZETA)
n = 0
while START - n * RATE > t:
    n += 1
steps_median = n
while START - n * RATE > math.log(-GAMMA / ZETA):
    n += 1
steps_l0 = n
