"""What Build it 8.10 is asked of reports, devices, a KL of NaN and the clip fraction, where each verdict turns."""

import copy
import math

import pytest
import torch

from rlhf_lib.exercises import build08_probes as probes
from rlhf_lib.exercises import tiny_rlhf as kit


def record(place, **changes):
    return {"iteration": place, "reward": 0.5, "kl": 0.1, "ratio": 1.0, "clip_fraction": 0.25, **changes}


def heard(*asked, **changes):
    """What `report` heard: record 0, 1, ..., after as many completions as are named; changes are of the first."""
    calls = [{"asked": count, **record(place)} for place, count in enumerate(asked)]
    calls[0].update(changes)
    return calls


RECORDS = [record(0), record(1), record(2)]


@pytest.mark.parametrize("reported, word", [
    (heard(512, 768, 1024), ""),
    (heard(512, 768), "2 times for 3 records"),
    (heard(512, 768, 1024, 1280), "4 times for 3 records"),
    (heard(512, 768, 1024, iteration=None), "once an iteration"),
    (heard(1024, 1024, 1024), "records 0 and 1 are reported with no rollout between"),
    (heard(512, 1024, 1024), "records 1 and 2 are reported with no rollout between"),
    (heard(512, 768, 1024, clip_fraction=0.0), "record 0 has changed after it was reported"),
    (heard(512, 768, 1024, ratio=None), "record 0 has changed after it was reported"),
])  # fmt: skip
def test_a_record_is_reported_once_complete_and_before_the_next_rollout(reported, word):
    found = probes.reports_fault(RECORDS, reported)
    assert word in found and bool(found) == bool(word)


def test_the_last_record_need_not_have_what_an_update_gives():
    records = [record(0), record(1, ratio=math.nan)]
    reported = [{"asked": 512 + 256 * place, **one} for place, one in enumerate(records)]
    assert probes.reports_fault(records, reported) == ""


def test_reporting_takes_down_each_record_as_it_is_and_what_has_been_paid():
    def rlhf(gpt, reward, *, report, **settings):
        tokens = torch.full((3, 8), 5)
        one = record(0, clip_fraction=0.0)
        reward(tokens, tokens > 0)
        report(one)
        one["clip_fraction"] = 0.5
        assert reward(tokens[:2], tokens[:2] > 0).tolist() == [8, 8]
        report(record(1))
        return gpt, [one, record(1)]

    found = probes.reporting(rlhf, kit.tiny(0), iterations=1)
    assert [(one["asked"], one["clip_fraction"]) for one in found["reported"]] == [(3, 0.0), (5, 0.25)]
    assert found["runs"][0]["records"] == [record(0, clip_fraction=0.5), record(1)]


def reads(device):
    def rlhf(gpt, reward, *, prompt, **settings):
        policy = copy.deepcopy(gpt)
        policy(torch.tensor([prompt], device=device(policy)))
        raise AssertionError("it goes on reading")

    return rlhf


def test_the_first_tokens_lie_where_the_weights_do():
    assert probes.read_elsewhere(reads(lambda gpt: gpt.embedding.weight.device), 0) == ["meta", ""]
    assert probes.read_elsewhere(reads(lambda gpt: "cpu"), 0) == ["cpu", ""]
    assert probes.read_elsewhere(lambda gpt, reward, **settings: torch.zeros(1, device="meta").item(), 0) == ["", ""]
    assert probes.device_fault("meta", "meta") == probes.device_fault("", "") == probes.device_fault("meta", "") == ""
    assert "the prompt lies on cpu" in probes.device_fault("cpu", "meta")


def test_the_uniforms_lie_where_the_weights_do_and_generate_is_put_back():
    def generate(model, prompts, mask, uniforms):
        return model(prompts)

    names = {"generate": generate, "torch": torch}
    exec(
        "def rlhf(gpt, reward, *, prompt, **settings):\n"
        "    start = torch.tensor([prompt], device='meta')\n"
        "    generate(gpt, start, start > 0, torch.rand(1, 8, device=device))",
        names,
    )
    for names["device"] in ("cpu", "meta"):
        assert probes.read_elsewhere(names["rlhf"], 0) == ["meta", names["device"]]
    assert names["generate"] is generate
    assert "the uniforms lie on cpu" in probes.device_fault("meta", "cpu")


def test_a_run_that_goes_on_with_nan_is_found():
    base = kit.tiny(1)
    right = {"records": [record(0)], "policy": kit.weights(base)}
    assert probes.broken_fault({}, base) == probes.broken_fault(right, base) == ""
    assert "goes on" in probes.broken_fault({**right, "records": [record(0), record(1, kl=math.nan)]}, base)
    lost = {name: weight * math.nan for name, weight in right["policy"].items()}
    assert "hands them out" in probes.broken_fault({**right, "policy": lost}, base)


def test_a_run_is_broken_by_its_rate_and_may_raise():
    def rlhf(gpt, reward, *, lr, epochs, minibatch, **settings):
        policy = copy.deepcopy(gpt)
        policy(torch.tensor([[1, 2]])).logsumexp(-1).sum().backward()
        torch.optim.Adam(policy.parameters(), lr=lr).step()
        assert not policy(torch.tensor([[1, 2]])).isfinite().any() and (epochs, minibatch) == (1, None)
        return policy, [record(0)]

    found = probes.run_broken(rlhf, 3)
    assert "hands them out" in probes.broken_fault(found, kit.tiny(3))
    assert probes.run_broken(lambda gpt, reward, **settings: gpt.no_such_part, 3) == {}


def test_the_share_that_is_clipped_is_of_tokens_up_to_the_end():
    """In a policy that gives token 5 one and a half of its chance, that token alone is outside 0.8 to 1.2."""
    base = kit.tiny(0)
    with torch.no_grad():
        for weight in base.parameters():  # the same chances, 1/20 each, at every place
            weight.zero_()
        base.embedding.weight.fill_(1.0)
        base.norm.weight.fill_(1.0)
        policy = copy.deepcopy(base)
        policy.head.weight[5, 0] = math.log(1.5 * 19 / 18.5)  # 1.5/20 against 18.5/20 in 19 equal parts
    tokens = torch.tensor([[5, 6, 7, 5], [5, 0, 0, 0], [6, 7, 0, 5], [5, 5, 5, 5]])
    assert probes.clipped_share(policy, base, tokens) == pytest.approx((2 + 1 + 0 + 4) / (4 + 2 + 3 + 4))
    assert probes.clipped_share(base, base, tokens) == 0


def test_a_clip_fraction_that_counts_padding_is_found_where_both_runs_were_paid_for_the_same(monkeypatch):
    monkeypatch.setattr(probes, "clipped_share", lambda policy, base, tokens: 0.5)
    base = kit.tiny(0)

    def fault(said, count=600):
        runs = [{"records": [record(0, clip_fraction=share)], "policy": kit.weights(base)} for share in (0.0, said)]
        return probes.clipped_fault(runs, torch.zeros(count, 8, dtype=torch.long), base)

    assert fault(0.25) == fault(0.254) == fault(0.1, count=255) == ""
    assert "the clip fraction is 0.100, and of the real tokens alone 0.250" in fault(0.1)
    assert "is 0.500, that of the last one alone, or the sum; it is the mean" in fault(0.5)
    assert "is 0.000, that of the first one alone" in fault(0.0)
    assert "is 25.000, in percent" in fault(25.0)


def test_two_runs_are_paid_for_the_same_up_to_their_update():
    def rlhf(gpt, reward, *, epochs, rollout_size, seed, **settings):
        drawn = torch.Generator().manual_seed(seed)
        for place in range(3):
            tokens = torch.randint(20, (rollout_size, 8), generator=drawn) + (place == 2) * epochs
            reward(tokens, tokens >= 0)
        return gpt, [record(0, epochs=epochs)]

    runs, tokens, asked = probes.run_clipped(rlhf, 5, ends=0.8)
    assert len(asked) == 3 and all(mask.all() and tokens.shape == mask.shape for tokens, mask in asked)
    assert [one["records"][0]["epochs"] for one in runs] == [1, 2]
    drawn = torch.Generator().manual_seed(5)
    expected = [torch.randint(20, (256, 8), generator=drawn) for _ in range(2)]
    assert torch.equal(tokens, torch.cat(expected))


def test_the_reward_is_given_the_mask_up_to_and_including_the_end():
    tokens = torch.tensor([[5, 0, 0, 0], [5, 6, 7, 8], [0, 1, 2, 3], [5, 6, 7, 0]])
    right = torch.arange(4) < torch.tensor([[2], [4], [1], [4]])
    assert torch.equal(probes.up_to_the_end(tokens), right)
    assert probes.handed_fault([]) == probes.handed_fault([[tokens, right], [tokens[1:], right[1:]]]) == ""
    for wrong in (right | True, right & (tokens > 0), right[:, :2]):
        assert "the mask that `reward` is given" in probes.handed_fault([[tokens, right], [tokens, wrong]])


@pytest.mark.parametrize("cleared, limit, added", [
    (True, None, False), (False, None, True), (True, 8.0, False), (False, 8.0, True),
])  # fmt: skip
def test_gradients_that_stand_on_those_of_before_are_seen(cleared, limit, added):
    """Also where they come in two parts, and where their norm is limited."""

    def rlhf(gpt, reward, **settings):
        policy = copy.deepcopy(gpt)
        steps = torch.optim.Adam(policy.parameters(), lr=1e-3)
        for step in range(3):
            if cleared:
                steps.zero_grad()
            for part in range(2):
                policy(torch.tensor([[2 * step + part, 7]])).log_softmax(-1)[0, 0, step].backward()
            if limit:
                torch.nn.utils.clip_grad_norm_(policy.parameters(), limit)
            steps.step()
        return policy, [record(0)]

    run, found = probes.run_cleared(rlhf, kit.tiny(0))
    assert found is added and run["records"] == [record(0)]


def test_how_far_two_gradients_lie_apart():
    one = torch.tensor([1.0, 0.0])
    assert probes.aside(one, 3 * one) == 0 and probes.aside(one, -one) == 2
