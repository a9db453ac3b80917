"""What comes in and what is kept: configuration, data sets, ensembles and saved scores."""

from libdata import interrupts

interrupts.end_while_loading()
