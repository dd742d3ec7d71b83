# ruff: noqa
# %% cut_conv
def cut_conv(conv, out, inp):
    import copy

    new = copy.deepcopy(conv)
    new.weight = nn.Parameter(conv.weight.detach()[out][:, inp].clone())
    if conv.bias is not None:
        new.bias = nn.Parameter(conv.bias.detach()[out].clone())
    new.out_channels, new.in_channels = len(out), len(inp)
    return new


# %% cut_norm
def cut_norm(norm, keep):
    new = nn.BatchNorm2d(len(keep), eps=norm.eps, momentum=norm.momentum)
    state = {k: v[keep] if v.dim() else v for k, v in norm.state_dict().items()}
    new.load_state_dict(state)
    new.eval()
    return new


# %% parts
def parts(signal, block):
    return (
        [c for c in signal if c not in block],
        [c for c in signal if c in block],
        [c for c in block if c not in signal],
    )


# %% mixed_sum
def mixed_sum(x, delta, signal, block):
    n = max(list(signal) + list(block)) + 1
    full = torch.zeros(x.shape[0], n, x.shape[2], x.shape[3], dtype=x.dtype)
    full = full.index_add(1, torch.tensor(signal), x).index_add(1, torch.tensor(block), delta)
    return full[:, sorted(set(signal + block))]


# %% fold
def fold(conv, z):
    import copy

    new = copy.deepcopy(conv)
    new.weight.data = new.weight.data * z.view(-1, 1, 1, 1)
    if new.bias is not None:
        new.bias.data = new.bias.data * z
    return new


# %% prune_block
def prune_block(gated):
    one = [i for i, z in enumerate(gated.z1.tolist()) if z > 0]
    two = [i for i, z in enumerate(gated.z2.tolist()) if z > 0]
    c1 = fold(cut_conv(gated.conv1, one, gated.signal), gated.z1[one])
    c2 = fold(cut_conv(gated.conv2, two, one), gated.z2[two])
    return SmallBlock(cut_norm(gated.norm, gated.signal), c1, c2, gated.signal, two)
