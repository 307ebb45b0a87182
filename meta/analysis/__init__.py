"""What an optimizer has learned: tools that take any update rule apart, one a file."""
