"""The models: blocks of ops, the GPT, the encoder-decoder, their checkpoints."""
