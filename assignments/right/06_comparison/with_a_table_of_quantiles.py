# ruff: noqa
# %% differing
def differing(a, b):
    return [
        c for c in ["dataset", "model", "epochs", "distill"] if not (a[c].isin(b[c]).all() and b[c].isin(a[c]).all())
    ]


# %% choose
def choose(trials):
    best, score = None, -1
    for s in trials["setting"].unique():
        m = np.mean(trials.loc[trials["setting"] == s, "validation_accuracy"])
        if m > score:
            best, score = s, m
    return best


# %% paired
def paired(a, b):
    a = dict(zip(a["seed"], a["accuracy"]))
    b = dict(zip(b["seed"], b["accuracy"]))
    return pd.Series({s: 100 * a[s] - 100 * b[s] for s in sorted(set(a) & set(b))})


# %% interval
def interval(differences):
    d = np.asarray(list(differences))
    q = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}[len(d) - 1]
    h = q * d.std(ddof=1) / np.sqrt(len(d))
    return [d.mean() - h, d.mean() + h]


# %% verdict
def verdict(low, high):
    if high < 0:
        return "b"
    elif low > 0:
        return "a"
    else:
        return "cannot be told"


# %% numbers
both = runs[runs.pruning_factor == FACTOR].pivot(index="seed", columns="method", values="accuracy")
d = 100 * (both[METHOD_A] - both[METHOD_B])
d = d.dropna()
mean_difference = d.mean()
low = interval(d)[0]
high = interval(d)[1]
