"""The mathematics: arrays in, arrays out; no files, no flags, no logging."""
