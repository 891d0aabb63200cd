"""What the benches share: stopwatch, tables and pictures, the same models in torch, counters."""
