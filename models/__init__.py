"""What turns an item into tensors: teachers (frozen), students (trained), their heads and checkpoints."""
