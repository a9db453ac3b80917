"""Builds ImageNet in Feldman and Zhang's order."""
