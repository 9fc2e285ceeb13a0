"""Victims: the classifiers that attacks fool and methods repair."""

from redlab.victims import architectures
from redlab.victims.loading import load
from redlab.victims.victim import ImageClassifier, Victim, state_hash

__all__ = ["ImageClassifier", "Victim", "architectures", "load", "state_hash"]
