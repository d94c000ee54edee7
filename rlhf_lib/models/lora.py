"""LoRA (Hu et al. 2021), and several models on one trunk.

A `Branch` is a model whose last blocks have low-rank adapters of their own. Everything else, the weights under the adapters
included, belongs to the base and is shared by all its branches: a policy, a reference, a reward model and a critic then cost
little more than one model, in memory, and in time too, since the lower blocks' states are the same for all four.

B: batch    T: positions    C: width    r: rank
"""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.models.layers import last_real, mean_so_far


class LoRALinear(nn.Module):
    """y = W x + b + (alpha / r) B A x, with W and b frozen (Hu et al. 2021, equation 3).

    Args:
        linear: the nn.Linear under it; its weight is shared, not copied, and never trained.
        rank, alpha: r, and what the adapter is scaled by is alpha / r.
    """

    def __init__(self, linear, rank, alpha):
        super().__init__()
        if not 1 <= rank <= min(linear.weight.shape):
            raise ValueError(f"rank must lie between 1 and {min(linear.weight.shape)} for a matrix {list(linear.weight.shape)}")
        self.frozen, self.scale = frozen(linear), alpha / rank
        self.A = nn.Parameter(torch.empty(rank, linear.in_features, device=linear.weight.device))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank, device=linear.weight.device))  # so it starts as the base
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x):
        """x: (..., in); returns (..., out)."""
        return self.frozen(x) + self.scale * F.linear(F.linear(x, self.A), self.B)


def frozen(module):
    """A module that computes what `module` does, on the same memory, and has neither parameters nor a state of its own."""
    new = copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})  # shared, not copied
    for part in new.modules():
        for name, parameter in list(part._parameters.items()):
            del part._parameters[name]
            part.register_buffer(name, None if parameter is None else parameter.detach(), persistent=False)
    return new


def linears(block):
    """(owner, name, layer) of every linear layer in `block`, adapted or not."""
    return [
        (owner, name, layer)
        for owner in block.modules()
        if not isinstance(owner, LoRALinear)
        for name, layer in owner.named_children()
        if isinstance(layer, nn.Linear | LoRALinear)
    ]


def adapted(block, rank, alpha, matrices=None):
    """`block` with adapters on the linear layers named in `matrices`, all when None; everything else is frozen and shared.

    Raises:
        ValueError: a name that no linear layer of the block has, or no name at all.
    """
    new = frozen(block)
    names = [name for _, name, _ in linears(block)]
    if matrices is not None and not matrices:
        raise ValueError(f"matrices is empty, so that nothing would be trained: name some of {', '.join(names)}, or None for all")
    if unknown := sorted(set(matrices or ()) - set(names)):
        raise ValueError(f"matrices: a block has no {unknown[0]!r}; choose from {', '.join(names)}")
    for (owner, name, _), (_, _, linear) in zip(linears(new), linears(block)):
        if matrices is None or name in matrices:
            setattr(owner, name, LoRALinear(linear, rank, alpha))
    return new


@torch.no_grad()
def merged(block, branch):
    """A copy of `block` with the adapters of `branch`, which was made of it, added to its weights: W + (alpha / r) B A."""
    new = copy.deepcopy(block)
    for (_, _, plain), (_, _, layer) in zip(linears(new), linears(branch)):
        if isinstance(layer, LoRALinear):
            plain.weight += layer.scale * layer.B @ layer.A
    return new


class Beginning:
    """A cache for what all rows begin with: it stands in the first row, and every row looks at its keys and values.

    Args:
        length: P, how many of that row's positions are real.
    """

    def __init__(self, length):
        self.length = length

    def append(self, layer, keys, values):
        """Keys and values (B, KV, P + T, D) from those (B, KV, T, D) of the rows."""
        parts = keys, values
        return tuple(torch.cat([part[:1, :, : self.length].expand(len(part), -1, -1, -1), part], 2) for part in parts)


def through(blocks, x, table, mask, cache=None, shared=0):
    """The states (B, S, C) behind some blocks, from those before them; arguments as for `Branch.top`.

    What is `shared` goes through the blocks once, as one more row (half of the positions at most): as many products, and fewer
    rows in each.
    """
    B, S, _ = x.shape
    P = min(shared, S // 2)  # as much of it as fits into one row beside the others
    T = S - P
    if P == 0:
        for block in blocks:
            x = block(x, table, mask, cache)
        return x
    rows = torch.cat([F.pad(x[:1, :P], (0, 0, 0, T - P)), x[:, P:]])  # (B + 1, T, C)
    after = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(P)
    rest = after[None, None] if mask is None else mask[:, :, P:]  # (B or 1, 1, T, S)
    own = F.pad(torch.ones(T, T, dtype=torch.bool, device=x.device).tril(), (P, 0))  # the first row looks at itself alone
    mask = torch.cat([own[None, None], rest.expand(B, -1, -1, -1)])
    if table:
        table = [torch.cat([F.pad(half[:1, :, :P], (0, 0, 0, T - P)), half[:, :, P:].expand(B, -1, -1, -1)]) for half in table]
    for block in blocks:
        rows = block(rows, table, mask, Beginning(P))
    return torch.cat([rows[:1, :P].expand(B, -1, -1), rows[1:]], 1)


class Branch(nn.Module):
    """A model of its own on the base's trunk: the last blocks with adapters, and perhaps a scalar head.

    Its parameters and its state are the adapters and the scalar head alone.

    Args:
        base: a GPT or a Llama, shared. It is put into evaluation mode and left there: its modules are the trunk, which `train()`
            on a branch does not reach. Otherwise it stays as it is: move it to its device and give it its type before, since a
            branch does not follow.
        layers: how many of the last blocks have adapters; None for all.
        rank, alpha: as for LoRALinear.
        matrices: names of the linear layers that are adapted, such as ["query", "value"]; None for all of a block.
        scalar: False for a language model, with the base's head; True for one number a position, as of reward models and critics.
        depth: how many of these blocks the model has, from the trunk up; None for all, 0 for a head on the trunk's own states.
        pooling: what the number is read from, "last" for the state at the position, "mean" for the mean of the states so far.
        source: the base's published name, or where its checkpoint lies from the branch's own, such as "../base".
    """

    kind = "branch"

    def __init__(
        self, base, layers=None, rank=16, alpha=32, matrices=None, scalar=False, depth=None, pooling="last", source=None
    ):
        super().__init__()
        if pooling not in ("mean", "last"):
            raise ValueError(f"pooling must be mean or last, got {pooling!r}")
        if depth is not None and not (scalar and 0 <= depth <= (layers or base.config.layers)):
            raise ValueError(f"depth is for scalar branches, and at most their layers, got {depth}")
        layers = base.config.layers if layers is None else layers
        if not 1 <= layers <= base.config.layers:
            raise ValueError(f"layers must lie between 1 and the model's {base.config.layers}, got {layers}")
        self.shared = (base.eval(),)  # in a tuple, so that it is not part of this module
        self.config, self.lower = base.config, base.config.layers - layers
        self.shape = {"layers": layers, "rank": rank, "alpha": alpha, "matrices": matrices, "scalar": scalar}
        self.shape |= {"depth": depth, "pooling": pooling, "source": source}
        own = base.blocks[self.lower :][:depth]
        self.blocks = nn.ModuleList(adapted(block, rank, alpha, matrices) for block in own)
        self.norm, self.head = frozen(base.norm), frozen(base.head)
        self.score = nn.Linear(base.config.width, 1, device=base.embedding.weight.device) if scalar else None
        if scalar:
            nn.init.zeros_(self.score.weight)
            nn.init.zeros_(self.score.bias)
        self.eval()

    base = property(lambda self: self.shared[0])

    def __deepcopy__(self, memo):
        """A branch of its own on the same base: what is shared stays shared."""
        memo |= {id(part): part for part in (self.base, *self.buffers())}
        new = memo[id(self)] = Branch.__new__(Branch)
        new.__dict__ = copy.deepcopy(self.__dict__, memo)
        return new

    def metadata(self):
        """What is needed to build it again, beside its weights and its base."""
        return {"kind": self.kind, "branch": self.shape, "config": self.base.metadata()["config"]}

    @torch.no_grad()
    def trunk(self, tokens, mask=None, cache=None, shared=0):
        """What the lower blocks say, the same for all branches with as many `layers`: states (B, T, C), rotary table, mask.

        Args:
            shared: how many positions all rows begin with, real ones: so they need not be computed for each. Not with a cache.
        """
        x, table, attention_mask = self.base.begin(tokens, mask, cache)
        return through(self.base.blocks[: self.lower], x, table, attention_mask, cache, shared), table, attention_mask

    def top(self, x, table, attention_mask, shared=0, cache=None):
        """The final hidden states (B, T, C) from the trunk's, with a gradient to the adapters; `shared` as for `trunk`."""
        return self.norm(through(self.blocks, x, table, attention_mask, cache, shared))

    def hidden(self, tokens, mask=None, cache=None):
        """The final hidden states (B, T, C); arguments as for `GPT.hidden`."""
        return self.top(*self.trunk(tokens, mask, cache), cache=cache)

    def pooled(self, hidden, mask=None):
        """What the scalar head reads at every position, (B, T, C) in float32, from the hidden states (B, T, C).

        Args:
            mask: (B, T) bool, True on real tokens; None when all are. Only the mean of the states needs it.
        """
        if self.shape["pooling"] == "last":
            return hidden.float()
        return mean_so_far(hidden.float(), torch.ones_like(hidden[..., 0], dtype=torch.bool) if mask is None else mask)

    def values(self, hidden, mask=None):
        """The scalar head's number at every position, (B, T), in float32 under any autocast; arguments as for `pooled`."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.score(self.pooled(hidden, mask))[..., 0]

    def forward(self, tokens, mask=None, cache=None):
        """A language model's logits (B, T, V), or the scalar head's numbers (B, T)."""
        hidden = self.hidden(tokens, mask, cache)
        return self.head(hidden) if self.score is None else self.values(hidden, mask)

    def logits(self, tokens, mask=None):
        """The scalar head's number at each row's last real token, (B,): the same with any padding."""
        return last_real(self(tokens, mask), torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask)

    def merged(self):
        """The plain model that writes as this language model does. Of a block with adapters it has a copy; everything else is the
        base's own, shared."""
        model = copy.copy(self.base)
        tops = [merged(*pair) for pair in zip(self.base.blocks[self.lower :], self.blocks)]
        model._modules = {**self.base._modules, "blocks": nn.ModuleList([*self.base.blocks[: self.lower], *tops])}
        return model


def trunk_rows(trunk, rows, columns=slice(None)):
    """Some `rows` of what `Branch.trunk` says, in some `columns`; what is the same for all rows stays so."""
    x, table, mask, *shared = trunk
    some = lambda part: part if len(part) == 1 else part[rows]  # noqa: E731
    table = table and tuple(some(half)[:, :, columns] for half in table)  # (b, 1, S, D/2) each
    return x[rows][:, columns], table, None if mask is None else some(mask)[:, :, columns][..., columns], *shared


def counts(model):
    """(numbers that are trained, numbers in all, the base's included)."""
    own = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    everything = {id(p): p.numel() for m in (model, getattr(model, "base", model)) for p in m.parameters()}
    return own, sum(everything.values())


def shared_counts(trained, fixed):
    """Numbers in the four models of PPO: those that are trained, all on one trunk, and all of four whole models."""
    branches = [*trained, *fixed]
    adapters = sum(parameter.numel() for branch in branches for parameter in branch.parameters())
    base = sum(parameter.numel() for parameter in branches[0].base.parameters())
    return {
        "trained": sum(counts(branch)[0] for branch in trained),
        "one_trunk": base + adapters,
        "four_models": sum(counts(branch)[1] for branch in branches),
    }
