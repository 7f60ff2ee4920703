"""Every scheduler against the oracle, against mathematics, and as a thing that people call. `plans.py` lists the cases."""
