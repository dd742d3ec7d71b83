# ruff: noqa
# %% cut_conv
def cut_conv(conv, out, inp):
    w = torch.index_select(torch.index_select(conv.weight, 0, torch.tensor(out)), 1, torch.tensor(inp))
    new = nn.Conv2d(
        len(inp),
        len(out),
        kernel_size=conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        bias=conv.bias is not None,
    )
    new.weight.data = w.detach().clone()
    if conv.bias is not None:
        new.bias.data = conv.bias[out].detach().clone()
    return new


# %% cut_norm
def cut_norm(norm, keep):
    import copy

    new = copy.deepcopy(norm)
    new.num_features = len(keep)
    new.weight.data = norm.weight.data[keep]
    new.bias.data = norm.bias.data[keep]
    new.running_mean = norm.running_mean[keep]
    new.running_var = norm.running_var[keep]
    return new.eval()


# %% parts
def parts(signal, block):
    import numpy as np

    return (
        np.setdiff1d(signal, block).tolist(),
        np.intersect1d(signal, block).tolist(),
        np.setdiff1d(block, signal).tolist(),
    )


# %% mixed_sum
def mixed_sum(x, delta, signal, block):
    columns = []
    for c in sorted(set(signal) | set(block)):
        column = 0
        if c in signal:
            column = column + x[:, signal.index(c)]
        if c in block:
            column = column + delta[:, block.index(c)]
        columns.append(column)
    return torch.stack(columns, dim=1)


# %% fold
def fold(conv, z):
    new = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=True)
    new.weight.data = torch.einsum("oikl,o->oikl", conv.weight.data, z)
    new.bias.data = z * (conv.bias.data if conv.bias is not None else 0)
    return new


# %% prune_block
def prune_block(gated):
    z1, z2 = gated.z1, gated.z2
    alive1, alive2 = torch.where(z1 != 0)[0].tolist(), torch.where(z2 != 0)[0].tolist()
    conv1, conv2 = fold(gated.conv1, z1), fold(gated.conv2, z2)
    small = SmallBlock(
        cut_norm(gated.norm, gated.signal),
        cut_conv(conv1, alive1, gated.signal),
        cut_conv(conv2, alive2, alive1),
        gated.signal,
        alive2,
    )
    return small.eval()
