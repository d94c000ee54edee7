"""Build it 11.11: adapters on the last blocks of a model, judged by what the adapted model says, learns, keeps and costs."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from rlhf_lib.exercises.build import Build, Probe
from rlhf_lib.exercises.tiny_adapters import LAYERS, TOKENS, adapters, base_of, devices, fill, filled_by_hand, linears, tokens_of

NEAR = 1e-4  # how far two logits may be apart; they are of size 1 and more


def learn(model, tokens, steps=4):
    """A few steps of Adam on what is trained, on the task of saying each token again."""
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    for _ in range(steps):
        loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        if hasattr(model, "score"):
            loss = loss + model.score(model.hidden(tokens)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def draw_shape(generator):
    rank, layers = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((2, 6), (1, LAYERS)))
    alpha = float(torch.randint(1, 40, (), generator=generator)) + 0.5
    return {"seed": int(torch.randint(10_000, (), generator=generator)), "rank": rank, "alpha": alpha, "layers": layers}


# ----------------------------------------------------------------------------------------- the probes


FAMILIES = {"llama": {}, "gpt": {"llama": False}, "llama, linear layers further down": {"deep": True}}


def run_start(with_lora, seed, rank, alpha, layers):
    found = {}
    for family, kind in FAMILIES.items():
        base = base_of(seed, **kind)
        model = with_lora(base, rank, alpha, layers)
        if not isinstance(model, nn.Module):
            raise TypeError(f"with_lora returns {type(model).__name__}, not a model")
        with torch.no_grad():
            found[family] = {"gap": (model(tokens_of(seed)) - base(tokens_of(seed))).abs().max().item(), "same": model is base}
        left = dict(model.named_modules())
        found[family]["awake"] = [
            name for name, one in base.named_modules() if not isinstance(one, nn.Linear) and name in left and left[name].training
        ]
        found[family] |= {"adapted": sorted(adapters(model)), "wanted": sorted(linears(base_of(seed, **kind), layers))}
        if not found[family]["adapted"]:
            break
    return found


def judge_start(output, layers, **_):
    for family, found in output.items():
        if found["same"]:
            return "what comes back is the model that came in: make one of its own, which stands on the same weights"
        if not found["adapted"]:
            return "no module of what comes back has `merged()`: where a linear layer stood, an adapter is to stand"
        missing, extra = sorted({*found["wanted"]} - {*found["adapted"]}), sorted({*found["adapted"]} - {*found["wanted"]})
        if missing or extra:
            what = f"{missing[0]} has no adapter" if missing else f"{extra[0]} has one"
            return f"of {LAYERS} blocks the last {layers} are to be adapted, every linear layer in them, and {what} ({family})"
        if not found["gap"] <= NEAR and found["awake"]:
            return (
                "of a model in evaluation mode one in training mode comes back: its dropout is on, and it does not say what the "
                f"base says. Leave it in the mode of `model` ({family})"
            )
        if not found["gap"] <= NEAR:
            return f"at the start its logits differ from the base's by {found['gap']:.3f}: B begins at 0, so that the step is 0"
    return ""


def run_trained(with_lora, seed, rank, alpha, layers):
    model = with_lora(base_of(seed), rank, alpha, layers)
    shapes = {name: [list(getattr(one, part, torch.zeros(0)).shape) for part in "AB"] for name, one in adapters(model).items()}
    trained = {name: one.numel() for name, one in model.named_parameters() if one.requires_grad}
    model(tokens_of(seed)).square().mean().backward()
    reached = {name: bool(one.B.grad is not None and one.B.grad.any()) for name, one in adapters(model).items()}
    matrices = [one.A.detach() for one in adapters(model).values()]
    twins = any(torch.equal(one, other) for place, one in enumerate(matrices) for other in matrices[:place])
    found = {"shapes": shapes, "trained": trained, "reached": reached, "twins": twins}
    return {**found, "devices": devices(with_lora, seed, rank, alpha, layers)}


def judge_trained(output, seed, rank, layers, **_):
    wanted = {name: [[rank, one.in_features], [one.out_features, rank]] for name, one in linears(base_of(seed), layers).items()}
    for name, shapes in wanted.items():
        if output["shapes"].get(name) != shapes:
            return f"the adapter {name} has A and B of the shapes {output['shapes'].get(name)}; they should be {shapes}"
    names = {f"{name}.{part}" for name in wanted for part in "AB"}
    for name in sorted({*output["trained"]} - names):
        return f"{name} is trained, a weight of the base: it gets no gradient, only A and B do"
    for name in sorted(names - {*output["trained"]}):
        return f"{name} is not trained: A and B are parameters that require a gradient"
    dead = sorted(name for name, reached in output["reached"].items() if not reached)
    if dead:
        return (
            f"B of {dead[0]} gets no gradient: is A 0 as well (then neither ever moves; draw A at random), or is the result of a "
            "frozen layer detached, so that nothing comes down to the block below?"
        )
    if output["twins"]:
        return "two adapters start with one and the same A: draw each by itself, without a seed"
    other = [device for device in output["devices"] if device != "meta"]
    return (
        f"on a layer whose weight lies on another device, such as a GPU, A or B lies on {other[0]}: make both with "
        "device=linear.weight.device"
        if other
        else ""
    )


def run_scale(with_lora, seed, rank, alpha, layers):
    model = with_lora(base_of(seed), rank, alpha, layers)
    fill(model, seed)
    with torch.no_grad():
        return model(tokens_of(seed))


def judge_scale(output, seed, rank, alpha, layers):
    def gap(scale):
        with torch.no_grad():
            right = filled_by_hand(base_of(seed), seed, rank, scale, layers)(tokens_of(seed))
        return ((output - right).abs().max() / right.abs().max()).item()

    if gap(alpha / rank) <= NEAR:
        return ""
    scales = {"alpha": alpha, "1": 1.0, "1 / r": 1 / rank, "r / alpha": rank / alpha, "minus alpha / r": -alpha / rank}
    for name, scale in {**scales, "0": 0.0}.items():
        if gap(scale) <= NEAR:
            return f"the step B A x is scaled by {name}; its scale is alpha / r"
    return "with numbers in A and B it does not say W x + b + (alpha / r) B A x: look at the forward of the adapter again"


def run_beside(with_lora, seed, rank, alpha, layers):
    base, tokens = base_of(seed).train(), tokens_of(seed)
    before = copy.deepcopy(base)
    first = with_lora(base, rank, alpha, layers)
    if [*before.state_dict()] != [*base.state_dict()]:
        return {"structure": False}
    found = {"frozen": any(not one.requires_grad for one in base.parameters())}
    learn(first, tokens)
    second = with_lora(base, rank, alpha, layers)
    pairs = list(zip(before.parameters(), base.parameters()))
    with torch.no_grad():
        return {
            **found,
            "structure": True,
            "weights": max((old - new).abs().max().item() for old, new in pairs),
            "gradients": any(new.grad is not None for _, new in pairs),
            "mode": all(one.training for one in base.modules()),
            "moved": (first(tokens) - before(tokens)).abs().max().item(),
            "second": (second(tokens) - before(tokens)).abs().max().item(),
        }


def judge_beside(output, **_):
    if not output["structure"]:
        return (
            "the adapters stand in the model that came in: put them into one of its own, the base is needed as it was. A shallow "
            "copy (copy.copy) is not enough, it has the base's own blocks"
        )
    if output["weights"]:
        return "the base's weights are others after the adapted model was trained: three other models stand on them"
    if output["frozen"] or output["gradients"]:
        return (
            "parameters of the base have another requires_grad, or a gradient, afterwards: freeze those of the new model, which "
            "may stand on the same memory but are parameters of its own"
        )
    if not output["mode"]:
        return "the base was in training mode and is not any more: leave it as it came"
    if output["moved"] < 1e-3:
        return "after four steps of Adam the adapted model says what the base says: what is trained does not reach its logits"
    if output["second"] <= NEAR:
        return ""
    return "a second adapted model of one base starts with the first one's steps: each has A and B of its own"


def run_memory(with_lora, seed, rank, alpha, layers):
    base = base_of(seed)
    model = with_lora(base, rank, alpha, layers)

    def parts(one):
        return {part.untyped_storage().data_ptr(): part.numel() for part in (*one.parameters(), *one.buffers())}

    own = {place: size for place, size in parts(model).items() if place not in parts(base)}
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    return {"own": sum(own.values()), "trained": trained, "base": sum(parts(base).values())}


def judge_memory(output, **_):
    if output["own"] <= output["trained"] + 0.01 * output["base"]:
        return ""
    return (
        f"beside the base it keeps {output['own']} numbers of its own and trains {output['trained']}: frozen weights are copied. "
        "Four models then cost four times the memory; let them stand on the base's (a parameter made of `weight.detach()`, or a "
        "memo for copy.deepcopy)"
    )


def run_merged(with_lora, seed, rank, alpha, layers):
    base = base_of(seed, llama=False)
    before, tokens = copy.deepcopy(base), tokens_of(seed)
    model = with_lora(base, rank, alpha, layers)
    for one in adapters(model).values():
        one.merged()  # what it says before A and B are others
    fill(model, seed)
    with torch.no_grad():
        said = model(tokens)
        for _ in range(2):  # a second time the same
            plain = {name: one.merged() for name, one in adapters(model).items()}
        found = {
            "kinds": sorted({type(one).__name__ for one in plain.values()}),
            "unchanged": (model(tokens) - said).abs().max().item(),
            "base": (base(tokens) - before(tokens)).abs().max().item(),
        }
        if found["kinds"] != ["Linear"]:
            return found
        for name, one in plain.items():
            before.get_submodule(name.rpartition(".")[0])._modules[name.rpartition(".")[2]] = one
        found["gap"] = ((before(tokens) - said).abs().max() / said.abs().max()).item()
        for one in plain.values():
            for parameter in one.parameters():
                parameter += 1
        return {**found, "shared": (model(tokens) - said).abs().max().item()}  # by the base and what stands on it


def judge_merged(output, **_):
    if output["kinds"] != ["Linear"]:
        return f"merged() gives {' and '.join(output['kinds'])}; it should be a plain nn.Linear"
    if not (output["unchanged"] <= NEAR and output["base"] <= NEAR):
        return "merged() changes the base's weight, on which other models stand: add the step to a copy"
    if output["gap"] <= NEAR and output["shared"] <= NEAR:
        return ""
    if output["gap"] <= NEAR:
        return (
            "who trains a merged layer moves the base as well, on which other models stand: give it a weight and a bias of its "
            "own, copies both"
        )
    return "with the merged layers in their place the model says something else: they are W + (alpha / r) B A, with the bias"


def run_head(with_lora, seed, rank, alpha, layers):
    """Of a base that learns, and of one that is frozen as a whole."""
    found = []
    for learns in (True, False):
        base, tokens = base_of(seed, scalar=True).requires_grad_(learns), tokens_of(seed)
        before = copy.deepcopy(base.score.weight)
        model = with_lora(base, rank, alpha, layers)
        start = (model.score(model.hidden(tokens)) - base.score(base.hidden(tokens))).abs().max().item()
        trained = [name for name, one in model.named_parameters() if one.requires_grad and name.startswith("score.")]
        learn(model, tokens)
        found.append({"start": start, "trained": trained, "base": (base.score.weight - before).abs().max().item()})
    return found


def judge_head(output, **_):
    for found, of in zip(output, ("", " where the base is frozen as a whole"), strict=True):
        if found["trained"] != ["score.weight", "score.bias"]:
            return (
                f"the scalar head `score` is frozen{of}: what a reward model or a critic says then stays a random direction of "
                "the hidden states. It is trained, whole (ethanyanjiali/minChatGPT freezes it: src/gpt.py, line 506)"
            )
        if found["base"]:
            return "training the scalar head moves the base's own: copy `score`, since two models learn two of them"
    same = all(found["start"] <= NEAR for found in output)
    return "" if same else "the scalar head starts with other weights than the base's: copy `score` as it is"


def draw_task(generator):
    return {**draw_shape(generator), "rank": 8, "alpha": 16.0, "layers": 2, "steps": 140}


def run_task(with_lora, seed, rank, alpha, layers, steps):
    """Adapters learn what a base of random weights does not do: to say the token that stood two places before."""
    model = with_lora(base_of(seed), rank, alpha, layers)
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=2e-2, fused=True)
    generator, losses = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        tokens = torch.randint(TOKENS, (32, 10), generator=generator)
        loss = F.cross_entropy(model(tokens)[:, 2:].flatten(0, 1), tokens[:, 2:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def judge_task(output, **_):
    first, last = output[0], sum(output[-20:]) / 20
    fall = f"in {len(output)} steps the loss falls from {first:.2f} to {last:.2f} only"
    return "" if last < 0.5 * first else f"{fall}: do all adapters of a block get gradients of full size?"


with_lora = Build("11.11", "with_lora", [
    Probe("starts as the base", draw_shape, run_start, judge_start),
    Probe("A and B learn, the base does not", draw_shape, run_trained, judge_trained),
    Probe("the step is scaled by alpha / r", draw_shape, run_scale, judge_scale),
    Probe("the base stays as it was", draw_shape, run_beside, judge_beside),
    Probe("stands on the base's memory", draw_shape, run_memory, judge_memory),
    Probe("merged says the same", draw_shape, run_merged, judge_merged),
    Probe("a scalar head is never frozen", draw_shape, run_head, judge_head),
    Probe("learns a task that the base does not do", draw_task, run_task, judge_task),
])  # fmt: skip
