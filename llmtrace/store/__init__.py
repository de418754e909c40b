"""Records, chains and signatures: what a run leaves behind and how it is kept."""
