"""Crafting: which sample meets which attack on which victim, and the batch that comes of it."""

from redlab.crafting.component import Component, Distribution
from redlab.crafting.deal import Cell, Plan
from redlab.crafting.mix import AttackMix

__all__ = ["AttackMix", "Cell", "Component", "Distribution", "Plan"]
