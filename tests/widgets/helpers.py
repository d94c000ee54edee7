"""What several of these tests need: a person who types, small models, and the tinted spans of a sample."""

import json
import re

import torch

from rlhf_lib.models.gpt import GPT, GPTConfig
from rlhf_lib.models.llama import Llama, LlamaConfig
from rlhf_lib.tokenization import ChatTokenizer
from rlhf_lib.trainers.rollouts import Rollout

CONFIG = dict(context=32, layers=1, heads=1, width=8)
SAMPLES = {
    "base": ["The door.", 'A "table", seven\nchairs.', "Cold <i>rain</i>."],
    "policy": ["Sweet joy!", "O happy day.", "My love, my life."],
}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def typist(*answers):
    left = list(answers)
    return lambda question: left.pop(0)


def model_of(tokenizer, seed):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **CONFIG)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    return model


def spans(text):
    found = re.findall(r'background: rgba\((\d+), (\d+), (\d+), ([\d.]+)\)" title="([+-][\d.]+) nats">([^<]*)<', text)
    return [(tuple(map(int, row[:3])), float(row[3]), float(row[4]), row[5]) for row in found]


# ----------------------------------------------------------------------------------------- chat models

CHAT = ChatTokenizer.train(["why is the sky blue, and who says so?"], 300)


def chat_model(seed, context=220):
    torch.manual_seed(seed)
    model = Llama(LlamaConfig(CHAT.vocab_size, context=context, layers=1, heads=2, kv_heads=1, width=16, hidden=32)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


class Speaker(torch.nn.Module):
    """Stands in for a chat model whose answers are `texts` in turn, over and over; `read` is what it was asked, as text."""

    def __init__(self, *texts, cut=False, context=220):
        super().__init__()
        self.texts, self.cut, self.read = texts, cut, []
        self.config = LlamaConfig(CHAT.vocab_size, context=context, layers=1, heads=2, kv_heads=1, width=16, hidden=32)

    def draw(self, tokenizer, prompts, *options):
        """What `talk.draw` gives; see the fixture `speakers`."""
        text = self.texts[len(self.read) % len(self.texts)]
        self.read.append(tokenizer.tokenizer.decode(prompts[0], skip_special_tokens=False))
        if isinstance(text, Exception):
            raise text
        tokens, mask = torch.tensor([[65, 66 if self.cut else CHAT.end_token, 0]]), torch.tensor([[True, True, False]])
        return Rollout(prompts, tokens, torch.zeros(1, 3), mask, [f" {text}\n"])


def press_enter(box):
    """What a browser sends when Enter is pressed in a text box."""
    box._handle_custom_msg({"event": "submit"}, [])


def typed(box, text):
    """`text` is in an `enter_box`, and Enter is pressed."""
    box.value = text
    press_enter(box)


def seen(box):
    """All that a person sees of a widget: HTML, labels, the words on buttons."""
    texts, todo = [], [box]
    while todo:
        one = todo.pop()
        texts += [str(getattr(one, name, "")) for name in ("value", "description", "tooltip", "placeholder")]
        todo += getattr(one, "children", ())
    return "\n".join(texts)
