"""Plain data (exercises/plain.py) as bytes, between the grader and the process that runs a submission: JSON, and safetensors.

What comes back from a submission may be anything: `unpack` reads it with limits, and builds nothing but plain data.
"""

import json
import struct

import safetensors.torch
import torch

MOST = 256 * 2**20  # bytes of one message
LENGTH = struct.Struct(">Q")


def pack(value):
    """Bytes of plain data; tuples stay tuples. Raises ValueError where something in it is no plain data."""
    tensors = {}

    def walk(one):
        if one is None or type(one) in (bool, int, float, str):
            return one
        if isinstance(one, torch.Tensor):
            key = str(len(tensors))
            tensors[key] = (torch.view_as_real(one) if one.is_complex() else one).detach().contiguous().clone()
            return {"complex" if one.is_complex() else "tensor": key}
        if type(one) is list:
            return [walk(part) for part in one]
        if type(one) is tuple:
            return {"tuple": [walk(part) for part in one]}
        if type(one) is dict:
            return {"dict": [[walk(key), walk(part)] for key, part in one.items()]}
        raise ValueError(f"a {type(one).__name__} is no plain data")

    try:
        text = json.dumps(walk(value)).encode()
        return LENGTH.pack(len(text)) + text + safetensors.torch.save(tensors)
    except (KeyError, RuntimeError, TypeError, RecursionError) as error:  # a type of tensor that no file has, a loop
        raise ValueError(f"not plain data ({type(error).__name__}: {error})") from None


def unpack(content):
    """The plain data in `content`, bytes that `pack` made or that somebody forged. Raises ValueError where they are damaged."""
    try:
        length = LENGTH.unpack_from(content)[0]
        start = LENGTH.size + length
        if len(content) > MOST or start > len(content):
            raise ValueError("a message of the wrong length")
        tensors = safetensors.torch.load(bytes(content[start:]))

        def walk(one):
            if one is None or type(one) in (bool, int, float, str):
                return one
            if type(one) is list:
                return [walk(part) for part in one]
            ((kind, inside),) = one.items()
            if kind == "tensor":
                return tensors[inside]
            if kind == "complex":
                return torch.view_as_complex(tensors[inside])
            if kind == "tuple":
                return tuple(walk(part) for part in inside)
            if kind == "dict":
                return {walk(key): walk(part) for key, part in inside}
            raise ValueError(f"an unknown kind, {kind!r:.40}")

        return walk(json.loads(bytes(content[LENGTH.size : start])))
    except ValueError:
        raise
    except Exception as error:  # safetensors has an error of its own; a forged message may break anything
        raise ValueError(f"a damaged message ({type(error).__name__})") from None
