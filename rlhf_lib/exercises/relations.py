"""Relations between what came out and what was expected."""


def find(inputs, outputs, expected, tolerance):
    """The sentence of a relation that holds wherever outputs differ from the expected ones; "" if none is found."""
    return ""
