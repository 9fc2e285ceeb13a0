"""Runs: the only files that know Hydra. Read ``train.py`` first; ``cli.py`` holds the commands."""
