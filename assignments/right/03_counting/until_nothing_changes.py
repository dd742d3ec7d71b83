# ruff: noqa
# %% by_hand
import math

volume_by_hand = sum([WIDTH * SIZE**2] + 4 * [WIDTH * math.ceil(SIZE / 2) ** 2])
flops_of_inner = 2 * 9 * WIDTH**2 * math.ceil(SIZE / 2) ** 2


# %% areas
def areas(network, size):
    by = {c.name: c for c in network}

    def side(c):
        n = side(by[c.reads[0]]) if c.reads else size
        return int((n + 2 * c.padding - c.kernel) / c.stride + 1)

    return {c.name: side(c) ** 2 for c in network}


# %% live
def live(network, opened):
    alive = dict(opened)
    while True:
        new = {}
        for c in network:
            ok = True
            if c.reads and not any(bool(alive[r].any()) for r in c.reads):
                ok = False
            if c is not network[-1] and not any(c.name in o.reads and alive[o.name].any() for o in network):
                ok = False
            new[c.name] = alive[c.name] if ok else torch.zeros_like(alive[c.name])
        if all(torch.equal(new[k], alive[k]) for k in new):
            return new
        alive = new


# %% volume
def volume(network, alive, area):
    return int(sum(torch.count_nonzero(alive[c.name]) * area[c.name] for c in network))


# %% flops
def flops(network, alive, area):
    total = 0
    for c in network:
        n = len(set().union(*(alive[r].nonzero().flatten().tolist() for r in c.reads))) if c.reads else 3
        total = total + 2 * c.kernel**2 * n * alive[c.name].sum() * area[c.name]
    return total
