"""Pipelines: stages in a row, in one folder that can be stopped and resumed."""
