"""Tasks: each names the parts that it gives to the one denoising loop."""
