"""State that outlives the process: identity, peers, timestamps, and the directories that they are kept in."""
