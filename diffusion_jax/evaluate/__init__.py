"""How good samples are: features, distances, coverage, class accuracy, each with its spread."""
