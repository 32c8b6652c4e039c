"""The curator: sequential chains of thought become training traces."""
