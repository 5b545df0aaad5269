"""What a compiled program costs, and what a chip could do: pure functions, nothing of ours."""
