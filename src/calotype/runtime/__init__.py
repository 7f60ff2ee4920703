"""How models run fast and small on the hardware at hand, without a change in what they compute."""
