"""Suggestions for options of other programs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence

from undust.generation.other_names import OTHER_NAMES

_ARGUMENTS = {  # an argument's name -> an option elsewhere
    "PROMPT": "prompt prompts p positive positive_prompt text caption",
    "FROM": "prompt prompts p",
    "PICTURE": "input image init init_image input_image img i picture file",
    "SRC": "checkpoint_path checkpoint ckpt model model_path src source input i",
    "DST": "dump_path output output_path out o dst target",
    "MODEL": "model model_path model_id ckpt checkpoint m",
    "RECIPE": "config config_file recipe c",
    "DATA": "data dataset dataset_name data_dir input folder i",
    "DIR": "input folder data dataset i",
}
_FLAGS = {  # an option elsewhere -> one here with its value
    **dict.fromkeys(("half", "fp16", "float16"), "--dtype fp16"),
    **dict.fromkeys(("cuda", "gpu"), "--device cuda"),
    **dict.fromkeys(("extract_ema", "use_ema"), "--ema"),
    **dict.fromkeys(("karras", "use_karras_sigmas"), "--schedule karras"),
    **dict.fromkeys(("from_file", "prompt_file", "prompts_file"), "- < FILE"),
    "bf16": "--dtype bf16",
    "cpu": "--device cpu",
    "h": "--help",
    "resume_from_checkpoint": "--resume",
}
_TRAINING = {  # the key of a training recipe -> an option elsewhere
    "run.steps": "max_train_steps steps num_train_steps max_steps",
    "run.batch": "train_batch_size batch_size batch",
    "optimizer.learning_rate": "learning_rate lr",
    "data.folder": "train_data_dir dataset dataset_name data data_dir instance_data_dir",
    "data.size": "resolution size",
    "seed": "seed",
}
_SIDES = {"WIDTH": {"width", "w", "image_width"}, "HEIGHT": {"height", "h", "image_height"}}


def instead(
    option: str, arguments: Sequence[str], options: Collection[str], takes: Collection[str]
) -> str:
    """The equivalent of an option of another program; "" without one.

    arguments: the command line; options: those of the command; takes: the names of its arguments.
    """
    name, value = _name(option), _value(option, arguments)
    own = f"--{name.replace('_', '-')}"
    if own in options:
        return _with(own, value)
    flag = _FLAGS.get(name, "")
    has = {*options, "--help", *("-" for argument in takes if argument == "PROMPT")}
    if flag and flag.split()[0] in has:
        return flag.replace("FILE", shlex.quote(value or "FILE"))
    for argument, names in _ARGUMENTS.items():
        if any(each.startswith(argument) for each in takes) and name in names.split():
            return f"{argument} without an option" + f": {shlex.quote(value)}" * bool(value)
    for key, names in _TRAINING.items():
        if "--set" in options and name in names.split():
            return _with("--set", f"{key}={value or 'VALUE'}")
    if name == "n":  # of pictures for some, a negative prompt for others
        name = "num" if value.isdigit() else "negative_prompt"
    here = f"--{OTHER_NAMES.get(name, '').replace('_', '-')}"
    if here not in options:
        return ""
    if here == "--size":
        return f"--size {_size(name, value, arguments)}"
    if here == "--seed" and not value.isdigit():
        return "--seed N, and --count for the seeds after it"
    if here == "--lora" and value.replace(".", "", 1).isdigit():
        return f"--lora FILE:{value}"
    if name == "scheduler":
        return f"{_with(here, value)}, or --schedule for levels of noise such as karras"
    return _with(here, value)


def _name(option: str) -> str:
    """An option without dashes, in lower case unless it is one letter."""
    name = option.lstrip("-").replace("-", "_")
    return name if len(name) == 1 else name.lower()


def _value(option: str, arguments: Sequence[str]) -> str:
    """The value of an option; "" without one."""
    for place, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            return argument[len(option) + 1 :]
        following = arguments[place + 1 : place + 2]
        if argument == option and following and not re.match("--?[A-Za-z]", following[0]):
            return following[0]
    return ""


def _size(name: str, value: str, arguments: Sequence[str]) -> str:
    """WIDTHxHEIGHT from one option or two."""
    if not any(name.lower() in names for names in _SIDES.values()):
        return f"{value}x{value}" if value.isdigit() else value or "WIDTHxHEIGHT"
    given = [each.partition("=")[0] for each in arguments if each.startswith("-")]
    sides: list[str] = []
    for side, names in _SIDES.items():
        values = (_value(each, arguments) for each in given if _name(each).lower() in names)
        sides.append(next(values, "") or side)
    return "x".join(sides)


def _with(option: str, value: str) -> str:
    return f"{option} {shlex.quote(value)}" if value else option
