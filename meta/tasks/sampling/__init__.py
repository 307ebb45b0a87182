"""Which tasks there are: what a seed means, which are held out, and how problems are disguised."""
