"""What stands around a prompt: its weights, its length, its words, and the states that models read."""
