"""What is measured of a trained network: the table of scores, streamed over examples and kept."""
