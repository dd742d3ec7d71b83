# ruff: noqa
# %% by_hand
h = (SIZE + 2 - 3) // 2 + 1
volume_by_hand = SIZE * SIZE * WIDTH + 4 * h * h * WIDTH
flops_of_inner = 2 * (3 * 3 * WIDTH) * WIDTH * h * h


# %% areas
def areas(network, size):
    maps = {}
    for c in network:
        x = maps[c.reads[-1]] if c.reads else torch.zeros(1, 1, size, size, device="meta")
        maps[c.name] = torch.nn.Conv2d(1, 1, c.kernel, c.stride, c.padding, device="meta")(x)
    return {k: v.numel() for k, v in maps.items()}


# %% live
def live(network, opened):
    fed, used = {}, {network[-1].name: True}
    for c in network:
        fed[c.name] = bool(opened[c.name].any()) and (not c.reads or any(fed[r] for r in c.reads))
    for c in reversed(network):
        u = used.get(c.name, False) and fed[c.name]
        for r in c.reads:
            used[r] = used.get(r, False) or u
    result = {}
    for c in network:
        reads = not c.reads or any(fed[r] for r in c.reads)
        result[c.name] = opened[c.name] & torch.tensor(used.get(c.name, False) and reads)
    return result


# %% volume
def volume(network, alive, area):
    v = 0
    for name, mask in alive.items():
        v += mask.sum() * area[name]
    return v


# %% flops
def flops(network, alive, area):
    f = 0
    for c in network:
        if len(c.reads) == 0:
            n = 3
        else:
            there = alive[c.reads[0]]
            for r in c.reads[1:]:
                there = there | alive[r]
            n = there.sum().item()
        f += 2 * c.kernel * c.kernel * n * alive[c.name].sum().item() * area[c.name]
    return f
