"""The command line: `python -m rlhf_lib run --preset laptop --out runs/laptop`, and a command for every stage.

`assistant` does for a small assistant what `run` does for the plays, and `chat` talks with it.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from rlhf_lib.files import RunError, parse_row, read_json, read_text, shown
from rlhf_lib.instructors import add_commands

STAGES = {
    "run": ("every stage, from the plays to the report", "run"),
    "pretrain": ("pretrain the GPT", "pretrain"),
    "train-reward": ("train the reward model on labels", "train_reward"),
    "train-policy": ("fine-tune the GPT with PPO", "train_policy"),
    "evaluate": ("compare base and policy on fresh samples", "evaluate"),
    "report": ("write report.html again", "report"),
}


ASSISTANT = "every stage of the assistant, from demonstrations to the report"


def presets_of(command):
    """The settings of a pipeline by preset."""
    from rlhf_lib.pipelines import assistant, shakespeare

    return assistant.PRESETS if command == "assistant" else shakespeare.PRESETS


def parser():
    from rlhf_lib.talk import MODELS

    main = argparse.ArgumentParser(prog="python -m rlhf_lib", description=__doc__)
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in {**{name: text for name, (text, _) in STAGES.items()}, "assistant": ASSISTANT}.items():
        add_pipeline(commands, name, text)
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
    chat = commands.add_parser("chat", help="talk with an assistant; /new begins again, an empty line ends")
    chat.add_argument("--checkpoint", required=True, metavar="DIR", help="a run's folder (its policy) or a checkpoint's")
    chat.add_argument("--model", choices=MODELS, help="which of the run's models answers (policy)")
    chat.add_argument("--max-new-tokens", type=int, metavar="N", help="most tokens of an answer (the run's ppo.max_new_tokens)")
    chat.add_argument("--temperature", type=float, metavar="X", help="of sampling (the run's ppo.temperature)")
    chat.add_argument(
        "--seed", type=int, default=0, metavar="S", help="the same seed and the same words give the same answers (0)"
    )
    labels = commands.add_parser(
        "labels", help="make a label file of a table, or of what doccano, Label Studio or Argilla export"
    )
    labels.add_argument("file", metavar="FILE", help="CSV or TSV with headings, JSON lines, or a list in JSON")
    labels.add_argument("--out", required=True, metavar="FILE", help="the label file, for --labels; one that is there stays")
    publish = commands.add_parser("publish", help="copy a finished run's checkpoints in half precision")
    publish.add_argument("--run", required=True, metavar="DIR", help="the run's folder")
    publish.add_argument("--to", required=True, metavar="DIR", help="where the checkpoints go")
    main.set_defaults(others=add_commands(commands))
    return main


def add_pipeline(commands, name, text):
    """A command with a flag for every setting of its pipeline."""
    from rlhf_lib.pipelines.settings import explain, flat

    presets = presets_of(name)
    laptop = presets["laptop"]
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. A run that was stopped goes on.")
    command.add_argument("--preset", choices=sorted(presets), default=argparse.SUPPRESS, help="smoke, laptop (default) or gpu")
    command.add_argument("--out", required=True, metavar="DIR", help="the run's folder")
    for field, default in flat(laptop).items():
        if field != "preset":
            kind = boolean if isinstance(default, bool) else type(default)
            metavar = {str: "TEXT", int: "N", float: "X"}.get(type(default), "yes|no")
            text = explain(laptop, field).replace("%", "%%")
            command.add_argument(
                f"--{field}", type=kind, metavar=metavar, default=argparse.SUPPRESS, help=f"{text} (laptop: {default})"
            )


def boolean(text):
    if text.lower() not in ("yes", "no", "true", "false"):
        raise argparse.ArgumentTypeError(f"must be yes or no, got {text!r}")
    return text.lower() in ("yes", "true")


def settings_of(options):
    """The settings that the options ask for: those of a run that was begun in the folder, or a preset with changes."""
    from rlhf_lib.pipelines.settings import changed, flat
    from rlhf_lib.pipelines.stages import check_preset, saved_settings

    presets = presets_of(getattr(options, "command", "run"))
    base = presets[getattr(options, "preset", "laptop")]
    given = {name: value for name, value in vars(options).items() if name in flat(base) and name != "preset"}
    saved = Path(options.out) / "settings.json"
    if saved.exists():
        begun = saved_settings(options.out, type(base))
        check_preset(options.out, begun, presets)
        preset = getattr(options, "preset", begun["preset"])
        base = presets[preset]
        if preset == begun["preset"]:
            try:
                base = changed(base, begun)
            except ValueError as error:
                raise RunError(f"{saved}: {error}; mend the file or choose another --out") from None
    return changed(base, given)


def stage_folder(folder, *stages):
    """The checkpoint that `folder` stands for: itself, or the first of `stages` inside it."""
    from rlhf_lib.checkpoints import CheckpointError

    for place in (Path(folder), *(Path(folder) / stage for stage in stages)):
        if (place / "model.safetensors").exists():
            return place
    raise CheckpointError(f"no checkpoint in {folder}: give a run's folder, or one that holds a model.safetensors")


def sample(options):
    """Write samples as JSON lines: text, tokens (their number), logprob (nats). Raises ValueError for an option out of bounds."""
    import torch

    from rlhf_lib import checkpoints, sampling
    from rlhf_lib.devices import pick_device
    from rlhf_lib.pipelines.settings import SEEDS

    if options.n < 1:
        raise ValueError(f"-n must be at least 1, got {options.n}")
    if abs(options.seed) >= SEEDS:
        raise ValueError(f"--seed must be below 2^63, got {options.seed}")
    model, tokenizer = checkpoints.load(stage_folder(options.checkpoint, "policy", "base"), pick_device())
    prompt = tokenizer.encode(options.prompt)
    room = model.config.context - len(prompt)
    if room < 1:
        raise ValueError(f"--prompt has {len(prompt)} tokens, and the model reads {model.config.context}: give a shorter one")
    length = options.max_new_tokens if options.max_new_tokens is not None else min(48, room)
    if not 1 <= length <= room:
        raise ValueError(f"--max-new-tokens must be from 1 to {room}, what the context leaves beside the prompt, got {length}")
    drawn = torch.Generator().manual_seed(options.seed)
    for start in range(0, options.n, 128):
        some = torch.rand(min(128, options.n - start), length, generator=drawn)
        samples = sampling.generate(
            model, [prompt] * len(some), length, uniforms=some, end_token=tokenizer.end_token,
            temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
        )  # fmt: skip
        for tokens, logprobs, mask in zip(*samples):
            row = {"text": tokenizer.decode(tokens[mask]), "tokens": int(mask.sum()), "logprob": logprobs.sum().item()}
            print(json.dumps(row, ensure_ascii=False), flush=True)


def score(options):
    """Write rows with `text` back with `p_positive`, in [0, 1]. Raises ValueError naming the file and the line."""
    from rlhf_lib import checkpoints
    from rlhf_lib.devices import pick_device
    from rlhf_lib.tokenization import ChatTokenizer
    from rlhf_lib.trainers import reward

    model, tokenizer = checkpoints.load(stage_folder(options.checkpoint, "reward"), pick_device(), "reward")
    if isinstance(tokenizer, ChatTokenizer):
        raise ValueError(f"{options.checkpoint} holds a reward model of answers: give the folder of a run on the plays")
    text = sys.stdin.read() if options.file == "-" else read_text(options.file, ValueError)
    rows, windows = [], []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if not line.strip():
            continue
        here = f"{options.file}, line {number}"
        row = parse_row(line, here, ValueError)
        if not isinstance(row.get("text"), str):
            raise ValueError(f"{here}: the field `text` must be a text, got {shown(row.get('text'))}; mend the line")
        tokens = tokenizer.encode(row["text"])
        if not tokens:
            raise ValueError(f"{here}: 0 tokens; the reward model reads 1 to {model.config.context}")
        rows.append(row)
        windows.append(reward.windows(tokens, model.config.context))
        if len(windows[-1]) > 1:
            row["windows"] = len(windows[-1])
            print(
                f"{here}: {len(tokens)} tokens, and the reward model reads {model.config.context}: "
                f"scored in {len(windows[-1])} windows, whose log-odds are averaged",
                file=sys.stderr,
            )
    scores = reward.score_windows(model, windows).sigmoid().tolist() if rows else []
    for row, p in zip(rows, scores):
        print(json.dumps({**row, "p_positive": p}, ensure_ascii=False))
    clear = [(row["label"], p) for row, p in zip(rows, scores) if row.get("label") in ("positive", "negative")]
    right = [(p > 0.5) == (label == "positive") for label, p in clear]
    if right:
        print(f"right on {sum(right) / len(right):.1%} of {len(right)} passages labelled positive or negative", file=sys.stderr)


def labels(options):
    """Make a label file of an export. Raises ValueError where the file is there already."""
    from rlhf_lib import label_exports
    from rlhf_lib.labels import write

    if Path(options.out).exists():
        raise ValueError(f"{options.out} is there already: choose another --out, nothing is overwritten")
    taken = label_exports.load(options.file)
    write(options.out, taken.labels)
    print(f"{taken}; written to {options.out}")


def chat(options):
    """Talk with the assistant until an empty line."""
    from rlhf_lib.devices import pick_device
    from rlhf_lib.talk import drawn_as, open_assistant, talk, typed

    model, tokenizer = open_assistant(options.checkpoint, options.model, pick_device())
    say = lambda text: print(text, flush=True)  # noqa: E731
    given = {name: value for name in ("max_new_tokens", "temperature") if (value := getattr(options, name)) is not None}
    talk(model, tokenizer, typed(), say, **{**drawn_as(options.checkpoint), **given}, seed=options.seed)


def publish(options):
    """Copy a finished run's checkpoints in half precision."""
    from rlhf_lib.pipelines import assistant, shakespeare

    (assistant if of_assistant(options.run) else shakespeare).publish(options.run, options.to)


def of_assistant(folder):
    """Whether the run in `folder` is one of the assistant."""
    saved = Path(folder) / "settings.json"
    return saved.exists() and "sft.epochs" in read_json(saved)


def report(options):
    """Write the report of a finished run again, whichever version it is of."""
    from rlhf_lib.pipelines.report import write_assistant_report, write_report

    if not (Path(options.out) / "summary.json").exists():
        return stage(options)
    (write_assistant_report if of_assistant(options.out) else write_report)(options.out)


def assist(options):
    """Every stage of the assistant that is not done. Raises RunError under torchrun."""
    from rlhf_lib.pipelines.assistant import Assistant, outcome

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise RunError("the assistant is trained by one process: start it without torchrun")
    summary = Assistant(settings_of(options), options.out).run()
    print(f"\n{outcome(summary)}\nRead {Path(options.out) / 'report.html'}")


def stage(options):
    """One stage of the Shakespeare pipeline, or all that are not done."""
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


def speak_utf8():
    """Read and write UTF-8, whatever the system's own encoding is."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8")


def check_words(options):
    """Refuse words of the command line that are not UTF-8: no file could hold them."""
    for name, value in vars(options).items():
        if isinstance(value, str) and value != value.encode("utf-8", "replace").decode():
            raise ValueError(f"--{name} is not UTF-8: {value!r}")


def main(arguments=None):
    speak_utf8()
    options = parser().parse_args(arguments)
    try:
        check_words(options)
        others = {
            "sample": sample,
            "score": score,
            "publish": publish,
            "chat": chat,
            "labels": labels,
            "assistant": assist,
            "report": report,
            **options.others,
        }
        others.get(options.command, stage)(options)
    except KeyboardInterrupt:
        goes_on = options.command in (*STAGES, "assistant", "grade")
        print("\nStopped." + " The same command goes on from the last saved step." * goes_on, file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except UnicodeDecodeError as error:
        print(f"error: standard input is not UTF-8 (byte {error.start}): give UTF-8 text", file=sys.stderr)
        return 1
    except (ValueError, RuntimeError) as error:
        if type(error) not in (ValueError, *KNOWN_ERRORS):
            raise
        print(f"error: {error}{without_data(error)}", file=sys.stderr)
        return 1
    return 0


def without_data(error):
    """What to do about an error over a file that only a clone of the repository has; "" where that is not it."""
    from rlhf_lib.corpus import DATA

    if (DATA / "labels").exists() or str(DATA) not in str(error):
        return ""
    return "\nLabels and checkpoints come with a clone of the repository, not with pip: set RLHF_DATA to its folder data"


def known_errors():
    from rlhf_lib.chat import ChatError
    from rlhf_lib.checkpoints import CheckpointError
    from rlhf_lib.comparisons import ComparisonError
    from rlhf_lib.corpus import CorpusError
    from rlhf_lib.labels import LabelError
    from rlhf_lib.models.gguf import GGUFError
    from rlhf_lib.models.published import PublishedError

    return (CorpusError, LabelError, RunError, CheckpointError, ChatError, ComparisonError, GGUFError, PublishedError)


KNOWN_ERRORS = known_errors()

if __name__ == "__main__":
    sys.exit(main())
