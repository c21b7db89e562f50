"""What the five papers take for granted: features, corpora, the Conformer, exact CTC, and the plumbing of a run."""
