"""Side-by-side timings against peers and limits; RESULTS.md holds what they printed."""
