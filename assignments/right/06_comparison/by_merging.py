# ruff: noqa
# %% differing
def differing(a, b):
    out = []
    for column in ("dataset", "model", "epochs", "distill"):
        if sorted(a[column].unique()) != sorted(b[column].unique()):
            out.append(column)
    return out


# %% choose
def choose(trials):
    means = trials.pivot_table(index="setting", values="validation_accuracy", aggfunc="mean")
    return means.sort_values("validation_accuracy").index[-1]


# %% paired
def paired(a, b):
    both = a.merge(b, on="seed", suffixes=("_a", "_b")).sort_values("seed")
    return pd.Series((100 * (both.accuracy_a - both.accuracy_b)).to_numpy(), index=both.seed)


# %% interval
def interval(differences):
    return stats.t.interval(0.95, len(differences) - 1, loc=differences.mean(), scale=stats.sem(differences))


# %% verdict
def verdict(low, high):
    return "cannot be told" if low <= 0 <= high else ("a" if low > 0 else "b")


# %% numbers
a = runs.query("method == @METHOD_A and pruning_factor == @FACTOR")
b = runs.query("method == @METHOD_B and pruning_factor == @FACTOR")
d = paired(a, b)
mean_difference = d.mean()
low, high = interval(d)
