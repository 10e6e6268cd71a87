"""What must outlive the process: identity, peers, timestamps, and where they lie."""
