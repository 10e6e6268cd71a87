"""WireGuard's handshake messages and their cryptography, sans-IO."""
