"""Tests of the walk through a training step."""
