"""VPP at the other end of a memif: wireguard-go-vpp's files, and what is set up in VPP."""
