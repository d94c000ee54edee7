"""The training loops: one algorithm a file, its settings and its loop on one screen."""
