# ruff: noqa
# %% make_optimizer
def make_optimizer(gated, lr, gate_lr, weight_decay):
    gates = [gate.log_alpha for gate in gated.gates.values()]
    ids = [id(gate) for gate in gates]
    optimizer = torch.optim.Adam(gates, lr=gate_lr)
    others = [p for p in gated.parameters() if id(p) not in ids]
    optimizer.add_param_group({"params": [p for p in others if p.dim() == 1], "lr": lr})
    optimizer.add_param_group({"params": [p for p in others if p.dim() > 1], "lr": lr, "weight_decay": weight_decay})
    return optimizer


# %% train_step
def train_step(gated, budget, optimizer, images, labels, step):
    optimizer.zero_grad()
    first = nn.CrossEntropyLoss()(gated(images), labels)
    second = budget(step)
    loss = first + second
    loss.backward()
    optimizer.step()
    return [float(first.detach()), loss.item() - first.item()]


# %% train
def train(step_function, batches, epochs):
    n = len(batches)
    for epoch in range(epochs):
        for i, (x, y) in enumerate(batches):
            step_function(x, y, epoch * n + i)
    return epochs * n


# %% finish
def finish(budget, images):
    network = bar.prune(budget.settle())
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.reset_running_stats()
            m.momentum = None
    network.train()
    with torch.no_grad():
        network(images)
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 0.1
    return network.eval()


# %% choose
def choose(networks, split):
    x, y = split["validation"]
    return max(range(len(networks)), key=lambda i: accuracy(networks[i], x, y))


# %% run
def run(seed):
    torch.manual_seed(seed)
    network = build()
    gated = bar.gate(network, INPUT_SIZE)
    for g in gated.gates.values():
        g.spread_(-1, 5)
    steps = len(batches) * 8
    budget = bar.Budget(gated, factor=FACTOR, steps=steps, follow=0)
    opt = make_optimizer(gated, lr=3e-3, gate_lr=10 / steps, weight_decay=0)
    gated.train()

    def prune_step(images, labels, step):
        train_step(gated, budget, opt, images, labels, step)

    train(prune_step, batches, 8)
    plain = finish(budget, train_images)
    opt = torch.optim.Adam(plain.parameters(), lr=3e-3)
    for epoch in range(8):
        plain.train()
        order = torch.randperm(len(batches))
        for i in order.tolist():
            x, y = batches[i]
            opt.zero_grad()
            F.cross_entropy(plain(x), y).backward()
            opt.step()
    return plain
