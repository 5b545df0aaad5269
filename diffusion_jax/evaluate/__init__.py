"""Sample quality: features, distances, coverage, class accuracy, each with its spread."""
