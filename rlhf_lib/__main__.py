"""The command line: `python -m rlhf_lib run --preset laptop --out runs/laptop`, and a command for every stage."""

import argparse
import json
import sys
from pathlib import Path

from rlhf_lib.files import RunError, read_json

STAGES = {
    "run": ("every stage, from the plays to the report", "run"),
    "pretrain": ("pretrain the GPT", "pretrain"),
    "train-reward": ("train the reward model on labels", "train_reward"),
    "train-policy": ("fine-tune the GPT with PPO", "train_policy"),
    "evaluate": ("compare base and policy on fresh samples", "evaluate"),
    "report": ("write report.html again", "report"),
}


def parser():
    from rlhf_lib.pipelines.settings import explain, flat
    from rlhf_lib.pipelines.shakespeare import PRESETS

    main = argparse.ArgumentParser(prog="python -m rlhf_lib", description=__doc__)
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, _) in STAGES.items():
        command = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}. A run that was stopped goes on."
        )
        command.add_argument(
            "--preset", choices=sorted(PRESETS), default=argparse.SUPPRESS, help="smoke, laptop (default) or gpu"
        )
        command.add_argument("--out", required=True, metavar="DIR", help="the run's folder")
        for field, default in flat(PRESETS["laptop"]).items():
            if field != "preset":
                kind = boolean if isinstance(default, bool) else type(default)
                metavar = {str: "TEXT", int: "N", float: "X"}.get(type(default), "yes|no")
                text = explain(PRESETS["laptop"], field).replace("%", "%%")
                command.add_argument(
                    f"--{field}", type=kind, metavar=metavar, default=argparse.SUPPRESS, help=f"{text} (laptop: {default})"
                )
    sample = commands.add_parser("sample", help="write samples of a checkpoint as JSON lines")
    sample.add_argument("--checkpoint", required=True, metavar="DIR", help="a run's folder (its policy) or a checkpoint's")
    sample.add_argument("-n", type=int, default=10, metavar="N", help="how many (10)")
    sample.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed gives the same samples (0)")
    sample.add_argument("--prompt", default="\n\n", help="what each sample continues (a blank line)")
    sample.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="most new tokens in each (48, or what the context has room for)"
    )
    sample.add_argument("--temperature", type=float, default=1.0, metavar="X")
    sample.add_argument("--top-k", type=int, default=0, metavar="N")
    sample.add_argument("--top-p", type=float, default=1.0, metavar="X")
    score = commands.add_parser("score", help="score texts with a reward model")
    score.add_argument("--checkpoint", required=True, metavar="DIR", help="a run's folder or a reward model's")
    score.add_argument(
        "--file", required=True, metavar="FILE", help="JSON lines with `text`, perhaps `label`; - for standard input"
    )
    publish = commands.add_parser("publish", help="copy a finished run's checkpoints in half precision")
    publish.add_argument("--run", required=True, metavar="DIR", help="the run's folder")
    publish.add_argument("--to", required=True, metavar="DIR", help="where the checkpoints go")
    return main


def boolean(text):
    if text.lower() not in ("yes", "no", "true", "false"):
        raise argparse.ArgumentTypeError(f"must be yes or no, got {text!r}")
    return text.lower() in ("yes", "true")


def settings_of(options):
    """The Settings that the options ask for: those of a run that was begun in the folder, or a preset with changes."""
    from rlhf_lib.pipelines.settings import changed, flat
    from rlhf_lib.pipelines.shakespeare import PRESETS

    given = {name: value for name, value in vars(options).items() if name not in ("command", "out", "preset")}
    saved = Path(options.out) / "settings.json"
    if saved.exists():
        begun = read_json(saved)
        preset = getattr(options, "preset", begun["preset"])
        base = (
            changed(PRESETS[preset], {k: v for k, v in begun.items() if k != "preset"})
            if preset == begun["preset"]
            else PRESETS[preset]
        )
    else:
        base = PRESETS[getattr(options, "preset", "laptop")]
    known = flat(base)
    return changed(base, {name: value for name, value in given.items() if name in known})


def stage_folder(folder, *stages):
    """The checkpoint that `folder` stands for: itself, or the first of `stages` inside it."""
    from rlhf_lib.checkpoints import CheckpointError

    for place in (Path(folder), *(Path(folder) / stage for stage in stages)):
        if (place / "model.safetensors").exists():
            return place
    raise CheckpointError(f"no checkpoint in {folder}: give a run's folder, or one that holds a model.safetensors")


def sample(options):
    import torch

    from rlhf_lib import checkpoints, sampling
    from rlhf_lib.devices import pick_device

    if options.n < 1:
        raise ValueError(f"-n must be at least 1, got {options.n}")
    model, tokenizer = checkpoints.load(stage_folder(options.checkpoint, "policy", "base"), pick_device())
    prompt = tokenizer.encode(options.prompt)
    room = model.config.context - len(prompt)
    length = options.max_new_tokens if options.max_new_tokens is not None else max(1, min(48, room))
    if length < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, got {length}")
    uniforms = torch.rand(options.n, length, generator=torch.Generator().manual_seed(options.seed))
    for some in uniforms.split(128):
        samples = sampling.generate(
            model, [prompt] * len(some), length, uniforms=some, end_token=tokenizer.end_token,
            temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
        )  # fmt: skip
        for tokens, logprobs, mask in zip(*samples):
            row = {"text": tokenizer.decode(tokens[mask]), "tokens": int(mask.sum()), "logprob": logprobs.sum().item()}
            print(json.dumps(row, ensure_ascii=False), flush=True)


def score(options):
    from rlhf_lib import checkpoints
    from rlhf_lib.devices import pick_device
    from rlhf_lib.trainers import reward

    model, tokenizer = checkpoints.load(stage_folder(options.checkpoint, "reward"), pick_device(), "reward")
    try:
        text = sys.stdin.read() if options.file == "-" else Path(options.file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"no file at {options.file}: give a file of JSON lines with `text`") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{options.file}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{options.file} cannot be read ({error.strerror}): give a file of JSON lines with `text`") from None
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            length = len(tokenizer.encode(row["text"]))
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise ValueError(f"{options.file}, line {number}: not a JSON object with `text` ({type(error).__name__})") from None
        if not 0 < length <= model.config.context:
            raise ValueError(
                f"{options.file}, line {number}: {length} tokens; the reward model reads 1 to {model.config.context}"
            )
        rows.append(row)
    scores = reward.score_texts(model, tokenizer, [row["text"] for row in rows]).sigmoid().tolist() if rows else []
    for row, p in zip(rows, scores):
        print(json.dumps({**row, "p_positive": p}, ensure_ascii=False))
    clear = [(row["label"], p) for row, p in zip(rows, scores) if row.get("label") in ("positive", "negative")]
    right = [(p > 0.5) == (label == "positive") for label, p in clear]
    if right:
        print(f"right on {sum(right) / len(right):.1%} of {len(right)} passages labelled positive or negative", file=sys.stderr)


def publish(options):
    from rlhf_lib.pipelines.shakespeare import publish

    publish(options.run, options.to)


def stage(options):
    from rlhf_lib import devices
    from rlhf_lib.pipelines.shakespeare import Shakespeare

    devices.join()
    summary = getattr(Shakespeare(settings_of(options), options.out), STAGES[options.command][1])()
    if summary and devices.world()[0] == 0:
        low, high = summary["gold_win_rate_interval"]
        print(
            f"\n{summary['val_bits_per_char']:.3f} bits per character; reward model {summary['reward_accuracy']:.1%}; "
            f"gold win rate {summary['gold_win_rate']:.1%} ({low:.1%} to {high:.1%}) at {summary['kl_nats']:.1f} nats; "
            f"{summary['seconds']['total'] / 60:.1f} minutes.\nRead {Path(options.out) / 'report.html'}"
        )


def main(arguments=None):
    options = parser().parse_args(arguments)
    try:
        {"sample": sample, "score": score, "publish": publish}.get(options.command, stage)(options)
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from the last saved step.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except (ValueError, RuntimeError) as error:
        if type(error) not in (ValueError, *KNOWN_ERRORS):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def known_errors():
    from rlhf_lib.checkpoints import CheckpointError
    from rlhf_lib.corpus import CorpusError
    from rlhf_lib.labels import LabelError

    return (CorpusError, LabelError, RunError, CheckpointError)


KNOWN_ERRORS = known_errors()

if __name__ == "__main__":
    sys.exit(main())
