"""Who judges the assistant's answers: a gold reward model, or a language model behind an endpoint."""

from rlhf_lib import checkpoints, pairwise
from rlhf_lib.corpus import DATA
from rlhf_lib.endpoint import check_key, completions_url, endpoint_judge
from rlhf_lib.pipelines.inputs import answer_tokens, prompt_tokens
from rlhf_lib.pipelines.judging import as_text
from rlhf_lib.trainers import preference

GOLD = DATA / "checkpoints" / "assistant" / "gold"


def address(judge):
    """(base URL, model) in "endpoint:URL#MODEL"; None for the gold judge. Raises ValueError for anything else."""
    if judge == "gold":
        return None
    kind, _, rest = judge.partition(":")
    url, _, model = rest.partition("#")
    if kind != "endpoint" or not url or not model:
        raise ValueError(f"judge must be gold or endpoint:URL#MODEL, got {judge!r}")
    return url, model


def endpoint(judge, cache):
    """The judge of "endpoint:URL#MODEL", whose verdicts are kept in the file `cache` as they come; None for the gold judge.

    Raises:
        RunError: the address or the key cannot be right.
    """
    if address(judge) is None:
        return None
    url, model = address(judge)
    check_key(completions_url(url))
    return endpoint_judge(url, model, cache=cache)


def published_gold(base, tokenizer, source, device):
    """The published gold reward model, where the fine-tuning under it stands on `base`, whose name is `source`; else None."""
    if not (GOLD / "model.safetensors").exists():
        return None
    found = checkpoints.read_metadata(GOLD.parent / "sft")
    known = (found["branch"]["source"], found["config"], found["tokenizer"])
    if known != (source, base.metadata()["config"], tokenizer.fingerprint()):
        return None
    tuned = checkpoints.load(GOLD.parent / "sft", device, base=base)[0].merged()
    return checkpoints.load(GOLD, device, "reward", tuned)[0]


def gold_judge(model, tokenizer, rows):
    """The judge that prefers what a gold reward model scores higher.

    Args:
        rows: dicts as `rows_of` makes them: an answer that did not end has no end token to be scored at.
    """
    prompts = {as_text(row["prompt"]): prompt_tokens(tokenizer, row["prompt"]) for row in rows}
    cut = {(as_text(row["prompt"]), row["answer"]): not row["ended"] for row in rows}

    def scores(asked, answers):
        whole = [prompts[ask] + answer_tokens(tokenizer, answer, cut[ask, answer]) for ask, answer in zip(asked, answers)]
        return preference.score(model, whole)

    return pairwise.score_judge(scores)
