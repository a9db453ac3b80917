"""Figures that scripts and notebooks share."""
