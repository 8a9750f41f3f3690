"""What a workspace is, what a git URL asks for, and when a workspace must have got where."""
