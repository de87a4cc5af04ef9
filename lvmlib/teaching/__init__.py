"""What serves the pages and not the mathematics: figures, showing a function's source, checks of exercises."""
