"""What a learning rate is multiplied by along a run. Both end in a line to zero."""


def up_then_down(step, steps):
    """Up over the first tenth of the steps, then down: above 0, at most 1."""
    return min((step + 1) / (0.1 * steps + 1), (steps - step) / (0.9 * steps))


def level_then_down(iteration, iterations):
    """1 over the first half of the iterations, then down."""
    return min(1, 2 * (1 - iteration / iterations))
