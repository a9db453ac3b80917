"""What is kept: outputs with sidecars, locks, every name and place on disk, finders, tables."""
