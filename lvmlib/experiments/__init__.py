"""What serves long runs: commands whose results are committed as small files, and the function that reads those."""
