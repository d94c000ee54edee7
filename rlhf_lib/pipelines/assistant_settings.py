"""Settings of the assistant's pipeline, and its presets."""

from dataclasses import dataclass, field

from rlhf_lib.models import published
from rlhf_lib.pipelines import inputs, referee
from rlhf_lib.pipelines.settings import check_numbers
from rlhf_lib.trainers.ppo_critic import PPOCriticConfig
from rlhf_lib.trainers.preference import PreferenceConfig
from rlhf_lib.trainers.sft import SFTConfig

TINY = "tiny"


@dataclass
class Settings:
    """Everything that a run depends on.

    Args:
        preset: where the other fields' values come from when nothing else is said.
        seed: of everything that is drawn.
        model: what everything starts from, a published name, the path of a folder of published files, or tiny for a small random
            Llama.
        demonstrations: ours, the path of a file of them, or a set of comparisons such as hh-rlhf, or a file in its form: then all
            dialogues with the better answer.
        comparisons: ours, the path of a file of them, or a set of the hub such as hh-rlhf.
        limit: most comparisons that the reward model learns from, and most that are read of a public set; 0 for all.
        longest: most tokens of a conversation, its answer included; longer ones are left out; 0 for what the model reads.
        sft_layers: how many of the last blocks have adapters in the fine-tuning on demonstrations; 0 for all.
        layers: how many have them in reward model, policy and critic, which share all the others; 0 for all.
        reward_adapters: whether the reward model has these last blocks too; else it is a head on the states that all share.
        rank, alpha: of the adapters, scaled by alpha / rank.
        normaliser_samples: answers of the fine-tuned model, two to a prompt, that the reward's mean and deviation come from.
        best_of: answers of the fine-tuned model out of which the reward model picks one.
        judge: gold for a reward model of all comparisons, or endpoint:URL#MODEL for one behind an OpenAI-compatible address.
        evaluate_prompts: held-out prompts that are answered and judged at the end; 0 for all.
    """

    preset: str = "laptop"
    seed: int = 0
    model: str = published.SHIPPED
    demonstrations: str = inputs.OURS
    comparisons: str = inputs.OURS
    limit: int = 0
    longest: int = 0
    sft_layers: int = 0
    layers: int = 8
    reward_adapters: bool = False
    rank: int = 16
    alpha: int = 32
    normaliser_samples: int = 256
    best_of: int = 16
    judge: str = "gold"
    evaluate_prompts: int = 0
    sft: SFTConfig = field(default_factory=SFTConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    ppo: PPOCriticConfig = field(default_factory=PPOCriticConfig)

    def __post_init__(self):
        check_numbers(self)
        for name in ("limit", "longest", "sft_layers", "layers", "evaluate_prompts"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name, least in (("rank", 1), ("alpha", 1), ("best_of", 1), ("normaliser_samples", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.layers == 0 and not self.reward_adapters:
            raise ValueError("layers 0 leaves no blocks that all share: give layers, or a reward model with reward_adapters")
        referee.address(self.judge)


PRESETS = {
    # Every stage in a minute: to see that all of it works.
    "smoke": Settings(
        preset="smoke",
        model=TINY,
        limit=400,
        layers=1,
        rank=4,
        alpha=8,
        normaliser_samples=64,
        best_of=4,
        evaluate_prompts=32,
        sft=SFTConfig(epochs=1, batch=8, lr=5e-3),
        preference=PreferenceConfig(epochs=1, batch=32, lr=5e-3),
        ppo=PPOCriticConfig(iterations=3, rollout_size=32, max_new_tokens=32, minibatch=16, lr=2e-3, critic_lr=2e-3),
    ),
    # Two CPU cores and 8 GB: the model that the package index ships.
    "laptop": Settings(
        preset="laptop",
        sft=SFTConfig(epochs=2, lr=4e-4),
        preference=PreferenceConfig(epochs=2, lr=1e-2),
        ppo=PPOCriticConfig(iterations=24, temperature=0.7, lr=7e-4, critic_lr=1e-3, kl_coef=0.1),
    ),
    # A Colab T4: the model and the comparisons of minChatGPT. They are helpful ones of hh-rlhf, where the first 40,000 are all
    # of people who try to get harm out of an assistant. About 11 GB on the card, in learning from answers of 320 tokens.
    "gpu": Settings(
        preset="gpu",
        model="gpt2-medium",
        comparisons="Dahoas/rm-static",
        limit=20_000,
        longest=320,
        layers=0,
        reward_adapters=True,
        evaluate_prompts=300,
        sft=SFTConfig(batch=4),
        preference=PreferenceConfig(epochs=1, batch=8, lr=2e-4),
        ppo=PPOCriticConfig(iterations=50, max_new_tokens=64, minibatch=8, lr=1e-4, critic_lr=2e-4),
    ),
}
