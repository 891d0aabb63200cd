"""What a run and a model look like: pictures and tables."""
