"""One optimisation step of the algorithms, and what makes it fast."""
