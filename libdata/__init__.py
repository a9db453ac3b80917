"""What comes in and what is kept: configuration, data sets, ensembles and saved scores."""
