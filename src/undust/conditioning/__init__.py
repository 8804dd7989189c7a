"""What a person asks for, as tensors."""
