"""Pieces for training: each of use in a loop of one's own, and the trainer and recipes that are made of them."""
